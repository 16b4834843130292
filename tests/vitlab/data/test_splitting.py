"""What is held out of a split."""

import logging
import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from vitlab.data.rows import Rows
from vitlab.data.sets.digits import digits
from vitlab.data.source import Split
from vitlab.data.splitting import block_mask, hold_out, stratified_split


class Blocks(Rows):
    """Rows in blocks of ten."""

    @property
    def blocks(self) -> Tensor:
        return self.chosen // 10

    def read(self, row: int) -> bytes:
        raise NotImplementedError

    def content(self) -> bytes:
        return b""


def in_blocks(labels: Tensor) -> Split:
    return Split(None, labels, Blocks("set", torch.arange(len(labels))))


def test_images_in_memory_are_cut_by_class() -> None:
    train, val = hold_out(digits().train, 0.1, seed=0, knob="data.val_fraction")
    assert (len(train), len(val)) == (1293, 144)
    assert int(val.labels.bincount().min()) >= 14


def test_images_in_blocks_are_cut_between_them() -> None:
    labels = torch.arange(1000) % 7
    train, val = hold_out(in_blocks(labels), 0.1, seed=0, knob="data.val_fraction")
    assert train.blocks is not None
    assert val.blocks is not None
    assert (len(train), len(val)) == (900, 100)
    assert not set(train.blocks.tolist()) & set(val.blocks.tolist())
    assert torch.equal(torch.cat([train.labels, val.labels]).bincount(), labels.bincount())
    again, other = (hold_out(in_blocks(labels), 0.1, seed=seed, knob="data.val_fraction")[1] for seed in (0, 1))
    assert torch.equal(again.blocks, val.blocks)  # type: ignore[arg-type]
    assert not torch.equal(other.blocks, val.blocks)  # type: ignore[arg-type]


def test_blocks_of_one_class_each_are_cut_through_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    labels = torch.arange(100) // 10
    with caplog.at_level(logging.WARNING):
        train, val = hold_out(in_blocks(labels), 0.2, seed=0, knob="data.val_fraction")
    assert val.labels.bincount().tolist() == [2] * 10
    assert train.labels.bincount().tolist() == [8] * 10
    assert "data.val_fraction=0.2 is held out of all shards" in caplog.text


def test_blocks_are_drawn_again_until_every_class_is_on_both_sides() -> None:
    blocks = torch.arange(60) // 10
    first, last = (block_mask(blocks % 3, blocks, 0.5, seed) for seed in (0, 5))
    assert first is not None
    assert last is not None
    assert torch.equal(first, last), "the draws of seed 0 to 4 have a class on one side"
    assert first[::10].bool().tolist() == [True, True, False, False, False, True]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_that_leaves_nothing_is_named(share: float) -> None:
    with pytest.raises(ValueError, match=r"data\.val_fraction=\d must be between 0 and 1"):
        hold_out(in_blocks(torch.arange(100) % 2), share, seed=0, knob="data.val_fraction")


@pytest.mark.parametrize("held_out", [0.01, 0.1, 0.5, 0.9, 360])
@pytest.mark.parametrize("classes", [2, 7, 100])
@pytest.mark.parametrize("size", [57, 1000, 20_011])
def test_the_draw_is_that_of_scikit_learn(size: int, classes: int, held_out: float) -> None:
    generator = torch.Generator().manual_seed(size)
    labels = (classes * torch.rand(size, generator=generator) ** 2).long() * 3 + 1  # of unequal sizes, with gaps
    for seed in (0, 5):
        try:
            expected = train_test_split(np.arange(size), test_size=held_out, stratify=labels.numpy(), random_state=seed)
        except ValueError:
            with pytest.raises(ValueError, match="can't split"):
                stratified_split(labels, held_out, seed=seed, knob="share")
            continue
        for indices, wanted in zip(stratified_split(labels, held_out, seed=seed, knob="share"), expected, strict=True):
            assert indices.tolist() == sorted(wanted.tolist())


def test_a_split_takes_little_more_memory_than_the_indices_it_returns() -> None:
    labels = torch.randint(50, (300_000,), generator=torch.Generator().manual_seed(0))
    tracemalloc.start()
    stratified_split(labels, 0.1, seed=0, knob="share")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.3 * labels.nbytes


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.0001, 1.5])
def test_a_fraction_that_leaves_nothing_names_its_knob(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"data\.val_fraction="):
        stratified_split(torch.arange(10).repeat(9), fraction, seed=0, knob="data.val_fraction")
