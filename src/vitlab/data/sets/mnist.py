"""MNIST and Fashion-MNIST, in the idx files of their authors."""

import gzip
import logging
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.data.sets.download import Labeled, download
from vitlab.data.source import Facts, Source, Split

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST = ("fashion_mnist", "FashionMNIST/raw", DEBIAN_FASHION_MNIST)  # folders of its files
KNOWN: Any = {"native_size": 28, "channels": 1, "num_classes": 10, "train_samples": 60_000}
KNOWN |= {"epochs": 20, "in_memory": True}
FIRST = "train-images-idx3-ubyte*"


@Facts(**KNOWN, files=(f"mnist/{FIRST}", f"MNIST/raw/{FIRST}", FIRST))
def mnist(*, data_dir: str) -> Source:
    """MNIST (LeCun et al., 1998): idx files under `data_dir`, else downloaded there.

    Args:
        data_dir: Folder of the files.
    """
    train, test = load_idx("mnist", "MNIST", data_dir)
    classes = tuple(str(digit) for digit in range(10))
    return Source("mnist", classes, 1, (0.1307,), (0.3081,), 28, Split(*train), Split(*test))


@Facts(**KNOWN, files=(*(f"{folder}/{FIRST}" for folder in FASHION_MNIST), FIRST))
def fashion_mnist(*, data_dir: str) -> Source:
    """Fashion-MNIST (Xiao et al., 2017): idx files under `data_dir` or from Debian, else downloaded.

    Args:
        data_dir: Folder of the files.
    """
    debian = ", or install Debian's package dataset-fashion-mnist"
    train, test = load_idx("fashion_mnist", "FashionMNIST", data_dir, DEBIAN_FASHION_MNIST, remedy=debian)
    clothes = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
    others = ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    return Source("fashion_mnist", clothes + others, 1, (0.2860,), (0.3530,), 28, Split(*train), Split(*test))


def load_idx(
    name: str, torchvision_name: str, data_dir: str, *other_folders: Path, remedy: str = ""
) -> tuple[Labeled, Labeled]:
    """Train and test, 28 x 28 gray images in 10 classes, from the first folder that has all files, plain or gzip.

    Otherwise, torchvision downloads them. Raises `FileNotFoundError`, with `remedy` at its end, or `ValueError` for a
    file that is truncated or not what its name says.
    """
    folders = [Path(data_dir, name), Path(data_dir, torchvision_name, "raw"), Path(data_dir), *other_folders]
    parts = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]

    def find() -> list[Path]:
        for folder in (folder.expanduser() for folder in folders):
            files = [next(filter(Path.is_file, (folder / part, folder / f"{part}.gz")), None) for part in parts]
            if paths := [file for file in files if file is not None and None not in files]:
                return paths
        return []

    def fetch() -> list[Path]:
        from torchvision import datasets

        getattr(datasets, torchvision_name)(data_dir, download=True)  # does nothing if another rank was faster
        return find()

    remedy = f"put {', '.join(parts)} (plain or .gz) into {folders[0]}{remedy}"
    train_x, train_y, test_x, test_y = find() or download(name, data_dir, fetch, remedy)
    log.info("%s: read from %s", name, train_x.parent)
    return read_pair(train_x, train_y), read_pair(test_x, test_y)


def read_pair(image_file: Path, label_file: Path) -> Labeled:
    images, labels = read_idx(image_file, (28, 28)), read_idx(label_file, ())
    if len(images) != len(labels):
        raise ValueError(f"{image_file} holds {len(images)} images but {label_file} {len(labels)} labels")
    if int(labels.max()) > 9:
        raise ValueError(f"{label_file} holds the label {int(labels.max())}; expected 0..9")
    return images[:, None], labels.long()


def read_idx(path: Path, item: tuple[int, ...]) -> "Tensor":
    """The bytes of an idx file, uint8 [N, *item]: two zeros, type 8, number of axes, their lengths, the values."""
    import torch

    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error):
        data = b""
    start = 8 + 4 * len(item)
    kind, *shape = (int.from_bytes(data[at : at + 4], "big") for at in range(0, start, 4))
    if kind != 0x801 + len(item) or tuple(shape[1:]) != item or not 0 < math.prod(shape) == len(data) - start:
        expected = f"an idx file of bytes {['N', *item]}"
        raise ValueError(f"{path} is truncated, or not {expected}; delete {path} and get it again")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start).reshape(shape)
