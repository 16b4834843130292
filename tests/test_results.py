"""Results in experiments/README.md come from runs that are kept, whose commands still compose to what was trained."""

import json
from pathlib import Path
from typing import Any

import pytest

import results
from vitlab.config import paths


def test_the_tables_are_those_of_the_kept_runs() -> None:
    """After a change of the runs: `make results`."""
    assert results.README.read_text() == results.text(results.groups())


def test_kept_runs_can_be_composed_to_what_was_trained(capsys: pytest.CaptureFixture[str]) -> None:
    found = results.groups()
    assert found, "no run is kept"
    assert results.changes(found) == []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of experiments/, with a README.md that has the marks alone."""
    monkeypatch.setattr(paths, "EXPERIMENTS", tmp_path)
    monkeypatch.setattr(results, "README", tmp_path / "README.md")
    monkeypatch.setattr(results, "RUNS", tmp_path / "runs")
    results.README.write_text(f"# Experiments\n\n{results.BEGIN}old\n{results.END}\nThe end.\n")
    return tmp_path


def test_runs_are_kept_once_and_written_into_the_tables(twins: list[Path], place: Path) -> None:
    arguments = [str(twins[0]), str(twins[1]), str(twins[0])]
    assert results.main(arguments) == 0
    runs = results.read(place / "runs" / "default.jsonl")
    assert len(runs) == 2, "the first was named twice"
    trained = json.loads((twins[0] / "results.json").read_text())
    assert runs[0]["scores"] == {k: v for k, v in trained.items() if k.startswith(("val/", "test/"))}
    assert runs[0]["curves"]["train/loss"]
    assert str(twins[0].parent) not in json.dumps(runs)
    written = results.README.read_text()
    assert written.startswith("# Experiments\n")
    assert written.endswith(f"{results.END}\nThe end.\n")
    assert "old" not in written
    mean = 100 * trained["test/acc"]
    assert f"| 2 | {mean:.2f} ± 0.00 | {mean:.2f} to {mean:.2f} |" in written
    assert all((place / name).read_bytes().startswith(b"\x89PNG") for name in ("results.png", "curves.png"))


@pytest.mark.parametrize(
    ("key", "value", "reported"),
    [
        ("optimizer.lr", 0.123, "optimizer.lr was 0.123, is "),
        ("model.gone", 3, "model.gone was 3, is gone"),
        ("data.val_fraction", None, "data.val_fraction was None, is 0.1005"),
    ],
)
def test_a_command_that_trains_something_else_now_is_refused(
    key: str, value: Any, reported: str, twins: list[Path], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.keep(twins[0])
    (run,) = results.read(file := place / "runs" / "default.jsonl")
    if value is None:
        del run["config"][key]  # as of a setting that is new; the command doesn't set it to its default
    else:
        run["config"][key] = value
    file.write_text(json.dumps(run) + "\n")
    before = results.README.read_text()
    assert results.main([]) == 1
    assert reported in capsys.readouterr().err
    assert results.README.read_text() == before


def test_a_new_setting_with_its_default_changes_nothing(twins: list[Path], place: Path) -> None:
    results.keep(twins[0])
    (run,) = results.read(file := place / "runs" / "default.jsonl")
    del run["config"]["model.norm_eps"]
    file.write_text(json.dumps(run) + "\n")
    assert results.main([]) == 0


def test_a_run_that_has_not_finished_is_refused(twins: list[Path], place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "results.json"):
        (run / name).write_text((twins[0] / name).read_text().replace('"finished"', '"crashed"'))
    with pytest.raises(ValueError, match=r"run is not finished but crashed: only finished runs are kept"):
        results.keep(run)
