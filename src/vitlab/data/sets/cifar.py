"""CIFAR-10 and CIFAR-100, in the pickles of their authors."""

import pickle
import warnings
from pathlib import Path
from typing import Any

from vitlab.data.sets.download import Labeled, download
from vitlab.data.source import Facts, Source, Split


@Facts(native_size=32, channels=3, num_classes=10, train_samples=50_000, in_memory=True)
def cifar10(*, data_dir: str) -> Source:
    """CIFAR-10 (Krizhevsky, 2009): `data_dir`/cifar-10-batches-py, else downloaded."""
    classes, train, test = load_cifar("CIFAR10", data_dir)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return Source("cifar10", classes, 3, mean, std, 32, Split(*train), Split(*test))


@Facts(native_size=32, channels=3, num_classes=100, train_samples=50_000, in_memory=True)
def cifar100(*, data_dir: str) -> Source:
    """CIFAR-100 with its 100 fine labels: `data_dir`/cifar-100-python, else downloaded."""
    classes, train, test = load_cifar("CIFAR100", data_dir)
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return Source("cifar100", classes, 3, mean, std, 32, Split(*train), Split(*test))


def load_cifar(torchvision_name: str, data_dir: str) -> tuple[tuple[str, ...], Labeled, Labeled]:
    """Class names, train and test, from the authors' files, whose checksums torchvision knows.

    Raises:
        FileNotFoundError: not in `data_dir`, or corrupt, and the download failed.
        ValueError: a file isn't what its name says.
    """
    import torch
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    dataset = getattr(datasets, torchvision_name)
    folder, meta = Path(data_dir).expanduser() / dataset.base_folder, dataset.meta
    sums = [*dataset.train_list, *dataset.test_list, (meta["filename"], meta["md5"])]

    def is_complete() -> bool:
        return all(check_integrity(str(folder / file), md5) for file, md5 in sums)

    def fetch() -> None:
        if not is_complete():  # else another rank was faster
            archive = {"filename": dataset.filename, "md5": dataset.tgz_md5}
            download_and_extract_archive(dataset.url, str(folder.parent), **archive)
        if not is_complete():
            raise OSError("the download left no complete set of files")

    if not is_complete():
        remedy = f"unpack {dataset.filename} ({dataset.url}) there, as the folder {dataset.base_folder}"
        download(torchvision_name.lower(), data_dir, fetch, remedy)
    classes = tuple(str(word) for word in _unpickle(folder / meta["filename"])[meta["key"]])

    def read(files: list[tuple[str, str]]) -> Labeled:
        images, labels = zip(*(_read_batch(folder / file, len(classes)) for file, _ in files), strict=True)
        return torch.cat(images), torch.cat(labels)

    return classes, read(dataset.train_list), read(dataset.test_list)


def _read_batch(path: Path, classes: int) -> Labeled:
    """A pickled dictionary: `data` uint8 [N, 3072], planes of red, green and blue, and a list of labels."""
    import numpy as np
    import torch

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


class _ArrayUnpickler(pickle.Unpickler):
    """Refuse a pickle that would call anything but the makers of CIFAR's arrays."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

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
            entry = _ArrayUnpickler(file, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # damaged pickles end in errors of any kind
        raise ValueError(f"{path} is no data of CIFAR ({error}); delete it and get it again") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{path} holds no dictionary, but {type(entry).__name__}; delete it and get it again")
    return entry
