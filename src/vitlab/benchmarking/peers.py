"""The same Vision Transformer in five libraries: ours, timm's, torchvision's, transformers' and vit-pytorch's.

Sizes and choices are the same for all: [cls] pooling, biases everywhere, exact GELU, random weights, no dropout. What
an architecture does otherwise is in `EXTRA`, and `build` compares the number of parameters before anything is timed.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from torch import Tensor, nn

log = logging.getLogger(__name__)

Size = Literal["mini", "cifar", "ti16", "s16", "b16", "l16"]
Peer = Literal["timm", "torchvision", "transformers", "vit-pytorch"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A ViT for square images of 3 channels; `hidden` is the MLPs' width. Pixels, channels, counts."""

    image: int
    patch: int
    dim: int
    depth: int
    heads: int
    hidden: int
    classes: int

    @property
    def tokens(self) -> int:
        return 1 + (self.image // self.patch) ** 2


SIZES: dict[Size, Architecture] = {
    "mini": Architecture(image=32, patch=4, dim=64, depth=4, heads=4, hidden=256, classes=10),
    "cifar": Architecture(image=32, patch=4, dim=192, depth=9, heads=12, hidden=384, classes=10),
    "ti16": Architecture(image=224, patch=16, dim=192, depth=12, heads=3, hidden=768, classes=1000),
    "s16": Architecture(image=224, patch=16, dim=384, depth=12, heads=6, hidden=1536, classes=1000),
    "b16": Architecture(image=224, patch=16, dim=768, depth=12, heads=12, hidden=3072, classes=1000),
    "l16": Architecture(image=224, patch=16, dim=1024, depth=24, heads=16, hidden=4096, classes=1000),
}


def vitlab(size: Architecture) -> nn.Module:
    from vitlab.models.vit import VisionTransformer

    return VisionTransformer(
        image_size=size.image,
        patch_size=size.patch,
        num_classes=size.classes,
        dim=size.dim,
        depth=size.depth,
        heads=size.heads,
        mlp_ratio=size.hidden / size.dim,
    )


def timm(size: Architecture) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    network: nn.Module = VisionTransformer(
        img_size=size.image,
        patch_size=size.patch,
        num_classes=size.classes,
        embed_dim=size.dim,
        depth=size.depth,
        num_heads=size.heads,
        mlp_ratio=size.hidden / size.dim,
    )
    return network


def torchvision(size: Architecture) -> nn.Module:
    from torchvision.models import VisionTransformer

    network: nn.Module = VisionTransformer(  # type: ignore[no-untyped-call, unused-ignore]
        image_size=size.image,
        patch_size=size.patch,
        num_layers=size.depth,
        num_heads=size.heads,
        hidden_dim=size.dim,
        mlp_dim=size.hidden,
        num_classes=size.classes,
    )
    return network


def transformers(size: Architecture) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(  # type: ignore[call-arg]
        image_size=size.image,
        patch_size=size.patch,
        num_labels=size.classes,
        hidden_size=size.dim,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=size.hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-6,
        attn_implementation="sdpa",
    )
    return Logits(ViTForImageClassification(config))


def vit_pytorch(size: Architecture) -> nn.Module:
    from vit_pytorch import ViT  # type: ignore[import-untyped]

    network: nn.Module = ViT(
        image_size=size.image,
        patch_size=size.patch,
        num_classes=size.classes,
        dim=size.dim,
        depth=size.depth,
        heads=size.heads,
        mlp_dim=size.hidden,
        dim_head=size.dim // size.heads,
    )
    return network


class Logits(nn.Module):
    """Of what transformers' models return, the logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=images).logits
        return logits


BUILDERS: dict[str, Callable[[Architecture], nn.Module]] = {
    "vitlab": vitlab,
    "timm": timm,
    "torchvision": torchvision,
    "transformers": transformers,
    "vit-pytorch": vit_pytorch,
}
MODULES = {"transformers": "transformers", "vit-pytorch": "vit_pytorch"}  # of the extra `benchmark`
# Parameters that an architecture has beyond ours. vit-pytorch's: norms before and after the patches' projection,
# no bias of queries, keys and values.
EXTRA: dict[str, Callable[[Architecture], int]] = {
    "vit-pytorch": lambda size: 2 * 3 * size.patch**2 + 2 * size.dim - 3 * size.dim * size.depth
}


def there(peers: list[Peer]) -> list[Peer]:
    """Those whose library is installed; the others are told."""
    missing = [peer for peer in peers if peer in MODULES and find_spec(MODULES[peer]) is None]
    for peer in missing:
        log.warning("%s is not installed, and is left out: pip install -e '.[benchmark]'", peer)
    return [peer for peer in peers if peer not in missing]


def build(name: str, size: Architecture) -> nn.Module:
    """A network with random weights. Raises `RuntimeError` where it isn't of the architecture that was asked for."""
    network = BUILDERS[name](size)
    count, own = parameters(network), parameters(vitlab(size)) if name != "vitlab" else parameters(network)
    expected = own + (EXTRA[name](size) if name in EXTRA else 0)
    if count != expected:
        raise RuntimeError(f"{name}'s {size} has {count:,} parameters and should have {expected:,}: other networks")
    return network


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
