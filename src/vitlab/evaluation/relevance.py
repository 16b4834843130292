"""Which patches a prediction rests on: gradient-weighted relevance, and scores of such maps by deletion and insertion.

A map is right if removing its first patches lowers the probability of the class faster than removing random ones
(deletion), and adding them to an image without content raises it faster (insertion; https://arxiv.org/abs/1806.07421).
A score is the area under the curve of the probability: low is good in deletion, high in insertion.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from vitlab.evaluation.attention import Trace, trace

Baseline = Literal["blur", "mean"]
RANDOM = "random"


def relevance(network: nn.Module, images: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Trace]:
    """Relevance of the patches for the target classes (B; None: the predicted ones), B R S, and the network's trace.

    The product over the blocks of I + E_h[(gradient of the class's logit * A)+] (https://arxiv.org/abs/2103.15679).
    """
    with torch.enable_grad():
        result = trace(network, images)
        maps = [*result.maps, *([] if result.pooled is None else [result.pooled])]
        targets = result.logits.argmax(dim=1) if targets is None else targets
        gradients = torch.autograd.grad(result.logits.gather(1, targets[:, None]).sum(), maps)
    kept = [(m.detach() * g).clamp(min=0).mean(dim=1) for m, g in zip(maps, gradients, strict=True)]  # B N N
    row = result.read[:, None] if result.pooled is None else kept.pop().mean(dim=1, keepdim=True)  # B 1 N
    for weights in reversed(kept):
        row = row + row @ weights
    plain: Any = {name: [x.detach() for x in getattr(result, name)] for name in ("maps", "tokens")}
    return result.to_grid(row[:, 0]), result._replace(logits=result.logits.detach(), **plain)


class Curves(NamedTuple):
    """Probability of the target class while patches are removed or added in the order of a map."""

    shares: Tensor  # of the patches, steps + 1, from 0 to 1
    deletion: Tensor  # B steps+1
    insertion: Tensor

    def areas(self) -> tuple[Tensor, Tensor]:
        """The scores of deletion and insertion, B each."""
        return torch.trapezoid(self.deletion, self.shares), torch.trapezoid(self.insertion, self.shares)


@torch.no_grad()
def perturbation_curves(
    probabilities: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Baseline = "blur",
    steps: int = 16,
) -> Curves:
    """Curves of images B C H W under maps B R S; `probabilities` computes those of all classes for a batch.

    Removed patches are those of the image under a Gaussian of an eighth of its sides, or the mean color of the data, 0.
    """
    counts = torch.linspace(0, maps[0].numel(), min(steps, maps[0].numel()) + 1).round()
    order = maps.to(images.device).flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = F.interpolate(order.argsort(dim=1).view(maps.shape)[:, None].float(), images.shape[2:])  # B 1 H W
    sigma = [side / 8 for side in images.shape[:1:-1]]  # of x, then y
    blurred = gaussian_blur(images, [2 * int(2 * s) + 1 for s in sigma], sigma)
    empty = blurred if baseline == "blur" else torch.zeros_like(images)

    def values(first: Tensor, other: Tensor) -> Tensor:  # B steps+1
        batches = (torch.where(ranks < count, first, other) for count in counts.tolist())
        return torch.cat([probabilities(batch).gather(1, targets[:, None]) for batch in batches], dim=1)

    return Curves((counts / maps[0].numel()).to(images), values(empty, images), values(images, empty))


def compare_with_random(
    maps: Mapping[str, Tensor], orders: int, score: Callable[[Tensor], Curves]
) -> dict[str, Curves]:
    """The curves of each map by `score`, and of `RANDOM` the mean over so many random orders, always the same."""
    generator, shape = torch.Generator().manual_seed(0), next(iter(maps.values())).shape
    drawn = [score(torch.rand(shape, generator=generator)) for _ in range(orders)]
    average = Curves(*(torch.stack(parts).mean(dim=0) for parts in zip(*drawn, strict=True)))
    return {name: score(values) for name, values in maps.items()} | {RANDOM: average}


def join_curves(batches: Sequence[Mapping[str, Curves]]) -> dict[str, Curves]:
    """The curves of all batches' images by method."""
    parts = {name: [batch[name] for batch in batches] for name in batches[0]}
    return {n: Curves(p[0].shares, *(torch.cat([c[k] for c in p]) for k in (1, 2))) for n, p in parts.items()}


def score_table(curves: Mapping[str, Curves]) -> list[dict[str, Any]]:
    """A row for each method: its mean scores, and the paired differences from `RANDOM` with their standard errors."""
    rows = []
    for method, curve in curves.items():
        row: dict[str, Any] = {"method": method, "images": len(curve.deletion)}
        for name, value, of_random in zip(Curves._fields[1:], curve.areas(), curves[RANDOM].areas(), strict=True):
            difference = value - of_random
            row[name] = float(f"{value.mean():.3g}")
            row[f"{name} - random"] = None if method == RANDOM else float(f"{difference.mean():.2g}")
            error = difference.std() / len(value) ** 0.5 if method != RANDOM and len(value) > 1 else None
            row[f"{name} se"] = None if error is None else float(f"{error:.2g}")
        rows.append(row)
    return rows
