"""Which patches a prediction rests on: gradient-weighted relevance, and scores of such maps by deletion and insertion.

A map is right if removing its first patches lowers the probability of the class faster than removing random ones
(deletion), and adding them to an image without content raises it faster (insertion; https://arxiv.org/abs/1806.07421).
Both are scored by the area under the curve of the probability: deletion low is good, insertion high.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from vitlab.evaluation.attention import Trace, trace

Baseline = Literal["blur", "mean"]
RANDOM = "random"


def relevance(network: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Trace]:
    """Relevance of the patches for the target classes (B), B R S, and the trace of the network.

    In each block the attention weights are multiplied by the gradients of the class's logit, negative products are
    dropped, heads averaged, and the result is added to the identity (Chefer et al. 2021,
    https://arxiv.org/abs/2103.15679).
    """
    with torch.enable_grad():
        result = trace(network, images)
        maps = result.maps if result.pooled is None else [*result.maps, result.pooled]
        gradients = torch.autograd.grad(result.logits.gather(1, targets[:, None]).sum(), maps)
    kept = [(m.detach() * g).clamp(min=0).mean(dim=1) for m, g in zip(maps, gradients, strict=True)]  # B N N
    row = result.read[:, None] if result.pooled is None else kept.pop().mean(dim=1, keepdim=True)  # B 1 N
    for weights in reversed(kept):
        row = row + row @ weights
    return result.to_grid(row[:, 0]).detach(), result


class Curves(NamedTuple):
    """Probability of the target class while patches are removed or added in the order of a map."""

    shares: Tensor  # of the patches, steps + 1, from 0 to 1
    deletion: Tensor  # B steps+1
    insertion: Tensor

    def areas(self) -> tuple[Tensor, Tensor]:
        """Areas under the curves of deletion and insertion, B each."""
        return torch.trapezoid(self.deletion, self.shares), torch.trapezoid(self.insertion, self.shares)


def perturbation_curves(
    probabilities: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Baseline = "blur",
    steps: int = 16,
    batch_size: int = 64,
) -> Curves:
    """Curves of images B C H W under maps B R S; `probabilities` computes those of all classes for a batch."""
    patches = maps[0].numel()
    counts = torch.linspace(0, patches, min(steps, patches) + 1).round()
    rank = maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).view(maps.shape)
    ranks = F.interpolate(rank[:, None].float(), size=images.shape[2:], mode="nearest")  # B 1 H W
    empty = images_without_content(images, baseline)

    def perturbed() -> Iterator[Tensor]:
        for count in counts.tolist():
            for first, other in ((empty, images), (images, empty)):
                yield torch.where(ranks < count, first, other)

    batches = torch.stack([*perturbed()]).flatten(0, 1).split(batch_size)
    values = torch.cat([probabilities(batch) for batch in batches]).view(len(counts), 2, len(images), -1)
    of_target = values.gather(3, targets.expand(len(counts), 2, -1)[..., None])[..., 0]
    return Curves((counts / patches).to(of_target), *of_target.permute(1, 2, 0))


def images_without_content(images: Tensor, baseline: Baseline) -> Tensor:
    """The images under a Gaussian of an eighth of their side, or the mean color of the data: 0 after normalization."""
    if baseline == "mean":
        return torch.zeros_like(images)
    sigma = [side / 8 for side in images.shape[:1:-1]]  # of x, then y
    return gaussian_blur(images, [2 * int(2 * s) + 1 for s in sigma], sigma)


def random_maps(maps: Tensor, count: int, seed: int = 0) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.rand(maps.shape, generator=generator).to(maps.device)


def score_table(areas: Mapping[str, tuple[Tensor, Tensor]]) -> list[dict[str, str | int | float]]:
    """A row for each method: mean areas over the images, and the paired difference from random orders with its
    standard error. `areas`: of each method and of `RANDOM`, those of each image.
    """
    rows = []
    for method, values in areas.items():
        row: dict[str, str | int | float] = {"method": method, "images": len(values[0])}
        for name, value, of_random in zip(("deletion", "insertion"), values, areas[RANDOM], strict=True):
            difference = value - of_random
            error = float(difference.std() / len(value) ** 0.5) if len(value) > 1 else float("nan")
            row |= {name: float(value.mean()), f"{name} - random": float(difference.mean()), f"{name} se": error}
        rows.append(row)
    return rows
