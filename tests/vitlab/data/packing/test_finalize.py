"""The end of packing: broken images are named, left out and listed, or replaced; the set is whole or isn't there."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import image_fixtures
from vitlab.data.packing import finalize, mtimes, pack
from vitlab.data.sets.shards import shards

Packed = Any
SKIP: Any = {"on_error": "skip", "max_skipped": 0.9}


@pytest.fixture
def broken(drawn: Path, tmp_path: Path) -> Path:
    """Pictures of which two can't be decoded."""
    for file in drawn.rglob("*.*"):
        copy = tmp_path / "broken" / file.relative_to(drawn)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    for name in ("train/digit 0/0.png", "val/digit 0/72.png"):
        file = next(iter(sorted((tmp_path / "broken" / name).parent.glob("*.png"))))
        file.write_bytes(file.read_bytes()[:60])
    return tmp_path / "broken"


def test_broken_images_are_all_named_then_left_out_and_listed_or_replaced(broken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given: Any = {"name": "broken", "processes": 0}
    with pytest.raises(
        ValueError,
        match=r"2 of 94 images .* can't be decoded.* Replace them, or leave them out with data\.on_error=skip, and",
    ) as caught:
        pack.pack(image_fixtures.source(broken), image_fixtures.SETTINGS, out, **given)
    assert str(caught.value).count("\n  - ") == 2
    assert "it is truncated: the end of the PNG file is missing" in str(caught.value)
    assert not (out / "prepared.json").exists()
    with pytest.raises(ValueError, match=r"\(2\.13%\) can\'t be decoded.* more than data\.max_skipped=0\.01 allows"):
        pack.pack(image_fixtures.source(broken), image_fixtures.SETTINGS, out, on_error="skip", **given)
    found = pack.pack(image_fixtures.source(broken), image_fixtures.SETTINGS, out, on_error="skip", max_skipped=0.1, **given)
    assert (found["broken"], found["train/images"], found["test/images"]) == (2, 73, 19)
    rows = (out / finalize.BROKEN).read_text().splitlines()
    assert rows[0] == "path,split,reason"
    assert [row.split(",")[1] for row in rows[1:]] == ["train", "test"]
    assert len(shards(data_dir=str(out)).train) == 73


def test_replaced_images_are_packed_by_the_same_command(
    broken: Path, drawn: Path, packed: Packed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="can't be decoded"):
        image_fixtures.pack(broken, out)
    for file in drawn.rglob("*.*"):
        (broken / file.relative_to(drawn)).write_bytes(file.read_bytes())
    image_fixtures.pack(broken, out)
    found, known = image_fixtures.content(out), image_fixtures.content(packed())
    assert found.pop(mtimes.NAME) != known.pop(mtimes.NAME), "the files have other times"
    assert found == known, "wherever the folder lies"


def test_a_class_of_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (9, 9), (number * 20, 9, 9)).save(tmp_path / "in" / name / f"{number}.png")
    for file in (tmp_path / "in" / "b").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match="no image of the class 'b' in train can be decoded"):
        pack.pack(image_fixtures.source(tmp_path / "in"), image_fixtures.SETTINGS, tmp_path / "out", **SKIP, name="x", processes=0)
