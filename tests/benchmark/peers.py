"""The same Vision Transformer in five libraries: vitlab, timm, torchvision, transformers and vit-pytorch.

All have the same sizes, [cls] pooling, biases, exact GELU, random weights and no dropout; `build` compares the numbers
of parameters.
"""

import logging
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from importlib.util import find_spec
from typing import Any, Literal

from torch import Tensor, nn

from benchmark.case import OURS
from vitlab.config.schema import resolve

log = logging.getLogger(__name__)

Size = Literal["mini", "cifar", "ti16", "s16", "b16", "l16"]
Peer = Literal["timm", "torchvision", "transformers", "vit-pytorch"]


@dataclass(frozen=True)
class Architecture:
    """A ViT for square images of 3 channels; `hidden` is the width of the MLPs."""

    image: int
    patch: int
    dim: int
    depth: int
    heads: int
    hidden: int
    classes: int = 1000


SIZES: dict[Size, Architecture] = {
    "mini": Architecture(image=32, patch=4, dim=64, depth=4, heads=4, hidden=256, classes=10),
    "cifar": Architecture(image=32, patch=4, dim=192, depth=9, heads=12, hidden=384, classes=10),
    "ti16": Architecture(image=224, patch=16, dim=192, depth=12, heads=3, hidden=768),
    "s16": Architecture(image=224, patch=16, dim=384, depth=12, heads=6, hidden=1536),
    "b16": Architecture(image=224, patch=16, dim=768, depth=12, heads=12, hidden=3072),
    "l16": Architecture(image=224, patch=16, dim=1024, depth=24, heads=16, hidden=4096),
}
# The class of each library, and its names for the fields of `Architecture`, in their order.
CLASSES = {
    OURS: ("vitlab.models.vit.VisionTransformer", "image_size patch_size dim depth heads mlp_ratio num_classes"),
    "timm": ("timm.models.VisionTransformer", "img_size patch_size embed_dim depth num_heads mlp_ratio num_classes"),
    "torchvision": (
        "torchvision.models.VisionTransformer",
        "image_size patch_size hidden_dim num_layers num_heads mlp_dim num_classes",
    ),
    "transformers": (
        "transformers.ViTConfig",
        "image_size patch_size hidden_size num_hidden_layers num_attention_heads intermediate_size num_labels",
    ),
    "vit-pytorch": ("vit_pytorch.ViT", "image_size patch_size dim depth heads mlp_dim num_classes"),
}


class Logits(nn.Module):
    """Returns the logits of a transformers model."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=images).logits
        return logits


def available_peers(peers: Sequence[Peer]) -> list[Peer]:
    """Peers whose library is installed; missing ones are logged."""
    available = [peer for peer in peers if find_spec(CLASSES[peer][0].partition(".")[0])]
    for peer in [peer for peer in peers if peer not in available]:
        log.warning("%s is not installed and is skipped: pip install -e '.[dev]'", peer)
    return available


def build(name: str, size: Architecture) -> nn.Module:
    """A network with random weights. Raises `RuntimeError` for another number of parameters than the architecture's."""
    target, names = CLASSES[name]
    options: dict[str, Any] = dict(zip(names.split(), astuple(size), strict=True))
    if "mlp_ratio" in options:
        options["mlp_ratio"] = size.hidden / size.dim
    if name == "vit-pytorch":
        options["dim_head"] = size.dim // size.heads
    if name == "transformers":
        options |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-6}
    network: nn.Module = resolve(target)(**options)
    if name == "transformers":
        network = Logits(resolve("transformers.ViTForImageClassification")(network))
    expected = parameters(network) if name == OURS else parameters(build(OURS, size))
    if name == "vit-pytorch":  # two norms around the patch projection, no biases of queries, keys and values
        expected += 2 * 3 * size.patch**2 + 2 * size.dim - 3 * size.dim * size.depth
    if parameters(network) != expected:
        raise RuntimeError(f"{name}'s {size} has {parameters(network):,} parameters and should have {expected:,}")
    return network


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
