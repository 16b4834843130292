"""Fixed position embeddings."""

import torch
from torch import Tensor


def sincos2d(rows: int, columns: int, dim: int) -> Tensor:
    """Fixed positions as in MAE, n D: sin and cos of the column, then of the row, at D/4 frequencies from 1 down."""
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [position.reshape(-1, 1) * frequencies for position in (column, row)]  # R*S D/4, twice
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()


def sincos2d_table(rows: int, columns: int, dim: int, length: int) -> Tensor:
    """The table of `sincos2d`, 1 length D, with zeros for the prefix tokens in front."""
    table = torch.zeros(1, length, dim)
    table[:, length - rows * columns :] = sincos2d(rows, columns, dim)
    return table
