"""The digits, from scikit-learn's wheel."""

import hashlib

import pytest
import torch

from vitlab.data.sets.digits import digits
from vitlab.data.source import loader_facts


def test_digits_are_split_for_good() -> None:
    source = digits()
    assert (len(source.train), len(source.test)) == (loader_facts(digits).train_samples, 360)
    assert source.test.images is not None
    digest = hashlib.sha256(source.test.images.numpy().tobytes()).hexdigest()
    assert digest.startswith("de85aee14a9506dd"), "the test split of digits moved: old results can't be compared"
    counts = torch.bincount(source.test.labels)
    assert counts.min() >= 34
    assert counts.max() <= 38


def test_digits_carry_their_own_mean_and_deviation() -> None:
    source = digits()
    assert source.train.images is not None
    pixels = source.train.images / 255
    assert pixels.max() == 1
    assert pixels.mean().item() == pytest.approx(source.mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(source.std[0], abs=1e-4)
