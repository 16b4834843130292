"""Files of a packed data set in a folder, or in object storage, from which fsspec fetches them when needed.

Fetched files are kept in a folder that all processes of a machine share, up to a size; the least recently used are
removed first. A file appears once it is complete, and one that another process reads may be removed meanwhile.
"""

import hashlib
import importlib.util
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

CACHE = "~/.cache/vitlab/shards"
SCHEMES = ("s3", "gs", "az", "hf", "https", "file")
CREDENTIALS = {  # where the libraries look for them
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or ~/.aws/credentials",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS in the environment, the file with a service account's key",
}
PART = ".part"  # suffix of a file while it is fetched
NAME = re.compile("[0-9a-f]{16}")  # of a set's folder in the cache: nothing else there is removed
ABANDONED = 3600  # seconds without a write after which such a file is of a killed process


def is_remote(place: str) -> bool:
    """Whether a place is a URL, and not a folder of this machine."""
    return "://" in place


def secret_problem(place: str) -> str | None:
    """That a URL has credentials or options, which a run would write to its files; nothing of them is repeated."""
    scheme, _, path = place.partition("://")
    host = path.partition("/")[0]
    allowed = {"https": r"[^@:]*(:\d+)?", "az": "[^:]*"}.get(scheme, "[^@:]*")  # az://CONTAINER@ACCOUNT
    if not is_remote(place) or scheme == "file" or (re.fullmatch(allowed, host) and "?" not in path):
        return None
    remedy = f"remove them, and set {CREDENTIALS[scheme]}" if scheme in CREDENTIALS else "remove them"
    return (
        f"data_dir={scheme}://... has credentials or options in its URL, which each run's folder would show; {remedy}"
    )


def url_problem(place: str) -> str | None:
    """Why a URL can't be read, without connecting; None if it may be readable, and for a folder."""
    scheme = place.partition("://")[0]
    if not is_remote(place):
        return None
    if (problem := secret_problem(place)) is not None:
        return problem
    if scheme not in SCHEMES:
        schemes = ", ".join(f"{known}://" for known in SCHEMES)
        return f"data_dir={place}: {scheme}:// is not one of {schemes}; copy the folder to this machine"
    from fsspec.registry import known_implementations

    package = known_implementations[scheme]["class"].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        return f"data_dir={place} is read with the package {package}, which isn't installed: pip install {package}"
    return None


def fetch_problem(error: Exception, place: str) -> str:
    """Why a file could not be fetched, with the remedy for missing credentials."""
    scheme, text = place.partition("://")[0], " ".join(str(error).split())
    if "credential" in text.lower() and scheme in CREDENTIALS:
        return f"there are no valid credentials for {scheme}://; set {CREDENTIALS[scheme]}"
    return "there is no such file" if isinstance(error, FileNotFoundError) else text[:300] or type(error).__name__


class Storage:
    """The files of a data set, by their names in its folder or URL."""

    def __init__(self, place: str, *, cache_dir: str | None = None, cache_gb: float = 100.0) -> None:
        self.place, self.remote, self.limit = place.rstrip("/"), is_remote(place), cache_gb * 1e9
        self.folder = Path(self.place)
        if self.remote:
            if (problem := url_problem(place)) is not None:
                raise ValueError(problem)
            self.cache = Path(cache_dir or CACHE).expanduser()
            self.folder = self.cache / short_hash(self.place.encode())
            self.folder.mkdir(parents=True, exist_ok=True)

    def read_description(self, name: str) -> bytes:
        """The current content of the file that describes the data set; each content has its own folder of files."""
        file = self.folder / name
        if not self.remote:
            return file.read_bytes()
        with FileLock(file.with_name(f".{file.name}.lock")):
            self._fetch(name, file, None)
            content = file.read_bytes()
        self.folder = self.folder / short_hash(content)
        self.folder.mkdir(exist_ok=True)
        return content

    def local_file(self, name: str) -> Path:
        """The path of an index, fetched if needed; indices are never removed."""
        os.close(self.open(name))
        return self.folder / name

    def open(self, name: str, size: int | None = None) -> int:
        """A descriptor to read the file `name`, which stays valid if that is removed. Raises `OSError`."""
        file = self.folder / name
        while True:
            try:
                descriptor = os.open(file, os.O_RDONLY)
            except FileNotFoundError:
                if not self.remote:
                    raise
                file.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(file.with_name(f".{file.name}.lock")):
                    if not file.is_file():
                        self._fetch(name, file, size)
            else:
                if self.remote:
                    os.utime(descriptor)  # used, so it stays
                return descriptor

    def _fetch(self, name: str, file: Path, size: int | None) -> None:
        """Fetch a file, with its lock held."""
        from fsspec.core import url_to_fs

        for library in ("botocore", "aiobotocore"):  # log where they found credentials, at every connection
            logging.getLogger(library).setLevel(logging.WARNING)
        self._make_room(size or 0)
        part = file.with_name(f".{file.name}{PART}")
        try:
            system, path = url_to_fs(f"{self.place}/{name}")
            system.get_file(path, str(part))
            if size is not None and (fetched := part.stat().st_size) != size:
                raise OSError(f"it came with {fetched:,} bytes instead of {size:,}")
            part.replace(file)
        except Exception as error:  # networks, credentials and clouds raise as many kinds
            raise OSError(f"{self.place}/{name} can't be fetched ({fetch_problem(error, self.place)})") from error
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Remove the partial files of killed processes, then the least recently used shards. Indices stay."""
        with FileLock(self.cache / ".room.lock"):
            used = list[tuple[float, int, Path]]()
            tops = [top for top in self.cache.iterdir() if NAME.fullmatch(top.name)]
            for file in (Path(folder, name) for top in tops for folder, _, names in os.walk(top) for name in names):
                if file.suffix in (".tar", ".bin", PART):
                    with suppress(FileNotFoundError):  # another process has just fetched it
                        used.append(((state := file.stat()).st_mtime, state.st_size, file))
            total, now = sum(taken for _, taken, _ in used), time.time()
            for mtime, taken, file in sorted(used):
                if now - mtime > ABANDONED if file.suffix == PART else total + size > self.limit:
                    file.unlink(missing_ok=True)
                    total -= taken


def short_hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
