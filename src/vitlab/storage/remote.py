"""Files of a packed data set in a folder, or in object storage, from which fsspec fetches them when needed; the Hub.

Fetched files are kept in a folder that all processes of a machine share, up to a size; the least recently used are
removed first. A file appears once it is complete, and one that another process reads may be removed meanwhile.
"""

import hashlib
import logging
import os
import re
from pathlib import Path

from vitlab.storage.atomic import atomic_path

HUB_TIMEOUT = 5  # seconds
CACHE = "~/.cache/vitlab/shards"
NAME = re.compile("[0-9a-f]{16}")  # of a set's folder in the cache: nothing else there is removed


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
    why = "has credentials or options in its URL, which each run's folder would show"
    return f"data_dir={scheme}://... {why}; remove them; docs/large_data.md says where credentials are looked for"


def url_problem(place: str) -> str | None:
    """Why a URL can't be read, without connecting; None if it may be readable, and for a folder."""
    if not is_remote(place):
        return None
    if (problem := secret_problem(place)) is not None:
        return problem
    import fsspec

    try:
        fsspec.get_filesystem_class(place.partition("://")[0])
    except (ImportError, ValueError) as error:  # a package that isn't installed; an unknown scheme
        return f"data_dir={place} can't be read: {error}; or copy the folder to this machine"
    return None


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
        if self.remote:
            self._fetch(name, again=True)
        content = (self.folder / name).read_bytes()
        if self.remote:
            self.folder = self.folder / short_hash(content)
            self.folder.mkdir(exist_ok=True)
        return content

    def local_file(self, name: str) -> Path:
        """The path of an index, fetched if needed; indices are never removed."""
        os.close(self.open(name))
        return self.folder / name

    def open(self, name: str, size: int | None = None) -> int:
        """A descriptor to read the file `name`, which stays valid if that is removed. Raises `OSError`."""
        while True:
            try:
                descriptor = os.open(self.folder / name, os.O_RDONLY)
            except FileNotFoundError:
                if not self.remote:
                    raise
                self._fetch(name, size)
            else:
                if self.remote:
                    os.utime(descriptor)  # used, so it stays
                return descriptor

    def _fetch(self, name: str, size: int | None = None, *, again: bool = False) -> None:
        """Fetch a file, unless another process has done so and not `again`."""
        from filelock import FileLock
        from fsspec.core import url_to_fs

        for library in ("botocore", "aiobotocore"):  # log where they found credentials, at every connection
            logging.getLogger(library).setLevel(logging.WARNING)
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file.name}.lock")):
            if file.is_file() and not again:
                return
            with FileLock(self.cache / ".room.lock"):
                self._make_room(size or 0)
            try:
                with atomic_path(file, suffix="part") as part:
                    system, path = url_to_fs(f"{self.place}/{name}")
                    system.get_file(path, str(part))
                    if size is not None and (fetched := part.stat().st_size) != size:
                        raise OSError(f"it came with {fetched:,} bytes instead of {size:,}")
            except Exception as error:  # networks, credentials and clouds raise as many kinds
                absent = isinstance(error, FileNotFoundError)
                text = "there is no such file" if absent else " ".join(str(error).split())[:300] or type(error).__name__
                remedy = "docs/large_data.md says where credentials are looked for"
                raise OSError(f"{self.place}/{name} can't be fetched ({text}); {remedy}") from error

    def _make_room(self, size: int) -> None:
        """Remove the least recently used shards. Indices stay, and files that are being fetched."""
        sets = [folder for folder in self.cache.iterdir() if NAME.fullmatch(folder.name)]
        shards = (file for folder in sets for file in folder.rglob("*") if file.suffix in (".tar", ".bin"))
        used = [((state := file.stat()).st_mtime, state.st_size, file) for file in shards]
        total = sum(taken for _, taken, _ in used)
        for _, taken, file in sorted(used):
            if total + size > self.limit:
                file.unlink(missing_ok=True)
                total -= taken


def short_hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def hub_problem() -> str:
    """Why the Hub can't be reached; empty if it can. One attempt, of a few seconds."""
    import ssl
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT).close()
    except OSError as error:
        reason = getattr(error, "reason", error)
        # an HTTP error is an answer; and the Hub's client may have its own certificates
        if not isinstance(error, urllib.error.HTTPError) and not isinstance(reason, ssl.SSLError):
            return f"{constants.ENDPOINT} can't be reached ({reason})"
    return ""
