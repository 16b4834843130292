"""Pictures of a network: position embeddings, patch filters, spread of attention, norms and colors of tokens, CKA.

Each `draw_` function writes one PNG; `NotDrawn` says why a network has no such picture.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.evaluation.attention import Trace, attention_distance, attention_entropy
from vitlab.evaluation.image_pictures import Line, colors, draw_lines, draw_tiles, evenly

OUTLIER = 3.0  # norm of a patch token, in medians of its block's


class NotDrawn(ValueError):
    """The network lacks what a picture shows."""


class Statistics(NamedTuple):
    """Numbers of a batch of images, after each of L blocks."""

    distance: Tensor  # of attention in pixels, B L h
    entropy: Tensor  # of attention in nats, B L h
    norms: Tensor  # of tokens, B L N
    kernels: Tensor  # dot products of the images' tokens, L B B

    @classmethod
    def of(cls, trace: Trace) -> "Statistics":
        norms = torch.stack([tokens.norm(dim=-1) for tokens in trace.tokens], dim=1)
        rows = torch.stack([tokens.flatten(1) / tokens.norm() for tokens in trace.tokens]).double()  # L B N*D
        kernels = (rows @ rows.mT) * (1 - torch.eye(rows.shape[1]).to(rows))
        return cls(attention_distance(trace), attention_entropy(trace), norms, kernels)


def cka(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """Linear CKA between the blocks of two networks, L M, from the kernels (L B B and M B B) of the same batches.

    An image with all its tokens is an example (https://arxiv.org/abs/2108.08810); the mean of the unbiased HSIC over
    batches of at least 4 images is that of all images (https://arxiv.org/abs/2010.15327).
    """
    pairs = [(k, m) for k, m in zip(x, y, strict=True) if k.shape[1] > 3]
    if not pairs:
        raise NotDrawn("CKA needs a batch of at least 4 images")
    xy, xx, yy = (
        torch.stack([hsic(pair[i], pair[j]) for pair in pairs]).mean(dim=0) for i, j in ((0, 1), (0, 0), (1, 1))
    )
    return xy / (xx.diagonal()[:, None] * yy.diagonal()).sqrt()


def hsic(k: Tensor, m: Tensor) -> Tensor:
    """The unbiased HSIC of kernels L B B and M B B with zeros on their diagonals, L M."""
    n, k_rows, m_rows = k.shape[1], k.sum(dim=2), m.sum(dim=2)
    product = torch.einsum("aij,bij->ab", k, m)
    means = k_rows.sum(dim=1)[:, None] * m_rows.sum(dim=1) / ((n - 1) * (n - 2))
    return (product + means - 2 / (n - 2) * k_rows @ m_rows.T) / (n * (n - 3))


def principal_components(rows: Tensor, count: int) -> Tensor:
    """The first principal components of rows m D, count D; the largest element of each is positive."""
    centered = rows.float() - rows.float().mean(dim=0)
    components = torch.linalg.svd(centered, full_matrices=False).Vh[:count]
    return components * components.gather(1, components.abs().argmax(dim=1, keepdim=True)).sign()


def position_similarity(network: nn.Module, grid: tuple[int, int]) -> Tensor:
    """Cosine similarity of the position embeddings of any two patches, R S R S (figure 7, center, of the ViT paper)."""
    table, patches = getattr(network, "pos_embed", None), grid[0] * grid[1]
    if not isinstance(table, Tensor) or table.ndim != 3 or table.shape[1] < patches:
        raise NotDrawn("the network has no table with a position embedding of each patch")
    rows = F.normalize(table[0, -patches:].detach().float(), dim=1)  # the prefix is first
    return (rows @ rows.T).view(*grid, *grid)


def filter_components(network: nn.Module, count: int = 28) -> Tensor:
    """The first principal components of the patch projection's filters, K C P Q (figure 7, left)."""
    weight = getattr(getattr(getattr(network, "patch_embed", None), "proj", None), "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 4:
        raise NotDrawn("the patch embedding is no convolution of patches")
    rows = weight.detach().flatten(1)
    return principal_components(rows, min(count, *rows.shape)).view(-1, *weight.shape[1:])


def outlier_shares(norms: Tensor, prefix: int) -> Tensor:
    """The share of patch tokens with a norm (B L N) above `OUTLIER` medians, of each block (arXiv 2309.16588)."""
    patches = norms[:, :, prefix:].transpose(0, 1).flatten(1)  # L B*n
    return (patches > OUTLIER * patches.median(dim=1, keepdim=True).values).float().mean(dim=1)


def draw_positions(file: Path, similarity: Tensor) -> None:
    rows, columns = evenly(similarity.shape[0]), evenly(similarity.shape[1])
    tiles = [[colors(similarity[row, column] / 2 + 0.5) for column in columns] for row in rows]
    title = "similarity of each patch's position embedding to all others, dark -1, light 1"
    draw_tiles(file, tiles, title, [str(i) for i in rows], [str(i) for i in columns], inches=0.5)


def draw_filters(file: Path, components: Tensor) -> None:
    scaled = (components / components.abs().amax(dim=(1, 2, 3), keepdim=True) / 2 + 0.5).cpu()
    shown = scaled if scaled.shape[1] == 3 else scaled[:, :1].expand(-1, 3, -1, -1)
    columns = min(7, len(shown))
    tiles = [*shown, *torch.ones_like(shown[: -len(shown) % columns])]
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    draw_tiles(file, rows, f"the first {len(shown)} principal components of the patch filters")


def draw_cka(file: Path, similarity: Tensor, names: tuple[str, str]) -> None:
    """CKA L M from 0 (black) to 1."""
    tiles = [[colors(value.clamp(0, 1).view(1, 1), "magma") for value in row] for row in similarity]
    title = f"linear CKA, dark 0, light 1: blocks of {names[0]} (rows) and of {names[1]} (columns)"
    draw_tiles(file, tiles, title, *([str(i) for i in range(n)] for n in similarity.shape), inches=0.35, gap=1)


def draw_spread(file: Path, distance: Tensor, entropy: Tensor, tokens: int) -> None:
    """Mean attention distance and entropy, L h, over blocks: a dot for each head."""
    blocks, panels = range(len(distance)), dict[tuple[str, str], list[Line]]()
    for values, label in ((distance, "mean attention distance in pixels"), (entropy, "entropy of attention in nats")):
        dots = [(blocks, head, "o", {"label": f"head {i}"}) for i, head in enumerate(values.T.tolist())]
        panels["block", label] = [*dots, (blocks, values.mean(dim=1).tolist(), "-", {"color": "gray", "label": "mean"})]
    equal = [float(np.log(tokens))] * len(blocks)
    panels["block", label].append((blocks, equal, ":", {"color": "black", "label": "equal weights"}))
    draw_lines(file, "spread of attention", panels)


def draw_norms(file: Path, norms: Tensor, prefix: int) -> None:
    """Norms of tokens B L N, and the share of outliers, over blocks."""
    blocks, patches = range(norms.shape[1]), norms[:, :, prefix:].transpose(0, 1).flatten(1).cpu().numpy()
    levels = {"median of patches": 0.5, "99 % of patches": 0.99, "largest of patches": 1.0}
    lines: list[Line] = [(blocks, np.quantile(patches, q, axis=1), "-", {"label": n}) for n, q in levels.items()]
    of_prefix = norms[:, :, :prefix].mean(dim=0).T.tolist()
    lines += [(blocks, values, "--", {"label": f"prefix token {i}"}) for i, values in enumerate(of_prefix)]
    shares: list[Line] = [(blocks, outlier_shares(norms, prefix).tolist(), "k-", {})]
    share = f"share of patches above {OUTLIER:g} medians"
    draw_lines(file, "norms of tokens", {("block", share): shares, ("block", "norm"): lines})


def draw_tokens(file: Path, tokens: Tensor, grid: tuple[int, int], images: Tensor) -> None:
    """Images, the first three principal components of their patch tokens B n D as colors, and the tokens' norms.

    The components are of the normalized tokens of all these images, as in DINOv2's pictures.
    """
    rows, norms = F.layer_norm(tokens.float(), tokens.shape[-1:]).flatten(0, 1).cpu(), tokens.norm(dim=-1).cpu()
    values = (rows - rows.mean(dim=0)) @ principal_components(rows, 3).T
    low, high = (torch.quantile(values, q, dim=0) for q in (0.02, 0.98))
    parts = ((values - low) / (high - low)).clamp(0, 1).view(len(tokens), *grid, 3).movedim(3, 1)
    heats = [colors(norm.view(grid) / norms.max()) for norm in norms]
    names = ["image", "components", f"norm, 0 to {norms.max():.3g}"]
    draw_tiles(file, [[*images], [*parts], heats], "patch tokens after the last block", names, inches=1.1)
