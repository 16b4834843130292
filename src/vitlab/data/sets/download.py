"""Downloads of published data sets: one process at a time, any failure as one error."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Labeled: TypeAlias = "tuple[Tensor, Tensor]"  # images uint8 [N, C, H, W], labels int64 [N]


def download(name: str, data_dir: str, fetch: Callable[[], T], remedy: str) -> T:
    """Call `fetch`, which may download into `data_dir`. Raises `FileNotFoundError` that names the `remedy`."""
    from filelock import FileLock

    folder = Path(data_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            return fetch()
    except (OSError, RuntimeError) as error:
        absent = f"{name} isn't in data_dir={data_dir} and can't be downloaded ({' '.join(str(error).split())})"
        raise FileNotFoundError(f"{absent}; {remedy}") from error
