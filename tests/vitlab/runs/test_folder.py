"""A run folder keeps its configuration and results, and problems with its place are reported."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from hostile_files import alias_bomb, merge_bomb
from vitlab.runs import folder
from vitlab.runs.folder import (
    UnreadableRun,
    data_without_scan,
    read_config,
    read_metrics,
    read_results,
    read_yaml,
    write_config,
    write_problem,
)

CONFIG: dict[str, Any] = {"image_size": 8, "name": "digits", "optimizer": {"lr": 0.1}, "logger": {"csv": None}}


# --------------------------------------------------------------------------------------------------- configuration


def test_a_configuration_is_read_as_it_was_written_in_its_order(tmp_path: Path) -> None:
    write_config(tmp_path / "a" / "b", CONFIG)
    assert read_config(tmp_path / "a" / "b") == CONFIG
    assert list(read_config(tmp_path / "a" / "b")) == list(CONFIG)
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["config.yaml"]


def test_what_was_scanned_is_not_scanned_again(tmp_path: Path) -> None:
    listed = {"scan": "none", "skipped_file": str(tmp_path / "skipped.csv")}
    assert data_without_scan({"scan": "full", "skipped_file": "x", "seed": 0}, tmp_path) == {**listed, "seed": 0}
    assert data_without_scan({"seed": 0}, tmp_path) == {"seed": 0}, "a module of somebody else's has no scan"


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"run={tmp_path} is not a run folder: it has no config\.yaml"):
        read_config(tmp_path)


def test_results_that_are_not_there_yet_are_empty(tmp_path: Path) -> None:
    assert read_results(tmp_path) == {}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]", b'{"status": []}', b'{"status": "fini', b"[" * 100_000])
def test_damaged_files_are_told_from_missing_ones(tmp_path: Path, content: bytes) -> None:
    for name in ("results.json", "config.yaml"):
        (tmp_path / name).write_bytes(content)
    results = read_results(tmp_path)
    assert results["status"] == "unreadable"
    assert results["error"].startswith("results.json is damaged (")
    if b"status" not in content:
        with pytest.raises(UnreadableRun, match=r"config\.yaml is damaged \("):
            read_config(tmp_path)


def test_rows_of_metrics_that_are_not_numbers_are_empty(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_bytes(b"step,a\n1,2.0\n2,\xff\n3,nan\n4,\n5,6,7\n8\n9,1\n10,0.12")
    good = [{"step": "1", "a": "2.0"}, {}, {"step": "3", "a": "nan"}, {"step": "4", "a": ""}]
    rows = [*good, {}, {}, {"step": "9", "a": "1"}]
    assert list(read_metrics(file)) == rows, "the last number may have been longer"
    file.write_bytes(b'step,a\n1,2.0\n2,"' + b"x" * 200_000)
    assert list(read_metrics(file)) == [good[0]]


def test_a_folder_that_can_be_made_is_no_problem_and_isnt_made(tmp_path: Path) -> None:
    assert write_problem("hydra.run.dir", tmp_path / "a" / "b") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_a_folder_without_permission_is_reported(tmp_path: Path) -> None:
    (locked := tmp_path / "locked").mkdir(mode=0o500)
    words = f"hydra.run.dir={locked / 'a'} can't be written to (Permission denied); name another folder"
    assert write_problem("hydra.run.dir", locked / "a") == words


def read_written(tmp_path: Path, content: str | bytes) -> object:
    (file := tmp_path / "config.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    return read_yaml(file)


@pytest.mark.parametrize(
    "value", [{"a": [1, 2.5, None, True, "ü"], "b": {"c": {}}}, [], "text", None], ids=["mapping", "list", "text", "-"]
)
def test_what_was_written_is_read(value: object, tmp_path: Path) -> None:
    assert read_written(tmp_path, yaml.safe_dump(value)) == value
    assert read_written(tmp_path, yaml.safe_dump(value)) == yaml.safe_load(yaml.safe_dump(value))


def test_an_empty_file_is_none(tmp_path: Path) -> None:
    assert read_written(tmp_path, "") is None


def test_the_aliases_of_a_list_that_is_used_twice_are_read(tmp_path: Path) -> None:
    shared = [1, 2]
    text = yaml.safe_dump({"a": shared, "b": shared})
    assert "*id001" in text
    assert read_written(tmp_path, text) == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (alias_bomb(), "it has more than 100,000 values"),
        (merge_bomb(), "more than 100,000 values"),
        ("a: &a [*a]", "more than 100,000 values"),
        ("a: &a {b: *a}", "more than 100,000 values"),
        ("[" * 5000, r"config\.yaml is damaged"),
        (b"\xff\xfe\x00a", r"config\.yaml is damaged"),
        ("a: 2024-13-45", r"config\.yaml is damaged"),
        ("a: [", "expected node content"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: 1\n--- \nb: 2", "expected a single document"),
    ],
)
def test_anything_else_is_one_kind_of_error(content: str | bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableRun, match=words):
        read_written(tmp_path, content)


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "MOST_BYTES", 10)
    with pytest.raises(UnreadableRun, match=r"config\.yaml is damaged \(it has 20 bytes; a run's has fewer than 10"):
        read_written(tmp_path, "a: " + "x" * 17)


def test_overrides_cut_within_a_line_are_damaged(tmp_path: Path) -> None:
    file = tmp_path / folder.OVERRIDES
    file.parent.mkdir()
    file.write_text("- seed=1\n- trainer.accelerator=cpu\n")
    assert folder.read_overrides(tmp_path) == ["seed=1", "trainer.accelerator=cpu"]
    file.write_text("- seed=1\n- trainer.accelerator=")
    with pytest.raises(folder.UnreadableRun, match=r"overrides\.yaml is damaged \(it has no end\)"):
        folder.read_overrides(tmp_path)
