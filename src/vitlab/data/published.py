"""Published data sets from the files their authors offer: MNIST's idx format, CIFAR, and the download."""

import contextlib
import gzip
import logging
import math
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from torch import Tensor
from torchvision import datasets

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
    """Class names, train and test, through torchvision, which checks the files' checksums.

    Raises:
        FileNotFoundError: not in `data_dir`, or corrupt, and the download failed.
    """
    dataset = getattr(datasets, torchvision_name)

    def load(download: bool) -> list[Any]:  # raises RuntimeError where a file is missing or corrupt
        with warnings.catch_warnings():  # the files are pickles of 2009; NumPy 2.4 dislikes their dtypes
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            return [dataset(data_dir, train=train, download=download) for train in (True, False)]

    splits = None
    with contextlib.suppress(RuntimeError):
        splits = load(download=False)
    if splits is None:
        remedy = f"unpack {dataset.filename} ({dataset.url}) there, as the folder {dataset.base_folder}"
        splits = _download(name, data_dir, lambda: load(download=True), remedy)
    train, test = (
        (torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(split.targets)) for split in splits
    )
    return tuple(splits[0].classes), train, test


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
