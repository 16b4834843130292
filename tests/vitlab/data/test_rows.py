"""Rows of larger files, as the names of images."""

import pytest
import torch
from torch import Tensor

from vitlab.data.rows import Row, Rows


class Letters(Rows):
    """A file that holds the letters of a text."""

    text = "abcdefgh"

    def __init__(self, chosen: Tensor) -> None:
        super().__init__("letters/train", chosen)

    def subset(self, indices: Tensor) -> "Letters":
        return Letters(self.chosen[indices])

    def read(self, row: int) -> bytes:
        return self.text[row].encode()

    def content(self) -> bytes:
        return bytes(len(self.text))


def test_a_row_is_a_name_that_can_be_read_and_a_part_of_them_keeps_its_names() -> None:
    rows = Letters(torch.arange(8))
    assert (len(rows), rows[0], rows[-1]) == (8, "letters/train/0", "letters/train/7")
    with pytest.raises(IndexError):
        rows[8]
    part = rows.subset(torch.tensor([6, 1, 2])).subset(torch.tensor([2, 0]))
    assert list(part) == ["letters/train/2", "letters/train/6"]
    assert [row.read() for row in part if isinstance(row, Row)] == [b"c", b"g"]
