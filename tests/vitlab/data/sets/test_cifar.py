"""CIFAR's files: the real format, a real download from a server of the test's own."""

import hashlib
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from vitlab.data.sets import cifar
from vitlab.data.source import loader_facts


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
    dataset, load = getattr(datasets, name), getattr(cifar, name.lower())
    sums = write_cifar(tmp_path, dataset, labels, classes)
    kept = shutil.copytree(tmp_path / dataset.base_folder, tmp_path / "kept")
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(dataset, part, [[file, sums[file]] for file, _ in getattr(dataset, part)])
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": sums["meta"]})
    source = load(data_dir=str(tmp_path))
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
    assert torch.equal(load(data_dir=str(tmp_path)).train.images, again), "downloaded"

    first.write_bytes(first.read_bytes() + b"x")
    (tmp_path / dataset.filename).unlink()
    monkeypatch.setattr(dataset, "url", "http://127.0.0.1:9/none.tar.gz")
    with pytest.raises(FileNotFoundError, match=f"{name.lower()} isn't in data_dir=.*{dataset.filename}"):
        load(data_dir=str(tmp_path))


def test_the_facts_are_those_that_are_published() -> None:
    for load, classes in ((cifar.cifar10, 10), (cifar.cifar100, 100)):
        facts = loader_facts(load)
        assert (facts.native_size, facts.channels, facts.num_classes) == (32, 3, classes)
        assert (facts.train_samples, facts.in_memory) == (50_000, True)
