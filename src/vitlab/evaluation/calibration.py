"""Calibration: whether predictions with probability p are right in a share p of the cases.

The expected calibration error (ECE, arXiv 1706.04599) has 15 bins of equal width, the adaptive one (arXiv 1904.01685,
of the predicted class) 15 bins of equal numbers of images. Both are of the predicted class's probability.
"""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vitlab.config.schema import Node
from vitlab.storage.atomic import atomic_write

BINS, TEMPERATURE = 15, "evaluation/temperature.json"

log = logging.getLogger(__name__)


def bin_table(probability: NDArray[Any], correct: NDArray[Any], *, adaptive: bool = False) -> list[tuple[float, ...]]:
    """Images, mean probability and accuracy of each bin that has images."""
    if adaptive:
        place = np.empty(len(probability), np.int64)
        place[np.argsort(probability, kind="stable")] = np.arange(len(probability)) * BINS // len(probability)
    else:
        place = np.digitize(probability, np.linspace(0, 1, BINS + 1)[1:-1])
    inside = [place == number for number in range(BINS)]
    return [(int(own.sum()), float(probability[own].mean()), float(correct[own].mean())) for own in inside if own.any()]


def calibration_error(bins: list[tuple[float, ...]]) -> float:
    return sum(count * abs(accuracy - mean) for count, mean, accuracy in bins) / sum(count for count, *_ in bins)


def summary(probability: NDArray[Any], correct: NDArray[Any]) -> Node:
    """Both errors, and the equal-width bins for a reliability diagram. NaN if a probability is."""
    if not np.isfinite(probability).all():
        return {"ece": np.nan, "adaptive_ece": np.nan, "bins": []}
    bins = bin_table(probability, correct)
    adaptive = calibration_error(bin_table(probability, correct, adaptive=True))
    return {"ece": calibration_error(bins), "adaptive_ece": adaptive, "bins": bins}


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T that minimizes the cross-entropy of logits [N, classes] / T (arXiv 1706.04599), between 0.01 and 100.

    Raises `ValueError` if there is none in between, as for logits that are all right.
    """
    from scipy.optimize import minimize_scalar

    logits, ends = logits.double(), (np.log(0.01), np.log(100))
    loss = lambda x: float(F.cross_entropy(logits / float(np.exp(x)), labels))  # noqa: E731
    best = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-7})
    temperature = float(np.exp(best.x))
    if not torch.isfinite(logits).all() or not 0.0101 < temperature < 99:
        raise ValueError(
            f"fit_temperature=true: the loss of {len(labels)} validation images has no minimum between 0.01 and 100; "
            "all of them may be classified right. Validate on more images, or leave it out"
        )
    return temperature


def write_temperature(run_dir: Path, logits: Tensor | None, labels: Tensor) -> None:
    """Fit the temperature of a run's best checkpoint; on the first rank, which has the logits."""
    if logits is not None:
        temperature = fit_temperature(logits, labels)
        log.info("temperature %.4f, fitted to %d validation images", temperature, len(labels))
        atomic_write(run_dir / TEMPERATURE, json.dumps({"temperature": temperature, "images": len(labels)}))


def read_temperature(run_dir: Path) -> float | None:
    file = run_dir / TEMPERATURE
    return float(json.loads(file.read_text())["temperature"]) if file.is_file() else None
