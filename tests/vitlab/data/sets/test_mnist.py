"""MNIST's files: the real format, a real download from a server of the test's own."""

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision import datasets

from vitlab.data.sets.mnist import DEBIAN_FASHION_MNIST, fashion_mnist, mnist
from vitlab.data.source import Source, loader_facts

NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]
NO_IDX = r"is truncated, or not an idx file of bytes \[.N., 28, 28\]; delete"
DIGITS = np.pad((load_digits().images * 15).astype(np.uint8), ((0, 0), (10, 10), (10, 10)))  # 28 x 28


def idx(array: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> bytes:
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes()


def write_idx(folder: Path, *, compressed: bool = True) -> Path:
    """40 train and 20 test digits."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = load_digits().target.astype(np.uint8)
    for name, array in zip(NAMES, (DIGITS[:40], labels[:40], DIGITS[40:60], labels[40:60]), strict=True):
        data = idx(array)
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def no_debian(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vitlab.data.sets.mnist.DEBIAN_FASHION_MNIST", tmp_path / "no-such-folder")


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("place", ["mnist", "MNIST/raw", "."])
def test_mnist_is_read_in_place(tmp_path: Path, place: str, compressed: bool) -> None:
    folder = write_idx(tmp_path / place, compressed=compressed)
    before = sorted(folder.iterdir())
    source = mnist(data_dir=str(tmp_path))
    assert source.train.images is not None
    assert np.array_equal(source.train.images[:, 0].numpy(), DIGITS[:40])
    assert source.test.labels.tolist() == load_digits().target[40:60].tolist()
    assert source.classes == tuple("0123456789")
    assert sorted(folder.iterdir()) == before


def test_fashion_mnist_of_data_dir_goes_before_debians(tmp_path: Path) -> None:
    write_idx(tmp_path / "fashion_mnist")
    assert len(fashion_mnist(data_dir=str(tmp_path)).train) == 40


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        (NAMES[0], idx(DIGITS[:40])[:-5], NO_IDX),
        (
            NAMES[0],
            idx(DIGITS[:40].astype(np.uint8)[:, :20]),
            NO_IDX,
        ),
        (
            NAMES[0],
            b"\x00\x00\x08\x01" + idx(DIGITS[:40])[4:],
            NO_IDX,
        ),
        (NAMES[0], b"", NO_IDX),
        (NAMES[1], idx(np.zeros(39, np.uint8)), "holds 40 images but .* 39 labels"),
        (NAMES[1], idx(np.full(40, 10, np.uint8)), "holds the label 10; expected 0..9"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, data: bytes, message: str) -> None:
    write_idx(tmp_path, compressed=False)
    (tmp_path / file).write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        mnist(data_dir=str(tmp_path))
    assert file in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 300])
def test_a_truncated_gzip_file_is_named(tmp_path: Path, keep: int) -> None:
    path = write_idx(tmp_path) / f"{NAMES[2]}.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"{NAMES[2]}\.gz .*delete"):
        mnist(data_dir=str(tmp_path))


@pytest.mark.usefixtures("no_debian")
def test_fashion_mnist_is_downloaded_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path]
) -> None:
    address, folder = server
    write_idx(folder)
    sums = [(f"{name}.gz", hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest()) for name in NAMES]
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [address])
    monkeypatch.setattr(datasets.FashionMNIST, "resources", sums)
    source = fashion_mnist(data_dir=str(tmp_path / "new"))
    assert len(source.train) == 40
    assert (tmp_path / "new" / "FashionMNIST" / "raw" / NAMES[0]).is_file()


@pytest.mark.usefixtures("no_debian")
def test_a_failed_download_reports_which_files_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens
    with pytest.raises(FileNotFoundError) as caught:
        fashion_mnist(data_dir=str(tmp_path / "new"))
    message = str(caught.value)
    assert f"data_dir={tmp_path / 'new'}" in message
    assert "refused" in message
    assert "dataset-fashion-mnist" in message
    assert all(name in message for name in NAMES)


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_read_where_debian_puts_it(tmp_path: Path) -> None:
    source = fashion_mnist(data_dir=str(tmp_path))
    assert (len(source.train), len(source.test)) == (60_000, 10_000)
    assert torch.bincount(source.test.labels).tolist() == [1000] * 10
    assert source.classes[int(source.train.labels[0])] == "Ankle boot"
    assert source.train.images is not None
    assert (source.train.images[:5000] / 255).mean().item() == pytest.approx(source.mean[0], abs=0.01)
    assert list(tmp_path.iterdir()) == [], "nothing is written where nothing is downloaded"


@pytest.mark.parametrize("load", [mnist, fashion_mnist])
def test_the_facts_are_those_of_the_files(tmp_path: Path, load: Callable[..., Source]) -> None:
    write_idx(tmp_path / load.__name__)
    facts = loader_facts(load)
    facts.check(load(data_dir=str(tmp_path)))
    assert (facts.native_size, facts.channels, facts.num_classes) == (28, 1, 10)
    assert facts.train_samples == 60_000, "published"
