"""`compile=true`: torch.compile, for our model block by block, so that one compilation serves all blocks.

The first step then takes a fraction of the time, at any depth (measured in docs/benchmark.md).
"""

import logging

import torch
from torch import nn

from vitlab.models.vit import VisionTransformer

# Of a block: with and without stochastic depth, for [cls] alone, frozen or not, in training and evaluation, for one
# batch size and for all. By default, torch stops compiling after 8.
VARIANTS = 64

log = logging.getLogger(__name__)


def compile_network(network: nn.Module) -> None:
    """Compile in place, which keeps the names in a checkpoint. Other networks than ours are compiled in one piece."""
    log.info("compile=true: the first steps compile the network, which takes up to minutes")
    if not isinstance(network, VisionTransformer):
        network.compile()
        return
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for block in network.blocks:
        block.compile()
