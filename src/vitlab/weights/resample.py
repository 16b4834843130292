"""Adapt a Vision Transformer's tensors to another grid, number of channels or prefix."""

import torch
from torch import Tensor

Slot = tuple[str, int]  # a prefix token: ("reg_token", 2)


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

    A position without a place in the new table is added to its token, and positions that only the new table has are
    zero, so the network computes the same. Patches on another grid are resampled: bicubic, with antialiasing.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed

    known = table.shape[1] - old[0] * old[1]
    positions = {slot: table[:, i : i + 1] for i, slot in enumerate(slots[:known])}
    changed = dict(tokens)
    for name, index in (slot for slot in slots[covered:] if slot in positions):
        token = changed[name].clone()
        token[:, index : index + 1] += positions[name, index]
        changed[name] = token
    patches = table[:, known:]
    if old != new:
        patches = resample_abs_pos_embed(patches, list(new), list(old), num_prefix_tokens=0)
    prefix = [positions.get(slot, torch.zeros_like(table[:, :1])) for slot in slots[:covered]]
    return {**changed, "pos_embed": torch.cat([*prefix, patches], dim=1)}
