"""MNIST's and CIFAR's files: real formats, real downloads from a server of the test's own."""

import functools
import gzip
import hashlib
import http.server
import pickle
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision import datasets

from vitlab.data import sources

NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]
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
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "no-such-folder")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An address on this machine and the folder behind it."""
    folder = tmp_path / "server"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as it:
        threading.Thread(target=functools.partial(it.serve_forever, 0.02), daemon=True).start()
        yield f"http://127.0.0.1:{it.server_port}/", folder
        it.shutdown()


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("place", ["mnist", "MNIST/raw", "."])
def test_mnist_is_read_as_it_lies(tmp_path: Path, place: str, compressed: bool) -> None:
    folder = write_idx(tmp_path / place, compressed=compressed)
    before = sorted(folder.iterdir())
    source = sources.mnist(data_dir=str(tmp_path))
    assert source.train.images is not None
    assert np.array_equal(source.train.images[:, 0].numpy(), DIGITS[:40])
    assert source.test.labels.tolist() == load_digits().target[40:60].tolist()
    assert source.classes == tuple("0123456789")
    assert sorted(folder.iterdir()) == before


def test_fashion_mnist_of_data_dir_goes_before_debians(tmp_path: Path) -> None:
    write_idx(tmp_path / "fashion_mnist")
    assert len(sources.fashion_mnist(data_dir=str(tmp_path)).train) == 40


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        (NAMES[0], idx(DIGITS[:40])[:-5], "31,355 values where its header says 31,360"),
        (NAMES[0], idx(DIGITS[:40].astype(np.uint8)[:, :20]), r"says shape \[40, 20, 28\]"),
        (NAMES[0], b"\x00\x00\x08\x01" + idx(DIGITS[:40])[4:], "begins with '00000801', not with 00000803"),
        (NAMES[0], b"", "begins with ''"),
        (NAMES[1], idx(np.zeros(39, np.uint8)), "holds 40 images but .* 39 labels"),
        (NAMES[1], idx(np.full(40, 10, np.uint8)), "holds the label 10; expected 0..9"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, data: bytes, message: str) -> None:
    write_idx(tmp_path, compressed=False)
    (tmp_path / file).write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        sources.mnist(data_dir=str(tmp_path))
    assert file in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 300])
def test_a_truncated_gzip_file_is_named(tmp_path: Path, keep: int) -> None:
    path = write_idx(tmp_path) / f"{NAMES[2]}.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"{NAMES[2]}\.gz .*delete"):
        sources.mnist(data_dir=str(tmp_path))


@pytest.mark.usefixtures("no_debian")
def test_fashion_mnist_is_downloaded_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path]
) -> None:
    address, folder = server
    write_idx(folder)
    sums = [(f"{name}.gz", hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest()) for name in NAMES]
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [address])
    monkeypatch.setattr(datasets.FashionMNIST, "resources", sums)
    source = sources.fashion_mnist(data_dir=str(tmp_path / "new"))
    assert len(source.train) == 40
    assert (tmp_path / "new" / "FashionMNIST" / "raw" / NAMES[0]).is_file()


@pytest.mark.usefixtures("no_debian")
def test_a_failed_download_tells_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens
    with pytest.raises(FileNotFoundError) as caught:
        sources.fashion_mnist(data_dir=str(tmp_path / "new"))
    message = str(caught.value)
    assert f"data_dir={tmp_path / 'new'}" in message
    assert "refused" in message
    assert "dataset-fashion-mnist" in message
    assert all(name in message for name in NAMES)


def write_cifar(folder: Path, dataset: type[datasets.CIFAR10], labels: str, classes: int) -> dict[str, str]:
    """Ten images per file, in the pickles of the authors; returns the files' checksums."""
    base = folder / dataset.base_folder
    base.mkdir(parents=True)
    sums = {}
    random = np.random.default_rng(0)
    for name, _ in dataset.train_list + dataset.test_list:
        pixels = random.integers(0, 256, (10, 3072), dtype=np.uint8)
        entry = {"data": pixels, labels: [(k * 7) % classes for k in range(10)]}
        # NumPy of 2009 wrote the dtype's flags as integers
        data = pickle.dumps(entry, protocol=2).replace(b"\x89\x88\x87R", b"K\x00K\x01\x87R")
        (base / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    meta = pickle.dumps({dataset.meta["key"]: [f"name{k}" for k in range(classes)]})
    (base / dataset.meta["filename"]).write_bytes(meta)
    sums["meta"] = hashlib.md5(meta).hexdigest()
    return sums


@pytest.mark.parametrize(
    ("name", "labels", "classes", "train"),
    [("CIFAR10", "labels", 10, 50), ("CIFAR100", "fine_labels", 100, 10)],
)
def test_cifar_is_read_and_checked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server: tuple[str, Path],
    name: str,
    labels: str,
    classes: int,
    train: int,
) -> None:
    dataset = getattr(datasets, name)
    sums = write_cifar(tmp_path, dataset, labels, classes)
    kept = shutil.copytree(tmp_path / dataset.base_folder, tmp_path / "kept")
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(dataset, part, [[file, sums[file]] for file, _ in getattr(dataset, part)])
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": sums["meta"]})
    source = getattr(sources, name.lower())(data_dir=str(tmp_path))
    assert source.train.images.shape == (train, 3, 32, 32)
    assert source.train.images.dtype == torch.uint8
    assert source.test.labels.tolist() == [(k * 7) % classes for k in range(10)]
    assert len(source.classes) == classes

    first = tmp_path / dataset.base_folder / dataset.train_list[0][0]
    entry = pickle.loads(first.read_bytes(), encoding="latin1")
    red_row = entry["data"][0].reshape(3, 32, 32)[0, 0]  # planes of red, green and blue
    assert source.train.images[0, 0, 0].tolist() == red_row.tolist()

    again = source.train.images
    shutil.rmtree(tmp_path / dataset.base_folder)
    with tarfile.open(server[1] / dataset.filename, "w:gz") as archive:
        archive.add(kept, dataset.base_folder)
    monkeypatch.setattr(dataset, "tgz_md5", hashlib.md5((server[1] / dataset.filename).read_bytes()).hexdigest())
    monkeypatch.setattr(dataset, "url", f"{server[0]}{dataset.filename}")
    assert torch.equal(getattr(sources, name.lower())(data_dir=str(tmp_path)).train.images, again), "downloaded"

    first.write_bytes(first.read_bytes() + b"x")
    (tmp_path / dataset.filename).unlink()
    monkeypatch.setattr(dataset, "url", "http://127.0.0.1:9/none.tar.gz")
    with pytest.raises(FileNotFoundError, match=f"{name.lower()} isn't in data_dir=.*{dataset.filename}"):
        getattr(sources, name.lower())(data_dir=str(tmp_path))
