"""The paths of a split's files in one buffer, and listings that are kept on disk."""

import copy
import hashlib
import io
import json
import logging
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitlab.storage.atomic import atomic_write

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

SETTLED = 2.0  # seconds after which a changed folder has another time of change than before
KEPT = 90 * 86400  # seconds for which a listing is kept after its last use
WAIT = 30.0  # seconds between two lines of a process that waits for another one
SLASH = ord("/")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")


class FileList(Sequence[str]):
    """Paths in one buffer, which forked data workers share with their parent.

    A list of strings would be copied to each of them: reading one changes its count of references. `state` is a digest
    of the folders that were listed; empty if they may change without notice.
    """

    def __init__(self, paths: Iterable[str], state: str = "") -> None:
        import numpy as np

        names = [*paths]
        self.buffer, self.state = os.fsencode(text := "".join(names)), state
        texts: list[Any] = names if text.isascii() else [os.fsencode(path) for path in names]
        self.ends = np.cumsum([*map(len, texts)], dtype=np.int64)
        self.first, self.last = (os.fsencode(min(texts)), os.fsencode(max(texts))) if texts else (b"", b"")
        self.chosen = np.arange(len(texts))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = int(self.chosen[index])
        return os.fsdecode(self.buffer[self.ends[at - 1] if at else 0 : self.ends[at]])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def subset(self, indices: "np.ndarray[Any, Any]") -> "FileList":
        """The paths at `indices` (int64 [n]), in that order."""
        part = copy.copy(self)
        part.chosen = self.chosen[indices]
        return part

    def common_folder(self) -> str:
        """The folder of all paths of the list that this is a part of."""
        return os.path.commonpath([os.fsdecode(path.rpartition(b"/")[0]) for path in (self.first, self.last)])

    def names(self) -> Iterator[bytes]:
        """The last two parts of all paths, without anything between them, some thousand paths at a time."""
        import numpy as np

        letters = np.frombuffer(self.buffer, np.uint8)
        for chosen in np.array_split(self.chosen, 1 + len(self.chosen) // 2**16):
            ends, starts = self.ends[chosen], np.where(chosen > 0, self.ends[chosen - 1], 0)
            first = starts.min() if len(starts) else 0
            slashes = first + np.flatnonzero(letters[first : ends.max(initial=0)] == SLASH)
            last_but_one = np.searchsorted(slashes, ends) - 2  # the slash before the last two parts
            at = np.where(last_but_one >= 0, slashes[np.maximum(last_but_one, 0)] + 1, 0) if len(slashes) else starts
            starts = np.maximum(starts, at)
            lengths = ends - starts
            place = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
            yield letters[place + np.arange(len(place))].tobytes()


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vitlab", "folders").expanduser()


class Listing(NamedTuple):
    """The images of a folder: class names, files and labels, the folders that were read, and lines for the log."""

    names: list[str]
    files: FileList
    labels: "np.ndarray[Any, Any]"  # int64 [N]
    times: dict[str, int]  # of change of every folder, in nanoseconds
    notes: list[str]


def folders_state(times: dict[str, int]) -> str:
    """A digest of folders and the times of their last change; empty if one has changed just now."""
    if max(times.values(), default=0) > time.time_ns() - SETTLED * 1e9:
        return ""
    return hashlib.blake2b(json.dumps(sorted(times.items())).encode(), digest_size=8).hexdigest()


def is_unchanged(times: dict[str, int]) -> bool:
    """Whether no entry was added to a folder, removed or renamed since."""
    with suppress(OSError):
        return all(os.stat(folder).st_mtime_ns == changed for folder, changed in times.items())  # noqa: PTH116
    return False


def read_listing(file: Path) -> Listing | None:
    """The listing in a file; None if there is none, or if a folder has changed."""
    import numpy as np

    try:
        with file.open("rb") as content, np.load(content, allow_pickle=False) as saved:
            head = json.loads(bytes(saved["head"]))
            if not is_unchanged(head["times"]):
                return None
            files = FileList([], head["state"])
            files.buffer, files.ends = bytes(saved["buffer"]), saved["ends"]
            files.chosen = np.arange(len(files.ends))
            files.first, files.last = os.fsencode(head["first"]), os.fsencode(head["last"])
            labels = saved["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    with suppress(OSError):
        os.utime(file)
    return Listing(head["names"], files, labels, head["times"], head["notes"])


def write_listing(file: Path, listing: Listing) -> None:
    import numpy as np

    files = listing.files
    head: dict[str, Any] = {"names": listing.names, "times": listing.times, "notes": listing.notes}
    head |= {"state": files.state, "first": os.fsdecode(files.first), "last": os.fsdecode(files.last)}
    text = np.frombuffer(json.dumps(head).encode(), np.uint8)
    letters = np.frombuffer(files.buffer, np.uint8)
    np.savez(content := io.BytesIO(), head=text, buffer=letters, ends=files.ends, labels=listing.labels)
    atomic_write(file, content.getvalue())


def load_listing(key: str, make: Callable[[], Listing]) -> Listing:
    """The listing under a key: made once per machine, by one process, and again if a folder has changed."""
    file = cache_folder() / f"{hashlib.blake2b(key.encode(), digest_size=12).hexdigest()}.npz"
    with folder_cache_lock(file, key):
        if (listing := read_listing(file)) is None:
            listing = make()
            if listing.files.state:
                with suppress(OSError):  # a full disk
                    write_listing(file, listing)
                    remove_old_files(file.parent)
    for note in listing.notes:
        log.warning("%s", note)
    return listing


@contextmanager
def folder_cache_lock(file: Path, subject: str) -> Iterator[None]:
    """Hold a lock next to a file of the cache; a process that waits logs it. A dead process holds no lock."""
    from filelock import FileLock, Timeout

    with ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            while True:
                with suppress(Timeout):
                    stack.enter_context(FileLock(f"{file}.lock").acquire(timeout=WAIT))
                    break
                log.info("waiting for another process, which reads %s", subject)
        except (OSError, NotImplementedError) as error:  # no cache here: each process reads the folders
            log.debug("%s can't be locked: %s", file, error)
        yield


def remove_old_files(folder: Path) -> None:
    """Remove what wasn't used for `KEPT` seconds."""
    for file in folder.iterdir():
        with suppress(OSError):
            if file.stat().st_mtime < time.time() - KEPT:
                file.unlink()


def images_below(
    folder: str, times: dict[str, int], by_link: set[str], linked: bool = False, above: tuple[tuple[int, int], ...] = ()
) -> list[str]:
    """The images in a folder and the folders in it, also linked ones; `by_link` gets those to which a link leads.

    `times` gets the time of change of each folder. Raises `ValueError` if a folder can't be read, or contains itself by
    a link.
    """
    try:
        status = os.stat(folder)  # noqa: PTH116 (as all of this: a million times)
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if entry.name[0] != "."]
    except OSError as error:
        remedy = "make it readable, or remove it"
        raise ValueError(f"data_dir: {folder} can't be read: {error.strerror}; {remedy}") from error
    times[folder], here = status.st_mtime_ns, (status.st_dev, status.st_ino)
    if here in above:
        raise ValueError(f"data_dir: {folder} is a link to a folder that contains it; remove the link")
    images = list[str]()
    for entry in entries:
        link = entry.is_symlink()
        # a link that leads nowhere is a bad file, for the scan to report
        if os.path.isdir(entry.path) if link else entry.is_dir():  # noqa: PTH112
            images += images_below(entry.path, times, by_link, linked=linked or link, above=(*above, here))
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            images.append(entry.path)
            if linked or link:
                by_link.add(entry.path)
    return images


def find_images(images: str | Sequence[str]) -> list[str]:
    """Paths of files, of a pattern's or a folder's images, or of several of them. Raises `ValueError` for none."""
    paths = list[str]()
    for each in [images] if isinstance(images, str) else images:
        path = Path(each).expanduser()
        for one in [str(path)] if path.exists() else sorted(glob(str(path), recursive=True)):  # noqa: PTH207
            paths += sorted(images_below(one, {}, set())) if Path(one).is_dir() else [one]
        if not paths:
            raise ValueError(f"images={each} is no image, and no folder or pattern with images")
    return paths
