"""CIFAR-10 and CIFAR-100, in the pickles of their authors, which torchvision reads if their checksums are right."""

import warnings
from pathlib import Path

from vitlab.data.sets.download import download
from vitlab.data.source import Facts, Source, Split


@Facts(native_size=32, channels=3, num_classes=10, train_samples=50_000, in_memory=True, files=("cifar-10-batches-py",))
def cifar10(*, data_dir: str) -> Source:
    """CIFAR-10 (Krizhevsky, 2009): `data_dir`/cifar-10-batches-py, else downloaded.

    Args:
        data_dir: Folder of the files.
    """
    return load_cifar("CIFAR10", data_dir, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@Facts(native_size=32, channels=3, num_classes=100, train_samples=50_000, in_memory=True, files=("cifar-100-python",))
def cifar100(*, data_dir: str) -> Source:
    """CIFAR-100 with its 100 fine labels: `data_dir`/cifar-100-python, else downloaded.

    Args:
        data_dir: Folder of the files.
    """
    return load_cifar("CIFAR100", data_dir, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def load_cifar(torchvision_name: str, data_dir: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Source:
    """Raise `FileNotFoundError` if files are missing, or corrupt, and the download failed."""
    import torch
    from torchvision import datasets

    dataset, name = getattr(datasets, torchvision_name), torchvision_name.lower()

    def load(*, fetch: bool = True) -> list[datasets.CIFAR10]:
        with warnings.catch_warnings():
            # of 2009: NumPy 2.4 dislikes their dtypes
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            return [dataset(Path(data_dir).expanduser(), train=train, download=fetch) for train in (True, False)]

    try:
        parts = load(fetch=False)
    except RuntimeError:
        remedy = f"unpack {dataset.filename} ({dataset.url}) there, as the folder {dataset.base_folder}"
        parts = download(name, data_dir, load, remedy)
    pairs = [(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), part.targets) for part in parts]
    train, test = (Split(images, torch.tensor(targets)) for images, targets in pairs)
    return Source(name, tuple(parts[0].classes), 3, mean, std, 32, train, test)
