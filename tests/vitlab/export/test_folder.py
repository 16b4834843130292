"""A folder appears complete or not at all, and only an export is ever replaced."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vitlab.export.folder import RECORD, atomic_folder, folder_problem, write_json, write_tensors, write_text


def write_export(out: Path, *names: str) -> None:
    """Write an export's record, and the files that it lists."""
    out.mkdir()
    for name in names:
        (out / name).write_text("1")
    (out / RECORD).write_text(json.dumps({"sha256": dict.fromkeys(names, "0")}))


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
    write_export(out := tmp_path / "out", "model.safetensors")
    with atomic_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("2")
    assert contents(tmp_path) == {"out"}
    assert contents(out) == {"new"}


def test_what_an_export_did_not_write_is_never_removed(tmp_path: Path) -> None:
    write_export(out := tmp_path / "out", "model.safetensors")
    (out / "README.md").write_text("the card")
    for kind in ("file", "folder", "link"):
        other = out / "thesis.tex"
        if kind == "file":
            other.write_text("1")
        elif kind == "folder":
            other.mkdir()
        else:
            other.symlink_to(tmp_path)
        for overwrite in (False, True):
            assert "has an export, and thesis.tex of yours; move what is yours" in (
                folder_problem(out, overwrite) or ""
            )
        other.rmdir() if kind == "folder" else other.unlink()
    assert folder_problem(out, True) is None


def test_a_file_that_arrives_while_an_export_is_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_export(out := tmp_path / "out", "model.safetensors")
    monkeypatch.setattr("vitlab.export.folder.folder_problem", lambda *_: None)  # it was checked before
    (out / "thesis.tex").write_text("1")
    with atomic_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("2")
    assert contents(out) == {"new"}
    (former,) = contents(tmp_path) - {"out"}
    assert contents(tmp_path / former) == {"thesis.tex"}
    assert f"{former}, the former export, isn't removed" in caplog.text


@pytest.mark.parametrize("record", [b"{}", b"", b"\xff", b"[1]", b'{"sha256": ["thesis.tex"]}', b'{"sha256": {}}'])
def test_a_record_that_lists_no_files_makes_no_folder_an_export(tmp_path: Path, record: bytes) -> None:
    (tmp_path / RECORD).write_bytes(record)
    (tmp_path / "thesis.tex").write_text("1")
    assert "is not an export (it has no export.json that lists its files)" in (folder_problem(tmp_path, True) or "")


@pytest.mark.parametrize("target", ["folder", "nothing"])
def test_a_link_is_not_written_through(tmp_path: Path, target: str) -> None:
    write_export(tmp_path / "folder", "model.safetensors")
    (out := tmp_path / "out").symlink_to(target)
    problem = f"out={out} is a link; name the folder that it leads to, {tmp_path / target}, or another one"
    assert folder_problem(out, True) == folder_problem(out, False) == problem


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
    out.rmdir()
    write_export(out)
    (out / RECORD).write_text('{"sha256": {"model.onnx": "0"}}')
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
