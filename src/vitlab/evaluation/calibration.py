"""Calibration: whether predictions with probability p are right in a share p of the cases.

The expected calibration error (ECE, arXiv 1706.04599) has 15 bins of equal width, the adaptive one (arXiv 1904.01685,
of the predicted class) 15 bins of equal numbers of images. Both are of the predicted class's probability.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

BINS = 15


def bin_table(probability: NDArray[Any], correct: NDArray[Any], *, adaptive: bool = False) -> list[tuple[float, ...]]:
    """Images, mean probability and accuracy of each bin that has images; none if a probability is NaN."""
    if np.isnan(probability).any():
        return []
    if adaptive:
        place = np.empty(len(probability), np.int64)
        place[np.argsort(probability, kind="stable")] = np.arange(len(probability)) * BINS // len(probability)
    else:
        place = np.digitize(probability, np.linspace(0, 1, BINS + 1)[1:-1])
    inside = [place == number for number in range(BINS)]
    return [(int(own.sum()), float(probability[own].mean()), float(correct[own].mean())) for own in inside if own.any()]


def calibration_error(bins: list[tuple[float, ...]]) -> float:
    """The mean over images of the difference between probability and accuracy of their bin; NaN without bins."""
    gaps = [count * abs(accuracy - mean) for count, mean, accuracy in bins]
    return sum(gaps) / sum(count for count, *_ in bins) if bins else float("nan")


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T that minimizes the cross-entropy of logits [N, classes] / T (arXiv 1706.04599), between 0.01 and 100.

    Raises `ValueError` if there is none in between, as for logits that are all right.
    """
    from scipy.optimize import minimize_scalar

    logits, ends = logits.double(), (np.log(0.01), np.log(100))
    loss = lambda x: float(F.cross_entropy(logits / float(np.exp(x)), labels))  # noqa: E731
    best = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-7})
    temperature = float(np.exp(best.x))
    right = bool((logits.argmax(dim=1) == labels).all())  # the loss then falls as long as T does
    if right or not torch.isfinite(logits).all() or not 0.0101 < temperature < 99:
        raise ValueError(
            f"fit_temperature=true: the loss of {len(labels)} validation images has no minimum between 0.01 and 100"
            f"{', as all are classified right' * right}; validate on more images, or leave it out"
        )
    return temperature
