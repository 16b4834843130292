"""From the tensors of one Vision Transformer to those of another that differs in grid, patch, channels or head."""

import torch
from torch import Tensor

Slot = tuple[str, int]  # a token of the prefix: ("reg_token", 2)


def resample_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Positions of patches 1 n D on another grid: bicubic, with antialiasing where it is coarser."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    if old == new:
        return table
    resampled: Tensor = resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=0)
    return resampled


def resample_patches(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """The projection of patches D C P Q for another patch size, by the pseudo-inverse of resizing (FlexiViT).

    A resized patch then gives the token that the patch gave, as nearly as can be (https://arxiv.org/abs/2212.08013).
    """
    from timm.layers.patch_embed import resample_patch_embed

    resampled: Tensor = resample_patch_embed(kernel, list(size))
    return resampled


def change_channels(kernel: Tensor, channels: int) -> Tensor:
    """The projection of patches D C P Q for other input channels.

    One channel gets the sum over all, as if a grey image had been repeated; more get the old ones in turn, scaled so
    that the sum over channels stays.
    """
    old = kernel.shape[1]
    if channels == old:
        return kernel
    if channels == 1:
        return kernel.sum(dim=1, keepdim=True)
    return kernel.repeat(1, -(-channels // old), 1, 1)[:, :channels] * (old / channels)


def change_positions(
    tokens: dict[str, Tensor],
    table: Tensor,
    *,
    old: tuple[int, int],
    new: tuple[int, int],
    slots: list[Slot],
    covered: int,
) -> dict[str, Tensor]:
    """Tokens of the prefix (name -> 1 k D), and a position table for the grid `new` and the first `covered` of `slots`.

    What a token's position was is added to the token where the new table has none for it, and is zero where only the
    new one has: the network computes the same.
    """
    known = table.shape[1] - old[0] * old[1]
    placed = {slot: table[:, i : i + 1] for i, slot in enumerate(slots[:known])}
    found = dict(tokens)
    for name, index in (slot for slot in slots[covered:] if slot in placed):
        token = found[name].clone()
        token[:, index : index + 1] += placed[name, index]
        found[name] = token
    patches = resample_positions(table[:, known:], old, new)
    prefix = [placed.get(slot, torch.zeros_like(table[:, :1])) for slot in slots[:covered]]
    return {**found, "pos_embed": torch.cat([*prefix, patches], dim=1)}
