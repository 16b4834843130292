"""A job: its log and its end are kept, wherever it runs."""

import logging
from pathlib import Path

import pytest
from hydra._internal.utils import run_and_report

from vitlab.config.schema import Node
from vitlab.jobs import run
from vitlab.runs import folder, lock


def counted(run_dir: str, **settings: object) -> Node:
    """A program without a network."""
    logging.getLogger("vitlab").warning("counted in %s", run_dir)
    return {"count": len(settings)}


def failing(**_: object) -> Node:
    raise ValueError("why")


def test_what_runs_in_this_process_leaves_its_results_and_its_log(tmp_path: Path) -> None:
    run.start_job("train", counted, tmp_path / "never.py", {"run_dir": str(tmp_path), "seed": 3}, sweep=False)
    found = folder.read_results(tmp_path)
    assert (found["status"], found["count"]) == ("finished", 1)
    assert f"counted in {tmp_path}" in (tmp_path / "train.log").read_text()


def test_an_error_is_printed_in_a_line_and_its_traceback_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run.run_here("train", failing, tmp_path, {"resume": None})
    assert stopped.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"train failed; the traceback is in {tmp_path}/train.log; no checkpoint was made yet"
    assert "Traceback" in (tmp_path / "train.log").read_text()
    assert folder.read_results(tmp_path)["error"] == "ValueError: why"


def test_what_fails_alike_in_two_ranks_is_printed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit):
            run.run_here("train", failing, tmp_path, {"resume": None})
        printed.append(capsys.readouterr().err)
    assert printed[0].startswith("ValueError: why\n")
    assert printed[0].count("train failed; the traceback is in") == 1
    assert printed[1] == ""
    assert "Traceback" in (tmp_path / "train.rank1.log").read_text(), "each has its own in its log"


def test_a_folder_that_somebody_trains_in_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lock.run_lock(tmp_path, "rank0"), pytest.raises(SystemExit):
        run.run_here("train", counted, tmp_path, {})
    assert f"train: {tmp_path} is being trained in by" in capsys.readouterr().err
    assert not (tmp_path / folder.RESULTS).exists()


def test_a_sweep_s_failed_job_without_a_trainer_is_printed_in_lines_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (entry := tmp_path / "prepare.py").write_text("import sys; sys.exit(1)")
    with pytest.raises(SystemExit) as stopped:  # as Hydra runs and shows it
        run_and_report(lambda: run.start_job("prepare", counted, entry, {"run_dir": str(tmp_path)}, sweep=True))
    assert stopped.value.code == 1
    printed = capsys.readouterr().err
    assert printed.startswith("the process ended with status 1\n")
    assert "Traceback" not in printed
    assert folder.read_results(tmp_path)["error"] == "the process ended with status 1"
