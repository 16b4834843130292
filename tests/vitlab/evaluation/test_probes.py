"""The probes against the formulas and libraries they follow, what is chosen on which split, and what is reported."""

import logging
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from vitlab.data.sets.digits import digits
from vitlab.data.splitting import stratified_split
from vitlab.evaluation.features import Features
from vitlab.evaluation.probes import KNN, Linear, accuracies, concatenate


@pytest.fixture(scope="module")
def splits() -> tuple[Features, Features, Features]:
    """Pixels of digits as features: train, validation, test."""
    source = digits()

    def rows(images: torch.Tensor | None) -> torch.Tensor:
        assert images is not None
        return images.flatten(1).float()

    kept, held_out = stratified_split(source.train.labels, 0.1, seed=0, knob="")
    complete, labels = rows(source.train.images), source.train.labels
    parts = [Features(complete[part], labels[part]) for part in (kept, held_out)]
    return parts[0], parts[1], Features(rows(source.test.images), source.test.labels)


def accuracy(scores: torch.Tensor, asked: Features) -> float:
    return float((scores.argmax(dim=1) == asked.labels).float().mean())


# ---------------------------------------------------------------------------------------------------------- neighbours


def test_neighbours_vote_with_the_exponential_of_their_cosine(splits: Any) -> None:
    train, val, test = splits
    few = Features(test.rows[:20], test.labels[:20])
    scores, reported = KNN(k=5, temperature=0.2).scores(train, val, few)
    known = concatenate(train, val)
    for row, votes in zip(few.rows.double(), scores, strict=True):
        cosines = F.cosine_similarity(known.rows.double(), row[None])
        expected: Counter[int] = Counter()
        for index in cosines.argsort(descending=True)[:5].tolist():
            expected[int(known.labels[index])] += math.exp(float(cosines[index]) / 0.2)  # type: ignore[assignment]
        assert {c: float(v) for c, v in enumerate(votes) if v} == pytest.approx(dict(expected), rel=1e-4)
    assert reported == {"k": 5, "temperature": 0.2}


def test_neighbours_are_right_as_often_as_scikit_learn_s_with_the_same_weights(splits: Any) -> None:
    train, val, test = splits
    known = concatenate(train, val)
    reference = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    reference.fit(known.rows.numpy(), known.labels.numpy())
    expected = reference.score(test.rows.numpy(), test.labels.numpy())
    scores, _ = KNN().scores(train, val, test)
    assert accuracy(scores, test) == pytest.approx(expected, abs=1e-6)
    assert expected > 0.95


def test_what_is_asked_never_votes(splits: Any) -> None:
    train, val, _ = splits
    others = Features(train.rows, torch.full_like(train.labels, 3))  # all that vote are of one class
    scores, _ = KNN().scores(others, val, val)
    assert set(scores.argmax(dim=1).tolist()) == {3}


def test_more_neighbours_than_images_are_reported(splits: Any) -> None:
    train, val, test = splits
    with pytest.raises(ValueError, match=r"probe\.k=2000 is more than the 1437 images that can vote; lower it"):
        KNN(k=2000).scores(train, val, test)


@pytest.mark.parametrize(
    ("make", "reported"),
    [
        (lambda: KNN(k=0), r"k=0 must be at least 1"),
        (lambda: KNN(temperature=0.0), r"temperature=0\.0 must be above 0"),
        (lambda: Linear(c=()), r"probe\.c=\[\] must have at least one number"),
        (lambda: Linear(c=(1.0, -1.0)), r"c=\(1\.0, -1\.0\) must be above 0"),
        (lambda: Linear(max_iter=0), r"max_iter=0 must be at least 1"),
    ],
)
def test_a_knob_outside_its_range_is_refused(make: Any, reported: str) -> None:
    with pytest.raises(ValueError, match=reported):
        make()


# -------------------------------------------------------------------------------------------------------------- linear


@pytest.fixture(scope="module")
def fitted(splits: Any) -> tuple[torch.Tensor, Any]:
    return Linear(c=(1e-4, 1.0, 1e4)).scores(*splits)


def test_the_penalty_is_the_one_that_is_best_on_the_validation_split(splits: Any, fitted: Any) -> None:
    train, val, _ = splits
    mean, std = train.rows.mean(0), train.rows.std(0)
    std[std == 0] = 1
    expected = {}
    for c in (1e-4, 1.0, 1e4):
        model = LogisticRegression(C=c, max_iter=1000).fit(((train.rows - mean) / std).numpy(), train.labels.numpy())
        expected[f"{c:g}"] = model.score(((val.rows - mean) / std).numpy(), val.labels.numpy())
    assert fitted[1]["val/accuracies"] == pytest.approx(expected, abs=1.5 / 144)
    assert fitted[1]["C"] == 1.0, "neither end"


def test_it_is_fitted_again_to_all_training_images_before_it_is_scored(splits: Any, fitted: Any) -> None:
    train, val, test = splits
    known = concatenate(train, val)
    mean, std = known.rows.mean(0), known.rows.std(0)
    std[std == 0] = 1
    model = LogisticRegression(C=1.0, max_iter=1000)
    model.fit(((known.rows - mean) / std).double().numpy(), known.labels.numpy())
    expected = torch.from_numpy(model.predict_proba(((test.rows - mean) / std).double().numpy()))
    torch.testing.assert_close(fitted[0].double().exp(), expected, rtol=1e-3, atol=1e-4)
    assert accuracy(fitted[0], test) > 0.95


def test_asked_for_the_validation_split_it_is_scored_without_having_seen_it(splits: Any) -> None:
    train, val, _ = splits
    scores, reported = Linear(c=(1e-2, 1.0)).scores(train, val, val)
    assert accuracy(scores, val) == pytest.approx(reported["val/accuracies"][f"{reported['C']:g}"])


def test_a_best_value_at_the_grid_s_end_and_too_few_steps_are_reported(
    splits: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="vitlab.evaluation.probes"):
        Linear(c=(1e-6, 1e-2), max_iter=3).scores(*splits)
    reported = [record.getMessage() for record in caplog.records]
    assert "probe.c: the best of [1e-06, 0.01] is at the end, C=0.01; try others beyond it" in reported
    assert "linear probe: C=0.01: 3 steps were too few; raise probe.max_iter" in reported


def test_a_class_that_nobody_has_seen_gets_no_score() -> None:
    rows = torch.randn(30, 2)
    known = Features(rows, torch.tensor([0, 2]).repeat(15))
    scores, _ = Linear(c=(1.0,)).scores(known, known, Features(rows, torch.ones(30, dtype=torch.int64)))
    assert scores.shape == (30, 3)
    assert bool((scores[:, 1] == -torch.inf).all())


# ---------------------------------------------------------------------------------------------------------- accuracies


def test_counts_are_of_the_first_and_of_the_first_five() -> None:
    scores = torch.eye(8) + torch.arange(8) / 100
    labels = torch.tensor([0, 1, 2, 3, 0, 0, 0, 0])
    found = accuracies(scores, labels, "knn")
    assert (found["knn_correct"], found["count"], found["knn_acc"]) == (4, 8, 0.5)
    assert found["knn_acc5"] == 0.5
    assert "knn_acc5" not in accuracies(scores[:, :5], labels, "knn")
