"""Methods and attributes of timm's VisionTransformer, and DINO's `get_last_selfattention`, for tools that use them."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitlab.models.layers import patch_dropout
from vitlab.models.positions import table_for
from vitlab.models.vit_validation import pair

POOLS = {"cls": "token", "avg": "avg", "none": ""}  # ours and timm's


def timm_method(name: str) -> Callable[..., Any]:
    """timm's own method: what it reads of a network, ours has too. Masks of attention are refused by our blocks."""

    def method(self: nn.Module, *arguments: Any, **options: Any) -> Any:
        from timm.models.vision_transformer import VisionTransformer

        return getattr(VisionTransformer, name)(self, *arguments, **options)

    return method


class TimmInterface(nn.Module):
    pos_embed: Tensor | None
    forward_intermediates = timm_method("forward_intermediates")
    get_intermediate_layers = timm_method("get_intermediate_layers")
    prune_intermediate_layers = timm_method("prune_intermediate_layers")

    depth = property(lambda self: len(self.blocks))
    num_prefix_tokens = property(lambda self: self.prefix)
    global_pool = property(lambda self: POOLS[self.pool])

    @property
    def feature_info(self: Any) -> list[dict[str, Any]]:
        size = max(self.patch_size)
        return [{"module": f"blocks.{i}", "num_chs": self.dim, "reduction": size} for i in range(self.depth)]

    @cached_property
    def pretrained_cfg(self: Any) -> dict[str, Any]:
        """What timm's tools read. Mean and deviation of the images, which a network doesn't know, may be added."""
        sizes = {"num_classes": self.num_classes, "input_size": self.patch_embed.expected, "fixed_input_size": True}
        head = ("head", "head_dist") if self.distilled else "head"
        return sizes | {"pool_size": None, "first_conv": "patch_embed.proj", "classifier": head}

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token", "dist_token", "reg_token"}  # tokens and positions

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns from a parameter's name to its layer (99999: the layer before)."""
        stem = r"^(?:cls_token|dist_token|reg_token|pos_embed|patch_embed|norm_pre)"
        return {"stem": stem, "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def set_grad_checkpointing(self: Any, enable: bool = True) -> None:
        self.activation_checkpointing = self.grad_checkpointing = enable

    def patch_drop(self: Any, x: Tensor) -> Tensor:
        return patch_dropout(x, self.patch_dropout, self.prefix, self.training)

    def get_last_selfattention(self: Any, images: Tensor) -> Tensor:
        return cast(Tensor, self.attention_maps(images, [-1])[0])  # B h N N

    def get_classifier(self: Any) -> Any:
        return (self.head, self.head_dist) if self.distilled else self.head

    def reset_classifier(self: Any, num_classes: int, global_pool: str | None = None) -> None:
        """New heads, initialized by torch; of 0 classes: none. `global_pool`: token, avg, empty, or None: as it is."""
        ours = {theirs: pool for pool, theirs in POOLS.items()} | {None: self.pool}
        if global_pool not in ours or (global_pool == "token" and self.cls_token is None):
            raise ValueError(f"global_pool={global_pool!r} doesn't fit; use 'avg', '', or 'token' with a class token")
        self.pool, self.num_classes = ours[global_pool], num_classes
        for name in ("head", "head_dist") if self.distilled else ("head",):
            head = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
            setattr(self, name, head.to(self.patch_embed.proj.weight).train(self.training))

    @torch.no_grad()
    def set_input_size(self: Any, img_size: Any = None, patch_size: Any = None) -> None:
        """Resample weights and positions for images or patches of another size; None: the size that they have."""
        from timm.layers.patch_embed import resample_patch_embed

        image, patch = pair(img_size or self.image_size), pair(patch_size or self.patch_size)
        if image[0] % patch[0] or image[1] % patch[1]:
            raise ValueError(f"img_size={image} is not a multiple of patch_size={patch}; set both")
        embed, proj, table, old = self.patch_embed, self.patch_embed.proj, self.pos_embed, self.grid
        if patch != self.patch_size:
            proj.weight = nn.Parameter(resample_patch_embed(proj.weight, list(patch)), proj.weight.requires_grad)
            proj.kernel_size = proj.stride = patch
        self.image_size, self.patch_size, self.grid = image, patch, (image[0] // patch[0], image[1] // patch[1])
        embed.expected, embed.grid, embed.grid_size = (self.in_channels, *image), self.grid, self.grid
        embed.num_patches, self.pretrained_cfg["input_size"] = self.grid[0] * self.grid[1], embed.expected
        new: Any = table_for(table, self.grid, old, self.covered)
        self.pos_embed = nn.Parameter(new, table.requires_grad) if isinstance(table, nn.Parameter) else new
