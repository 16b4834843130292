"""Published data sets from the files their authors offer: MNIST's idx format, CIFAR, and the download."""

import gzip
import logging
import math
import pickle
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import check_integrity, download_and_extract_archive

log = logging.getLogger(__name__)
T = TypeVar("T")
Labelled = tuple[Tensor, Tensor]  # images uint8 [N, C, H, W], labels int64 [N]


def load_idx(
    name: str, torchvision_name: str, data_dir: str, folders: list[Path], *, other_way: str = ""
) -> tuple[Labelled, Labelled]:
    """Train and test of 28 x 28 grey images in 10 classes, from the first of `folders` that has all files.

    The files are read as they lie, plain or gzip; only where there are none does torchvision download
    them. `other_way` completes the error's advice.

    Raises:
        FileNotFoundError: nothing found and the download failed.
        ValueError: a file is truncated or not what its name says.
    """
    parts = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]

    def find() -> list[Path] | None:
        for folder in folders:
            paths = [path for part in parts if (path := _plain_or_gzip(folder.expanduser(), part))]
            if len(paths) == len(parts):
                return paths
        return None

    def download() -> list[Path]:
        if find() is None:  # else another rank was faster
            getattr(datasets, torchvision_name)(data_dir, download=True)
        if (paths := find()) is None:
            raise OSError("the download left no complete set of files")
        return paths

    remedy = f"put {', '.join(parts)} (plain or .gz) into {folders[0]}{other_way}"
    train_x, train_y, test_x, test_y = find() or _download(name, data_dir, download, remedy)
    log.info("%s: read from %s", name, train_x.parent)
    return _read_pair(train_x, train_y), _read_pair(test_x, test_y)


def load_cifar(name: str, torchvision_name: str, data_dir: str) -> tuple[tuple[str, ...], Labelled, Labelled]:
    """Class names, train and test, from the authors' files, whose checksums torchvision knows.

    Raises:
        FileNotFoundError: not in `data_dir`, or corrupt, and the download failed.
        ValueError: a file isn't what its name says.
    """
    dataset = getattr(datasets, torchvision_name)
    folder = Path(data_dir).expanduser() / dataset.base_folder
    meta = dataset.meta
    sums = [*dataset.train_list, *dataset.test_list, (meta["filename"], meta["md5"])]

    def is_whole() -> bool:
        return all(check_integrity(str(folder / file), md5) for file, md5 in sums)

    def download() -> None:
        if not is_whole():  # else another rank was faster
            download_and_extract_archive(
                dataset.url, str(folder.parent), filename=dataset.filename, md5=dataset.tgz_md5
            )
        if not is_whole():
            raise OSError("the download left no complete set of files")

    if not is_whole():
        remedy = f"unpack {dataset.filename} ({dataset.url}) there, as the folder {dataset.base_folder}"
        _download(name, data_dir, download, remedy)
    classes = tuple(str(word) for word in _unpickle(folder / meta["filename"])[meta["key"]])
    train, test = (
        [_read_cifar(folder / file, len(classes)) for file, _ in part]
        for part in (dataset.train_list, dataset.test_list)
    )
    return classes, _joined(train), _joined(test)


def _joined(parts: list[Labelled]) -> Labelled:
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def _read_cifar(path: Path, classes: int) -> Labelled:
    """A pickled dictionary: `data` uint8 [N, 3072], planes of red, green and blue, and a list of labels."""
    entry = _unpickle(path)
    data, labels = entry.get("data"), entry.get("labels", entry.get("fine_labels"))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise ValueError(f"{path} holds no images of 3 x 32 x 32 bytes; delete it and get it again")
    if not isinstance(labels, list) or len(labels) != len(data):
        count = len(labels) if isinstance(labels, list) else "no"
        raise ValueError(f"{path} holds {len(data)} images but {count} labels; delete it and get it again")
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < classes:
            raise ValueError(f"{path} holds the label {label!r}; expected 0..{classes - 1}")
    return torch.from_numpy(data.reshape(-1, 3, 32, 32).copy()), torch.tensor(labels)


class _OnlyArrays(pickle.Unpickler):
    """Makes what CIFAR's files are made of; a pickle that names anything else to be called is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.ndarray.__reduce__(np.zeros(0))[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it would call {module}.{name}")


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            # of 2009: NumPy 2.4 dislikes their dtypes
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            entry = _OnlyArrays(file, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # damaged pickles end in errors of any kind
        raise ValueError(f"{path} is no data of CIFAR ({error}); delete it and get it again") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{path} holds no dictionary, but {type(entry).__name__}; delete it and get it again")
    return entry


def _download(name: str, data_dir: str, load: Callable[[], T], remedy: str) -> T:
    """Run `load`, which may download, one process at a time; any failure becomes one error."""
    folder = Path(data_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            return load()
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{name} isn't in data_dir={data_dir} and can't be downloaded ({reason}); {remedy}"
        ) from error


def _plain_or_gzip(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_pair(image_file: Path, label_file: Path) -> Labelled:
    images, labels = _read_idx(image_file, (28, 28)), _read_idx(label_file, ())
    if len(images) != len(labels):
        raise ValueError(f"{image_file} holds {len(images)} images but {label_file} {len(labels)} labels")
    if int(labels.max()) > 9:
        raise ValueError(f"{label_file} holds the label {int(labels.max())}; expected 0..9")
    return images[:, None], labels.long()


def _read_idx(path: Path, item: tuple[int, ...]) -> Tensor:
    """An idx file of bytes [N, *item]: two zeros, type 8, number of axes, their lengths, the values."""
    remedy = f"delete {path} and get it again"
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or no gzip file ({error}); {remedy}") from error
    axes = 1 + len(item)
    if data[:4] != bytes([0, 0, 8, axes]):
        raise ValueError(f"{path} begins with {data[:4].hex()!r}, not with 000008{axes:02x}; {remedy}")
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes)]
    if tuple(shape[1:]) != item or shape[0] == 0:
        raise ValueError(f"{path} says shape {shape}, expected {['N', *item]}; {remedy}")
    values = bytearray(data[4 + 4 * axes :])
    if len(values) != math.prod(shape):
        raise ValueError(f"{path} holds {len(values):,} values where its header says {math.prod(shape):,}; {remedy}")
    return torch.frombuffer(values, dtype=torch.uint8).reshape(shape)
