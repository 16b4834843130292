"""Images that are rows of larger files.

A `Row` takes the place of a file's path: a string, its name in messages, that can read its bytes. A file is opened when
its first row is read, in each process.
"""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class InvalidImage(OSError):
    """The image is at fault (damaged, missing in its row, no file), not the disk, network or memory."""


class Row(str):
    """The name of an image within a file, and the rows that read it."""

    rows: "Rows"
    number: int  # of the split's row

    def read(self) -> bytes:
        return self.rows.read(self.number)


class Rows(Sequence[str], ABC):
    """The rows `chosen` (int64 [n]) of one split of a data set; their names begin with `place`."""

    split_by_block = True  # whether a part is held out in complete blocks

    def __init__(self, place: str, chosen: "Tensor") -> None:
        self.place, self.chosen = place, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # no slices
        number = int(self.chosen[index])
        row = Row(f"{self.place}/{number}")
        row.rows, row.number = self, number
        return row

    @property
    def blocks(self) -> "Tensor | None":
        """The block of each row, int64 [n]; None if rows are read one by one."""
        return None

    def digest(self) -> bytes:
        """A hash of these images, independent of where they are stored, without reading all of them."""
        return hashlib.blake2b(self.chosen.numpy().tobytes() + self.content(), digest_size=16).digest()

    def subset(self, indices: "Tensor") -> "Rows":
        """The rows at `indices` (int64 [m]) of these, in that order."""
        part = copy.copy(self)
        part.chosen = self.chosen[indices]
        return part

    @abstractmethod
    def read(self, row: int) -> bytes:
        """The encoded image of a row of the split. Raises `OSError`."""

    @abstractmethod
    def content(self) -> bytes:
        """Numbers that depend on the content of all images of the split and are cheap to read."""
