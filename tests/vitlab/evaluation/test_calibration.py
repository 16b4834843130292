"""Calibration errors are torchmetrics', and the fitted temperature is the optimum; neither is guessed."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from vitlab.evaluation.calibration import bin_table, calibration_error, fit_temperature


def random_logits(count: int = 997, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator) + F.one_hot(labels, classes)
    return 2.5 * logits, labels


def test_the_error_is_that_of_torchmetrics() -> None:
    logits, labels = random_logits()
    probability, prediction = logits.softmax(dim=1).max(dim=1)
    bins = bin_table(probability.double().numpy(), (prediction == labels).numpy())
    expected = multiclass_calibration_error(logits.softmax(dim=1), labels, num_classes=7, n_bins=15)
    assert calibration_error(bins) == pytest.approx(float(expected), abs=1e-6)
    assert sum(count for count, *_ in bins) == len(labels)


def test_adaptive_bins_have_equal_numbers_of_images() -> None:
    probability = np.sort(np.random.default_rng(0).random(100))
    correct = np.arange(100) % 3 == 0
    bins = bin_table(probability, correct, adaptive=True)
    parts = np.array_split(np.arange(100), 15)
    assert sorted(count for count, *_ in bins) == sorted(len(part) for part in parts)
    assert bins[0][1] == pytest.approx(probability[: bins[0][0]].mean())
    assert bins[-1][2] == pytest.approx(correct[-bins[-1][0] :].mean())


@pytest.mark.parametrize("adaptive", [False, True])
def test_probabilities_of_0_and_1_have_a_bin_and_few_images_none_that_is_empty(adaptive: bool) -> None:
    bins = bin_table(np.array([0.0, 1.0]), np.array([False, True]), adaptive=adaptive)
    assert [count for count, *_ in bins] == [1, 1]
    assert calibration_error(bins) == 0


def test_a_probability_that_is_no_number_gives_no_error() -> None:
    assert np.isnan(calibration_error(bin_table(np.array([0.5, np.nan]), np.array([True, False]))))


def test_the_temperature_is_the_optimum_of_the_loss() -> None:
    logits, labels = random_logits()
    temperature = fit_temperature(logits, labels)
    loss = [float(F.cross_entropy(logits.double() / (temperature * factor), labels)) for factor in (0.999, 1, 1.001)]
    assert loss[1] < min(loss[0], loss[2])
    assert fit_temperature(3 * logits, labels) == pytest.approx(3 * temperature, rel=1e-4)
    log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale], max_iter=100, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits.double() * log_scale.exp(), labels)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(step)  # type: ignore[no-untyped-call]
    assert temperature == pytest.approx(float((-log_scale.detach()).exp()), rel=1e-4)


def test_images_that_are_all_right_have_no_temperature() -> None:
    with pytest.raises(ValueError, match="fit_temperature=true: the loss of 3 validation images has no minimum"):
        fit_temperature(10 * torch.eye(3), torch.arange(3))
