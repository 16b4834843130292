"""Labels that can't be classes are refused, classes keep their order, and rows are the images that were written."""

import io
import multiprocessing
import pickle
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from hub_files import CLASSES, saved, table
from vitlab.data.decode import check_header, read_bytes, read_image
from vitlab.data.rows import Rows
from vitlab.data.sets.huggingface import huggingface
from vitlab.data.sets.huggingface_tables import TableRows, check_class_names
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
        load(name=str(tmp_path / "p"))


def test_class_names_are_read_in_local_parquet_files_alone() -> None:
    files = {"train": ["https://example.org/a.parquet", "/data/image.png"]}
    resolved: Any = SimpleNamespace(name="set", builder=SimpleNamespace(config=SimpleNamespace(data_files=files)))
    check_class_names(resolved, "train", "label", CLASSES)


# ------------------------------------------------------------------------------------------------------------- rows


@pytest.fixture(scope="module")
def rows(parquet: Path, tmp_path_factory: pytest.TempPathFactory) -> TableRows:
    """The 600 training rows."""
    train = huggingface(name=str(parquet), cache_dir=str(tmp_path_factory.mktemp("cache"))).train
    assert isinstance(train.files, TableRows)
    return train.files


def test_each_row_is_the_image_that_was_written(rows: Rows) -> None:
    for index in (0, 49, 50, 200, 599):
        pixels = (load_digits().images[index] * 15).astype(np.uint8)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(read_bytes(rows[index])))), pixels)
        assert np.array_equal(read_image(rows[index])[2], pixels)
        check_header(rows[index])
    part = rows.subset(torch.tensor([300, 20, 21])).subset(torch.tensor([2, 0]))
    assert [read_bytes(row) for row in part] == [read_bytes(rows[21]), read_bytes(rows[300])]


def test_their_digest_depends_on_content_and_not_on_place(
    rows: Rows, parquet: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shutil.copytree(parquet, moved := tmp_path / "digits")
    cache = str(tmp_path_factory.mktemp("cache"))
    again = huggingface(name=str(moved), cache_dir=cache).train.files
    assert isinstance(again, Rows)
    assert again.digest() == rows.digest()
    assert again.subset(torch.arange(1, 600)).digest() != rows.subset(torch.arange(599)).digest()
    last = moved / "data" / "train-2.parquet"
    other = datasets.Dataset.from_parquet(str(moved / "data" / "test-0.parquet"), cache_dir=cache)
    other.to_parquet(last, batch_size=50)
    changed = huggingface(name=str(moved), cache_dir=cache).train.files
    assert isinstance(changed, Rows)
    assert changed.digest() != rows.digest()


def read_in_child(rows: Rows, indices: list[int]) -> list[bytes]:
    return [read_bytes(rows[index]) for index in indices]


@pytest.mark.parametrize("method", ["fork", "pickle"])
def test_another_process_reads_the_same_files_and_gets_no_copy_of_the_table(rows: TableRows, method: str) -> None:
    indices = [3, 250, 599]
    expected = read_in_child(rows, indices)
    if method == "pickle":
        assert len(pickle.dumps(rows)) < 20_000, "the numbers of 600 rows, and the names of files"
        assert read_in_child(pickle.loads(pickle.dumps(rows)), indices) == expected
        return
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(read_in_child, (rows, indices)) == expected


def test_a_row_without_an_image_and_one_that_is_elsewhere(tmp_path: Path) -> None:
    Image.fromarray((load_digits().images[0] * 15).astype(np.uint8)).save(tmp_path / "0.png")
    values = [{"bytes": None, "path": str(tmp_path / "0.png")}, None, {"bytes": None, "path": "0.png"}]
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": values}, features=features)
    rows = TableRows("set/train", table, "image", torch.arange(3))
    assert read_image(rows[0]).shape == (3, 8, 8)
    for index, reason in ((1, "the row holds no image"), (2, "the row holds no image, but the name 0.png")):
        with pytest.raises(ValueError, match=rf"^set/train/{index} can't be read \({reason}\)"):
            read_image(rows[index])
    assert len(rows.digest()) == 16
    named = [datasets.Dataset.from_dict({"image": [{"bytes": None, "path": p}]}, features=features) for p in "ab"]
    one, other = (TableRows("set/train", part, "image", torch.arange(1)).content() for part in named)
    assert one != other, "the names of files"
