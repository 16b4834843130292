"""Labels that can't be classes are refused, and classes keep their order, in tables of both kinds."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest

from hub_files import CLASSES, saved, table
from vitlab.data.sets.huggingface import huggingface
from vitlab.data.source import Source

Load = Callable[..., Source]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    return partial(huggingface, cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("train", "test", "feature", "reported"),
    [
        ([0, 1, -1, 1], [0], CLASSES, "1 of the 4 labels of the split train are -1 or missing"),
        ([0, 1, None, 1], [0], CLASSES, "1 of the 4 labels of the split train are -1 or missing"),
        (["a", "b"] * 3, ["c"], datasets.Value("string"), "the split test has the label 'c', which train doesn't have"),
        (["a", "b", "c", "d"], ["a"], datasets.Value("string"), "4 different values in 4 images, so these are no"),
        ([[0], [1]], [[0]], datasets.List(CLASSES), "label_column=label has several labels, or none for each image"),
        ([0.5, 1.5], [0.5], datasets.Value("float32"), "label_column=label has a number with fractions"),
    ],
)
def test_labels_that_are_no_classes_are_refused(
    load: Load, tmp_path: Path, train: list[Any], test: list[Any], feature: Any, reported: str
) -> None:
    name = saved(tmp_path / "s", train=table(train, feature), test=table(test, feature))
    with pytest.raises(ValueError, match=re.escape(reported)):
        load(name=name)


def test_classes_of_another_order_are_not_mixed_up(load: Load, tmp_path: Path) -> None:
    one, other = (table([0, 1] * 4, datasets.ClassLabel(names=names)) for names in (["a", "b"], ["b", "a"]))
    with pytest.raises(ValueError, match="the classes of the split test have other names, or another order"):
        load(name=saved(tmp_path / "s", train=one, test=other))
    (tmp_path / "p").mkdir()
    for name, part in (("train-0", one), ("train-1", other)):
        part.to_parquet(tmp_path / "p" / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"the classes of .*train-1\.parquet have other names, or another order"):
        load(name=str(tmp_path / "p"), streaming=True)
