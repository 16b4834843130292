"""Adapt a Vision Transformer's tensors to another grid, patch size, number of channels or prefix."""

import torch
from torch import Tensor

Slot = tuple[str, int]  # a prefix token: ("reg_token", 2)


def resample_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Positions of patches, 1 n D, on another grid: bicubic, with antialiasing."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    if old == new:
        return table
    resampled: Tensor = resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=0)
    return resampled


def resample_patches(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """The patch projection D C P Q for another patch size, by the pseudo-inverse of resizing.

    A resized patch then gives nearly the same token (FlexiViT, https://arxiv.org/abs/2212.08013).
    """
    from timm.layers.patch_embed import resample_patch_embed

    resampled: Tensor = resample_patch_embed(kernel, list(size))
    return resampled


def change_channels(kernel: Tensor, channels: int) -> Tensor:
    """The patch projection D C P Q for other input channels.

    One channel gets the sum over all, as for a repeated gray image. More repeat the old ones, scaled to the same sum.
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
    """Prefix tokens (name -> 1 k D), and a position table for the grid `new` and the first `covered` of `slots`.

    The network computes the same: a position without a place in the new table is added to its token, and positions
    that only the new table has are zero.
    """
    known = table.shape[1] - old[0] * old[1]
    positions = {slot: table[:, i : i + 1] for i, slot in enumerate(slots[:known])}
    changed = dict(tokens)
    for name, index in (slot for slot in slots[covered:] if slot in positions):
        token = changed[name].clone()
        token[:, index : index + 1] += positions[name, index]
        changed[name] = token
    patches = resample_positions(table[:, known:], old, new)
    prefix = [positions.get(slot, torch.zeros_like(table[:, :1])) for slot in slots[:covered]]
    return {**changed, "pos_embed": torch.cat([*prefix, patches], dim=1)}
