"""Fixed position embeddings."""

import torch
from torch import Tensor


def sincos2d_table(rows: int, columns: int, dim: int, length: int) -> Tensor:
    """Fixed positions as in MAE, 1 length D: zeros for the prefix, sin and cos of column and row at D/4 frequencies."""
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [position.reshape(-1, 1) * frequencies for position in (column, row)]  # R*S D/4, twice
    table = torch.zeros(1, length, dim)
    waves = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    table[:, length - rows * columns :] = torch.cat(waves, dim=1)
    return table
