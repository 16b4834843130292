"""`compile=true`: torch.compile, block by block where a network has our blocks, so that one is compiled for all.

The first step comes in a fraction of the time that the whole takes, whatever the depth. Measured in
docs/benchmark.md.
"""

import torch
from torch import nn

from vitlab.models.vit import VisionTransformer

# Of one block's code: with and without stochastic depth, for [cls] alone, frozen or not, in training and evaluation,
# for one size of a batch and for all. torch gives up at 8, and goes on uncompiled.
VARIANTS = 64


def compile_network(network: nn.Module) -> None:
    """In place: the names in a checkpoint stay as they are. Another network than ours is compiled as a whole."""
    if not isinstance(network, VisionTransformer):
        network.compile()
        return
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for block in network.blocks:
        block.compile()
