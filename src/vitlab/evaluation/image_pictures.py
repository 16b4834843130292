"""Drawing: images under maps, tiles in rows and columns, lines. An image is a tensor 3 H W of values from 0 to 1."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

MOST = 16  # rows or columns of a picture
Line = tuple[Any, Any, str, dict[str, Any]]  # x, y, matplotlib's format, its settings


def to_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalized images B C H W as they look, B 3 H W; of other than 3 channels, the first in gray."""
    center, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    shown = (images.detach().cpu().float() * scale + center).clamp(0, 1)
    return shown if shown.shape[1] == 3 else shown[:, :1].expand(-1, 3, -1, -1)


def colors(values: Tensor, colormap: str = "viridis") -> Tensor:
    """A map R S of values from 0 to 1 as an image."""
    return (
        torch.from_numpy(matplotlib.colormaps[colormap](values.detach().cpu().numpy())).float()[..., :3].movedim(2, 0)
    )


def overlay(image: Tensor, values: Tensor) -> Tensor:
    """An image in gray under a map R S in colors, from 0 to the map's maximum."""
    heat = colors(values.clamp(min=0) / values.max().clamp(min=1e-12), "inferno")
    return 0.35 * image.mean(dim=0) + 0.65 * F.interpolate(heat[None], image.shape[1:], mode="nearest")[0]


def evenly(count: int) -> list[int]:
    """At most `MOST` of so many indices, with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, MOST))})


def draw_tiles(
    file: Path,
    tiles: Sequence[Sequence[Tensor]],
    title: str,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    *,
    inches: float = 0.85,
    gap: int = 4,
) -> None:
    """Draw images, of the shape of the first one, in rows and columns with names; `inches` is the width of one."""
    aspect, width = tiles[0][0].shape[1] / tiles[0][0].shape[2], int(inches * 120)
    height = max(1, round(width * aspect))
    sized = torch.stack(
        [torch.cat([F.interpolate(t[None], (height, width), mode="area") for t in row]) for row in tiles]
    )
    joined = F.pad(sized, (0, gap, 0, gap), value=1.0).permute(0, 3, 1, 4, 2)  # rows height columns width 3
    size = max(inches * len(tiles[0]) + 0.3 + 0.6 * bool(rows), 4), inches * aspect * len(tiles) + 0.9
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=9)
    axis = figure.subplots()
    axis.imshow(joined.flatten(2, 3).flatten(0, 1).numpy())
    axis.set_yticks([i * (height + gap) + height / 2 for i in range(len(rows))], rows)
    axis.set_xticks([i * (width + gap) + width / 2 for i in range(len(columns))], columns)
    axis.tick_params(length=0, labelsize=8, top=False, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    figure.savefig(file, dpi=100)


def draw_heads(file: Path, image: Tensor, maps: Tensor, title: str) -> None:
    """Attention maps L h R S of an image: a row for each block, a column for each head and their mean."""
    layers, heads = evenly(maps.shape[0]), evenly(maps.shape[1])
    tiles = [[overlay(image, m) for m in (*maps[layer, heads], maps[layer].mean(dim=0))] for layer in layers]
    draw_tiles(file, tiles, title, [f"block {i}" for i in layers], [*(f"head {i}" for i in heads), "mean"])


def draw_lines(file: Path, title: str, panels: Mapping[tuple[str, str], Sequence[Line]]) -> None:
    """Draw panels, by the labels of their axes, from 0 up; the lines of the last one are named."""
    figure = Figure(figsize=(4 * len(panels) + 1, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axis, ((xlabel, ylabel), lines) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for x, y, form, settings in lines:
            axis.plot(x, y, form, **settings)
        axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
        axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=100)
