"""Where the files of a packed data set lie: in a folder, or in object storage, from which they are fetched when needed.

Fetching is LitData's, with its credentials and its schemes (s3://, gs://, azure://, r2://, hf://, and local:/FOLDER for
another disk). What is fetched is kept in a folder that all processes of a machine share, up to a size; what wasn't used
for longest goes first. A file comes into its place whole, and one that another process reads may be removed meanwhile.
"""

import hashlib
import importlib.util
import logging
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

INSTALL = "pip install -e '.[shards]'"
CACHE = "~/.cache/vitlab/shards"
SCHEMES = ("s3://", "gs://", "azure://", "r2://", "hf://", "local:")
CREDENTIALS = {  # where those of a scheme are looked for
    "s3://": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or ~/.aws/credentials",
    "gs://": "GOOGLE_APPLICATION_CREDENTIALS in the environment, the file with a service account's key",
}
PART = ".part"  # ends the name of a folder in which a file is fetched


def is_remote(place: str) -> bool:
    """Whether a place is none of this machine's folders."""
    return "://" in place or place.startswith("local:")


def problem(place: str) -> str | None:
    """Why a place can't be read, whatever lies there; None where it may be."""
    if is_remote(place) and not place.startswith(SCHEMES):
        there = ", ".join(SCHEMES)
        return f"data_dir={place}: {place.partition('://')[0]}:// is none of {there}; copy the folder to this machine"
    if is_remote(place) and not_installed("litdata"):
        return f"data_dir={place} is read with the package litdata, which isn't installed: {INSTALL}"
    return None


def reason(error: Exception, place: str) -> str:
    """Why something could not be fetched, in a line: a library's error without what it dumps, and what to do."""
    text = " ".join(str(error).split()).partition(" Debug source:")[0]
    scheme = next((scheme for scheme in SCHEMES if place.startswith(scheme)), "")
    if "credential" in text.lower() and scheme in CREDENTIALS:
        return f"there are no valid credentials for {scheme}; set {CREDENTIALS[scheme]}"
    return text[:300] or type(error).__name__


def not_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is None


def lock(file: Path) -> FileLock:
    """Who fetches a file holds this, on whichever machine; it ends with its process."""
    return FileLock(file.with_name(f".{file.name}.lock"))


def left(part: Path) -> int:
    """Removes a download that nobody goes on with; the bytes of one that somebody does."""
    try:
        with lock(part.with_name(part.name[1 : -len(PART)])).acquire(timeout=0):
            shutil.rmtree(part, ignore_errors=True)
            return 0
    except Timeout:
        size = 0
        for file in part.glob("*"):
            with suppress(FileNotFoundError):
                size += file.stat().st_size
        return size


class Storage:
    """The files of one data set, by their names within it.

    Args:
        place: A folder, or a URL of one.
        cache_dir: Where fetched files are kept; None: in the user's cache.
        cache_gb: About how many gigabytes of them.
    """

    def __init__(self, place: str, *, cache_dir: str | None = None, cache_gb: float = 100.0) -> None:
        self.place, self.remote, self.limit = place.rstrip("/"), is_remote(place), cache_gb * 1e9
        if self.remote:
            if (wrong := problem(place)) is not None:
                raise ValueError(wrong)
            digest = hashlib.blake2b(self.place.encode(), digest_size=8).hexdigest()
            self.cache = Path(cache_dir or CACHE).expanduser()
            self.folder = self.cache / digest
            self.folder.mkdir(parents=True, exist_ok=True)
        else:
            self.folder = Path(self.place)

    def described(self, name: str) -> bytes:
        """The content of the file that describes the data set, as it is now; another description has files of its own.

        Raises `OSError`.
        """
        file = self.folder / name
        if not self.remote:
            return file.read_bytes()
        with lock(file):
            self._fetch(name, file, None)
            content = file.read_bytes()
        self.folder = self.folder / hashlib.blake2b(content, digest_size=8).hexdigest()
        self.folder.mkdir(exist_ok=True)
        return content

    def local(self, name: str, *, size: int | None = None) -> Path:
        """A file of this machine with the content of the file `name`; fetched where it has to be.

        Raises `OSError` where it can't be, or has another size than it should.
        """
        file = self.folder / name
        if not self.remote:
            return file
        while True:
            now = time.time()
            with suppress(FileNotFoundError):
                os.utime(file, (now, now))  # used, so it stays
                return file
            file.parent.mkdir(parents=True, exist_ok=True)
            with lock(file):
                if not file.is_file():
                    self._fetch(name, file, size)

    def open(self, name: str, *, size: int) -> int:
        """A descriptor of the file `name`, to read it, which stays good where that is removed. Raises `OSError`."""
        while True:
            file = self.local(name, size=size)
            try:
                return os.open(file, os.O_RDONLY)
            except FileNotFoundError:  # another process made room just now
                if not self.remote:
                    raise

    def _fetch(self, name: str, file: Path, size: int | None) -> None:
        """Fetches a file into its place; to be called with its lock held, by which others know that it goes on."""
        from litdata.streaming.downloader import get_downloader

        logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells where it found credentials, again and again
        self._make_room(size or 0)
        part = file.with_name(f".{file.name}{PART}")  # a folder: downloaders put files of their own beside theirs
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        temporary = part / file.name
        try:
            get_downloader(self.place, str(part), []).download_file(f"{self.place}/{name}", str(temporary))
            if not temporary.is_file():
                raise OSError("there is nothing of that name")
            if size is not None and temporary.stat().st_size != size:
                raise OSError(f"it came with {temporary.stat().st_size:,} bytes instead of {size:,}")
            temporary.replace(file)
        except Exception as error:  # of networks, credentials and clouds, as many kinds
            raise OSError(f"{self.place}/{name} can't be fetched ({reason(error, self.place)})") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _make_room(self, size: int) -> None:
        """Removes what a killed download left, then what wasn't used for longest.

        Indices, which are needed at every start, stay. What is being fetched counts as far as it has come.
        """
        with FileLock(self.cache / ".room.lock"):
            kept, parts = list[Path](), list[Path]()
            for folder, folders, files in os.walk(self.cache):
                parts += [Path(folder, name) for name in folders if name.endswith(PART)]
                folders[:] = [name for name in folders if not name.endswith(PART)]
                kept += [Path(folder, name) for name in files if name.endswith((".bin", ".tar"))]
            states = [(file.stat(), file) for file in kept]  # nobody else removes any
            used = sorted((state.st_mtime, state.st_size, file) for state, file in states)
            total = sum(taken for _, taken, _ in used) + sum(map(left, parts))
            for _, taken, file in used:
                if total + size <= self.limit:
                    break
                file.unlink(missing_ok=True)
                total -= taken
