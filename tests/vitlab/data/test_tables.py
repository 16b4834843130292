"""Images in the rows of tables: real parquet files and Arrow tables that `datasets` wrote."""

import io
import multiprocessing
import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from vitlab.data.decode import check_header, read_bytes, read_image
from vitlab.data.rows import Rows
from vitlab.data.sets.huggingface import huggingface
from vitlab.data.tables import ArrowRows, ParquetRows


@pytest.fixture(scope="module", params=["mapped", "streamed"])
def rows(request: pytest.FixtureRequest, parquet: Path, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The 600 training rows, one way and the other."""
    cache = str(tmp_path_factory.mktemp("cache"))
    train = huggingface(name=str(parquet), streaming=request.param == "streamed", cache_dir=cache).train
    assert isinstance(train.files, ParquetRows if request.param == "streamed" else ArrowRows)
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
    streaming = isinstance(rows, ParquetRows)
    shutil.copytree(parquet, moved := tmp_path / "digits")
    cache = str(tmp_path_factory.mktemp("cache"))
    again = huggingface(name=str(moved), streaming=streaming, cache_dir=cache).train.files
    assert isinstance(again, Rows)
    assert again.digest() == rows.digest()
    assert again.subset(torch.arange(1, 600)).digest() != rows.subset(torch.arange(599)).digest()
    last = moved / "data" / "train-2.parquet"
    other = datasets.Dataset.from_parquet(str(moved / "data" / "test-0.parquet"), cache_dir=cache)
    other.to_parquet(last, batch_size=50)
    changed = huggingface(name=str(moved), streaming=streaming, cache_dir=cache).train.files
    assert isinstance(changed, Rows)
    assert changed.digest() != rows.digest()


def read_in_child(rows: Rows, indices: list[int]) -> list[bytes]:
    return [read_bytes(rows[index]) for index in indices]


@pytest.mark.parametrize("method", ["fork", "pickle"])
def test_another_process_opens_files_of_its_own(rows: Rows, method: str) -> None:
    indices = [3, 250, 599]
    expected = read_in_child(rows, indices)
    if method == "pickle":
        assert read_in_child(pickle.loads(pickle.dumps(rows)), indices) == expected
        return
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(read_in_child, (rows, indices)) == expected


def test_a_row_without_an_image_and_one_that_is_elsewhere(tmp_path: Path) -> None:
    Image.fromarray((load_digits().images[0] * 15).astype(np.uint8)).save(tmp_path / "0.png")
    values = [{"bytes": None, "path": str(tmp_path / "0.png")}, None, {"bytes": None, "path": "0.png"}]
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": values}, features=features)
    rows = ArrowRows("set/train", table, "image", torch.arange(3))
    assert read_image(rows[0]).shape == (3, 8, 8)
    for index, reason in ((1, "the row holds no image"), (2, "the row holds no image, but the name 0.png")):
        with pytest.raises(ValueError, match=rf"^set/train/{index} can't be read \({reason}\)"):
            read_image(rows[index])
    assert len(rows.digest()) == 16


def test_a_row_group_is_read_once_and_let_go_of_when_others_need_the_room(parquet: Path) -> None:
    rows = huggingface(name=str(parquet), streaming=True, shuffle_buffer=50).train.files
    assert isinstance(rows, ParquetRows)
    for index in range(600):
        rows[index].read()
    known = rows._images.cache_info()
    assert (known.misses, known.currsize) == (12, rows.cache_size())
    assert rows.cache_size() < 5


def test_a_file_that_was_changed_meanwhile_is_reported(parquet: Path, tmp_path: Path) -> None:
    shutil.copytree(parquet, moved := tmp_path / "digits")
    rows = huggingface(name=str(moved), streaming=True).train.files
    assert isinstance(rows, ParquetRows)
    file = moved / "data" / "train-0.parquet"
    table = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    table.select(range(60)).to_parquet(file, batch_size=30)
    with pytest.raises(ValueError, match=r"digits/train/3 can't be read \(.*train-0.parquet was changed"):
        read_image(rows[3])
