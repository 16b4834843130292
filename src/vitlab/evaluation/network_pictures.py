"""Pictures of what a network attends to and has learned, and the numbers that they show.

Figures 7 and 11 of the ViT paper, norms of tokens (https://arxiv.org/abs/2309.16588), colors of tokens as DINOv2's, and
linear CKA between blocks. Shapes are those of `attention.py`.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import Tensor, nn

from vitlab.evaluation.attention import Trace, attention_distance, attention_entropy
from vitlab.evaluation.judgement_pictures import draw_gallery, new_figure

MOST = 16  # rows or columns of a picture
OUTLIER = 3.0  # norm of a patch token, in medians of its block's

log = logging.getLogger(__name__)


class Statistics(NamedTuple):
    """Numbers of a batch of images, after each block."""

    distance: Tensor  # of attention in pixels, B L h
    entropy: Tensor  # of attention in nats, B L h
    norms: Tensor  # of tokens, B L N
    kernels: Tensor  # dot products of the images' tokens, L B B


def batch_statistics(trace: Trace) -> Statistics:
    norms = torch.stack([tokens.norm(dim=-1) for tokens in trace.tokens], dim=1)
    rows = torch.stack([tokens.flatten(1) / tokens.norm() for tokens in trace.tokens]).double()  # L B N*D
    kernels = (rows @ rows.mT) * (1 - torch.eye(rows.shape[1]).to(rows))
    return Statistics(attention_distance(trace), attention_entropy(trace), norms, kernels)


def cka(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """Linear CKA between the blocks of two networks, L M, from their kernels (L B B and M B B) of the same batches.

    An image with all its tokens is an example (https://arxiv.org/abs/2108.08810); the mean of the unbiased HSIC over
    batches of at least 4 images is that of all images (https://arxiv.org/abs/2010.15327).
    """
    pairs = [pair for pair in zip(x, y, strict=True) if pair[0].shape[1] > 3]
    means = [torch.stack([hsic(p[i], p[j]) for p in pairs]).mean(dim=0) for i, j in ((0, 1), (0, 0), (1, 1))]
    return means[0] / (means[1].diagonal()[:, None] * means[2].diagonal()).sqrt()


def hsic(k: Tensor, m: Tensor) -> Tensor:
    """The unbiased HSIC of kernels L B B and M B B with zeros on their diagonals, L M."""
    n, k_rows, m_rows = k.shape[1], k.sum(dim=2), m.sum(dim=2)
    means = k_rows.sum(dim=1)[:, None] * m_rows.sum(dim=1) / ((n - 1) * (n - 2))
    return (torch.einsum("aij,bij->ab", k, m) + means - 2 / (n - 2) * k_rows @ m_rows.T) / (n * (n - 3))


def position_similarity(network: nn.Module, grid: tuple[int, int]) -> Tensor | None:
    """Cosine similarity of the position embeddings of any two patches, R S R S; None without a table of them."""
    table, patches = getattr(network, "pos_embed", None), grid[0] * grid[1]
    if not isinstance(table, Tensor) or table.ndim != 3 or table.shape[1] < patches:
        return None
    rows = F.normalize(table[0, -patches:].detach().float().cpu(), dim=1)  # the prefix is first
    return (rows @ rows.T).view(*grid, *grid)


def filter_components(network: nn.Module, count: int = 28) -> Tensor | None:
    """The first principal components of the patch projection's filters, K C P Q; None if it is no convolution."""
    weight = getattr(getattr(getattr(network, "patch_embed", None), "proj", None), "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 4:
        return None
    rows = weight.detach().cpu().flatten(1)
    components = PCA(min(count, *rows.shape), svd_solver="full").fit(rows.numpy()).components_
    return torch.from_numpy(components).view(-1, *weight.shape[1:])


def outlier_shares(norms: Tensor, prefix: int) -> Tensor:
    """The share of patch tokens with a norm (B L N) above `OUTLIER` medians, of each block."""
    patches = norms[:, :, prefix:].transpose(0, 1).flatten(1)  # L B*n
    return (patches > OUTLIER * patches.median(dim=1, keepdim=True).values).float().mean(dim=1)


def colors(maps: Tensor, colormap: str = "viridis") -> Tensor:
    """Maps B R S of values from 0 to 1 as images B 3 R S, uint8."""
    return torch.from_numpy(matplotlib.colormaps[colormap](maps.cpu().numpy(), bytes=True)[..., :3]).movedim(3, 1)


def overlay(image: Tensor, maps: Tensor) -> Tensor:
    """A gray copy of an image C H W, uint8, under maps B R S in colors from their minimum to maximum: uint8 B 3 H W."""
    shares = maps - maps.amin(dim=(1, 2), keepdim=True)
    shares = shares / shares.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    heat = F.interpolate(colors(shares, "inferno").float(), image.shape[1:], mode="nearest")
    return (0.35 * image.float().mean(dim=0) + 0.65 * heat).byte()


def evenly(count: int) -> list[int]:
    """At most `MOST` of so many indices, with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, MOST))})


def draw_heads(file: Path, image: Tensor, maps: Tensor) -> None:
    """Attention maps L h R S over an image: a row for each block, a column for each head and their mean."""
    blocks, heads = evenly(maps.shape[0]), evenly(maps.shape[1])
    shown = torch.cat([maps[blocks][:, heads], maps[blocks].mean(dim=1, keepdim=True)], dim=1).flatten(0, 1)
    titles = [f"block {block}, {head}" for block in blocks for head in (*(f"head {i}" for i in heads), "mean")]
    draw_gallery(file, overlay(image, shown), titles, columns=len(heads) + 1, side=96)


def draw_lines(file: Path, xlabel: str, panels: Mapping[str, Mapping[str, tuple[Any, Any, str]]]) -> None:
    """Draw lines (x, y, matplotlib's format) by their names, in panels by the labels of their y axes."""
    figure, axis = new_figure(4 * len(panels) + 1, 3.4)
    axis.remove()
    for axis, (ylabel, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, line in lines.items():
            axis.plot(*line, label=name, markersize=4)
        axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.05 * axis.dataLim.ymax or 1))
        axis.grid(alpha=0.3)
        axis.locator_params(axis="x", integer=all(isinstance(x, int) for x in line[0]))
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=110)


def draw_cka(file: Path, similarity: Tensor, names: tuple[str, str]) -> None:
    figure, axis = new_figure(5, 4.2)
    picture = axis.imshow(similarity.cpu().numpy(), vmin=0, vmax=1, cmap="magma", origin="lower")
    figure.colorbar(picture, label="linear CKA")
    axis.set_ylabel(f"block of {names[0]}", parse_math=False)
    axis.set_xlabel(f"block of {names[1]}", parse_math=False)
    axis.locator_params(integer=True)
    figure.savefig(file, dpi=110)


def draw_tokens(file: Path, images: Tensor, tokens: Tensor, grid: tuple[int, int]) -> None:
    """Images uint8 B 3 H W, three principal components of all their patch tokens B n D as colors, and their norms."""
    rows, norms = F.layer_norm(tokens, tokens.shape[-1:]).flatten(0, 1).cpu(), tokens.norm(dim=-1).cpu()
    parts = torch.from_numpy(PCA(3, svd_solver="full").fit_transform(rows.numpy()))
    low, high = (torch.quantile(parts, q, dim=0) for q in (0.02, 0.98))
    parts = (255 * (parts - low) / (high - low)).clamp(0, 255).byte().view(len(tokens), *grid, 3).movedim(3, 1)
    tiles = (F.interpolate(x, images.shape[2:]) for x in (parts, colors((norms / norms.max()).view(-1, *grid))))
    titles = [title for title in ("image", "components", f"norm, 0 to {norms.max():.3g}") for _ in images]
    draw_gallery(file, torch.cat([images, *tiles]), titles, columns=len(images))


def draw_network(
    out: Path, network: nn.Module, trace: Trace, batches: Sequence[Statistics]
) -> tuple[dict[str, str], dict[str, list[float]]]:
    """Draw the pictures of a network's weights and statistics. Returns their names with captions, and numbers."""
    distance, entropy, norms = (torch.cat([batch[k] for batch in batches]).cpu() for k in range(3))
    blocks, outliers, panels = range(len(trace.maps)), outlier_shares(norms, trace.prefix), dict[str, Any]()
    for values, label in ((distance, "mean attention distance in pixels"), (entropy, "entropy of attention in nats")):
        panels[label] = {f"head {i}": (blocks, head, "o") for i, head in enumerate(values.mean(dim=0).T.tolist())}
        panels[label]["mean"] = (blocks, values.mean(dim=(0, 2)).tolist(), "k-")
    panels[label]["equal weights"] = (blocks, [float(np.log(norms.shape[2]))] * len(blocks), "k:")
    draw_lines(out / "spread.png", "block", panels)
    patches = norms[:, :, trace.prefix :].transpose(0, 1).flatten(1).numpy()
    of_prefix = norms[:, :, : trace.prefix].mean(dim=0)
    quantiles = {"median": 0.5, "99 %": 0.99, "largest": 1}
    lines = {name: (blocks, np.quantile(patches, q, axis=1), "-") for name, q in quantiles.items()}
    lines |= {f"prefix token {i}": (blocks, values, "--") for i, values in enumerate(of_prefix.T.tolist())}
    shares = {f"share of patches above {OUTLIER:g} medians": {"": (blocks, outliers.tolist(), "k-")}}
    draw_lines(out / "norms.png", "block", {**(shares if outliers.any() else {}), "norm of tokens": lines})
    captions = {
        "spread": "Attention by block and head: mean distance between a patch and the patches it attends to; entropy",
        "norms": f"Norms of tokens; at most {outliers.max():.2%} of a block's patches are above {OUTLIER:g} medians",
    }
    if (similarity := position_similarity(network, trace.grid)) is None:
        log.info("no picture of position embeddings: the network has no table of them")
    else:
        low, high = (float(np.quantile(similarity.numpy(), q)) for q in (0, 0.98))
        rows, columns = map(evenly, trace.grid)
        tiles = colors(((similarity[rows][:, columns].flatten(0, 1) - low) / max(high - low, 1e-6)).clamp(max=1))
        draw_gallery(out / "positions.png", tiles, [""] * len(tiles), columns=len(columns), side=48)
        captions["positions"] = (
            f"Similarity of a patch's position embedding to all: dark {low:.2f}, light {high:.2f} to 1"
        )
    if (parts := filter_components(network)) is None:
        log.info("no picture of patch filters: the patch embedding is no convolution")
    else:
        parts = parts / parts.abs().amax(dim=(1, 2, 3), keepdim=True) / 2 + 0.5
        tiles = (255 * parts).byte() if parts.shape[1] == 3 else colors(parts[:, 0])
        draw_gallery(out / "filters.png", tiles, [""] * len(tiles), columns=min(7, len(tiles)), side=64)
        captions["filters"] = f"The first {len(tiles)} principal components of the patch projection's filters"
    by_block = {"distance": distance.mean(dim=(0, 2)), "entropy": entropy.mean(dim=(0, 2)), "outliers": outliers}
    return captions, {name: [round(x, 4) for x in values.tolist()] for name, values in by_block.items()}
