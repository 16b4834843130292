"""Position embeddings: fixed ones, and tables for another grid of patches."""

from typing import cast

import torch
from torch import Tensor, nn


def sincos2d_table(rows: int, columns: int, dim: int, length: int) -> Tensor:
    """Fixed positions as in MAE, 1 length D: zeros for the prefix, sin and cos of column and row at D/4 frequencies."""
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [position.reshape(-1, 1) * frequencies for position in (column, row)]  # R*S D/4, twice
    table = torch.zeros(1, length, dim)
    waves = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    table[:, length - rows * columns :] = torch.cat(waves, dim=1)
    return table


def table_for(table: Tensor | None, grid: tuple[int, int], old: tuple[int, int], prefix: int) -> Tensor | None:
    """A table 1 length D for another grid: learned positions resampled as in timm, with gradients, or sines for it."""
    if table is None or grid == old:
        return table
    if not isinstance(table, nn.Parameter):
        return sincos2d_table(*grid, table.shape[2], prefix + grid[0] * grid[1]).to(table)
    from timm.layers.pos_embed import resample_abs_pos_embed

    return cast(Tensor, resample_abs_pos_embed(table, list(grid), list(old), num_prefix_tokens=prefix))
