"""A folder appears complete or not at all, and only an export is ever replaced."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vitlab.export.folder import RECORD, atomic_folder, folder_problem, write_json, write_tensors, write_text


def contents(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_the_folder_comes_into_its_place_when_all_is_written(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with atomic_folder(out, overwrite=False) as folder:
        write_json(folder / RECORD, {"café": 1})
        assert not out.exists()
    assert contents(tmp_path / "deep") == {"out"}
    assert json.loads((out / RECORD).read_text()) == {"café": 1}


def test_nothing_is_left_of_one_that_failed_and_the_former_stays(tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    (out / "former").write_text("1")

    def interrupted() -> None:
        with atomic_folder(out, overwrite=True) as folder:
            (folder / "new").write_text("2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(tmp_path) == {"out"}
    assert contents(out) == {"former"}


def test_a_former_export_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    (out / RECORD).write_text("{}")
    with atomic_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("2")
    assert contents(tmp_path) == {"out"}
    assert contents(out) == {"new"}


def test_what_has_come_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def late() -> None:
        with atomic_folder(out, overwrite=True) as folder:
            (folder / "new").write_text("2")
            out.mkdir()
            (out / "thesis.tex").write_text("1")

    with pytest.raises(FileExistsError, match="is not an export"):
        late()
    assert contents(tmp_path) == {"out"}
    assert contents(out) == {"thesis.tex"}


def test_an_export_that_is_there_wants_overwrite_and_anything_else_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert folder_problem(out, False) is None
    out.mkdir()
    assert folder_problem(out, False) is None, "an empty folder"
    (out / RECORD).write_text("{}")
    assert "overwrite=true replaces it" in (folder_problem(out, False) or "")
    assert folder_problem(out, True) is None
    (out / RECORD).rename(out / "thesis.tex")
    for overwrite in (False, True):
        assert "is not an export" in (folder_problem(out, overwrite) or "")
    assert "is not an export" in (folder_problem(out / "thesis.tex", True) or "")


def test_views_are_written_as_what_they_show_and_everybody_who_may_can_read_them(tmp_path: Path) -> None:
    numbers = torch.arange(12.0).view(3, 4)
    state = {"one": numbers[0], "two": numbers[1:].t()}
    write_tensors(tmp_path / "a.safetensors", state)
    write_text(tmp_path / "a.txt", "text")
    found = load_file(tmp_path / "a.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {k: v.tolist() for k, v in state.items()}
    modes = {(tmp_path / f"a.{ending}").stat().st_mode for ending in ("safetensors", "txt")}
    assert len(modes) == 1
