"""results.json and train.log say how a run ended, what it depends on, and how to resume it."""

import logging
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from vitlab.config.schema import Node
from vitlab.distributed import signals
from vitlab.runs import record
from vitlab.runs.folder import (
    read_results,
    write_config,
)

# ---------------------------------------------------------------------------------------------------------- record


def test_a_run_is_running_until_it_is_finished(tmp_path: Path) -> None:
    with record.record_run(tmp_path, first_rank=True) as results:
        assert read_results(tmp_path)["status"] == "running"
        results["test/acc"] = 0.5
    found = read_results(tmp_path)
    assert (found["status"], found["test/acc"]) == ("finished", 0.5)
    assert found["seconds"] >= 0
    assert "error" not in found


@pytest.mark.parametrize("first_rank", [True, False])
@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (ValueError("why"), "ValueError: why"),
        (KeyboardInterrupt("why"), "interrupted"),
        (SystemExit(1), "interrupted"),
    ],
)
def test_a_run_that_fails_in_any_rank_has_crashed_and_says_why(
    error: BaseException, reported: str, first_rank: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(type(error)), record.record_run(tmp_path, first_rank=True):  # noqa: SIM117
        with record.record_run(tmp_path, first_rank=first_rank):
            raise error
    found = read_results(tmp_path)
    assert (found["status"], found["error"]) == ("crashed", reported)
    assert found["commit"] == record.git_commit()
    assert caplog.records[-1].exc_info is not None


def test_the_first_reason_for_a_crash_stays(tmp_path: Path) -> None:
    def ended() -> None:
        record.record_crash(tmp_path, "ValueError: in rank 1")
        raise SystemExit("the launcher ends the others")

    with pytest.raises(SystemExit), record.record_run(tmp_path, first_rank=True):
        ended()
    record.record_crash(tmp_path, "ended with status 1")
    assert read_results(tmp_path)["error"] == "ValueError: in rank 1"


def test_only_the_first_rank_records_a_good_end(tmp_path: Path) -> None:
    with record.record_run(tmp_path, first_rank=False):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_record_says_what_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["src/train.py", "ignored"])
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- sweep=mine\n- model=vit_s16\n- name='a b'\n")
    found = record.provenance(tmp_path)
    assert found["command"].startswith("python src/train.py model=vit_s16 ")
    assert shlex.split(found["command"])[3:] == ["name='a b'"], "it can be pasted into a shell, and is no sweep"
    assert {"python", "torch", "lightning", "timm", "numpy"} <= found["versions"].keys()


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *who, "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_the_sources_and_reports_of_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "__file__", str(tmp_path / "runs.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert record.git_commit.__wrapped__() is None, "no repository"
    (tmp_path / "runs.py").write_text("one")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "runs.py")
    git(tmp_path, "commit", "-qm", "one")
    assert record.git_commit.__wrapped__() == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "new.txt").touch()
    assert record.git_commit.__wrapped__() == git(tmp_path, "rev-parse", "HEAD"), "what git doesn't know is no source"
    (tmp_path / "runs.py").write_text("two")
    assert record.git_commit.__wrapped__() == git(tmp_path, "rev-parse", "HEAD") + "+changes"


# ------------------------------------------------------------------------------------------------------------- log


def test_messages_and_warnings_go_to_the_console_and_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("vitlab.somewhere")
    with warnings.catch_warnings(), record.log_to(tmp_path / "train.log", first_rank=True):
        warnings.simplefilter("always")
        log.info("a message")
        log.debug("a detail")
        warnings.warn("a warning", stacklevel=1)
    log.warning("afterwards")
    text = (tmp_path / "train.log").read_text()
    assert "INFO vitlab.somewhere: a message" in text
    assert "a warning" in text
    assert "a detail" not in text + capsys.readouterr().err
    assert "afterwards" not in text


def test_the_console_shows_messages_alone_and_each_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = [*root.handlers], root.level
    with record.log_to(tmp_path / "train.log", first_rank=True):
        logging.getLogger("vitlab.x").info("a message")
        try:
            raise ValueError("inside")
        except ValueError as error:
            logging.getLogger("vitlab.x").error("it failed", exc_info=error)
    assert capsys.readouterr().err == "a message\nit failed\n"
    assert "Traceback" in (tmp_path / "train.log").read_text()
    assert ([*root.handlers], root.level) == before, "as it was"


def test_other_ranks_report_errors_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with record.log_to(tmp_path / "train.log", first_rank=False):
        logging.getLogger("vitlab.x").warning("a warning")
        assert not (tmp_path / "train.log").exists()
        logging.getLogger("vitlab.x").error("an error")
    assert capsys.readouterr().err == "an error\n"
    assert "an error" in (tmp_path / "train.log").read_text()


def test_a_log_that_is_resumed_is_appended_to(tmp_path: Path) -> None:
    for number in (1, 2):
        with record.log_to(tmp_path / "train.log", first_rank=True):
            logging.getLogger("vitlab.x").info("start %d", number)
    assert [line[-7:] for line in (tmp_path / "train.log").read_text().splitlines()] == ["start 1", "start 2"]


@pytest.mark.parametrize("outcome", ["preempted", "interrupted"])
def test_a_run_that_was_asked_to_stop_ends_as_that_and_not_as_a_crash(outcome: signals.Outcome, tmp_path: Path) -> None:
    def trained() -> None:
        with record.record_run(tmp_path, first_rank=True) as results:
            results["steps"] = 3
            raise signals.StopRequested(outcome)

    with pytest.raises(signals.StopRequested):
        trained()
    found = read_results(tmp_path)
    assert (found["status"], found["steps"]) == (outcome, 3)
    assert "error" not in found


@pytest.mark.parametrize(
    ("config", "reported"),
    [
        ({"resume": None}, "resume={} resumes it"),
        ({"shard_images": 9, "out": "x"}, "the same command resumes it"),
        ({"shard_images": 9, "out": None}, "the same command starts from the beginning; the output so far is in {}"),
        ({"rounds": 9}, "the same command starts from the beginning; the output so far is in {}"),
    ],
)
def test_what_was_stopped_says_how_to_resume(config: Node, reported: str, tmp_path: Path) -> None:
    write_config(tmp_path, config)
    assert record.restart_hint(tmp_path) == reported.format(tmp_path)


def test_a_rank_killed_by_a_signal_goes_before_what_the_others_saw_of_it(tmp_path: Path) -> None:
    record.record_crash(tmp_path, "RuntimeError: connection closed by peer")
    record.record_crash(tmp_path, "rank 1 of 2 was killed by SIGKILL", first=True)
    assert read_results(tmp_path)["error"] == "rank 1 of 2 was killed by SIGKILL"


def test_what_a_user_can_do_about_a_run_that_ended_too_early(tmp_path: Path) -> None:
    assert record.resume_hint(tmp_path) == "no checkpoint was made yet"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert record.resume_hint(tmp_path) == f"resume={tmp_path} resumes from the last checkpoint"


def test_names_reach_neither_the_log_nor_the_console_raw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = b"\x1b[2J caf\xe9.png".decode("utf-8", "surrogateescape")
    with record.log_to(tmp_path / "train.log", first_rank=True):
        logging.getLogger("vitlab").warning("skipped %s of the class été", name)
        try:
            raise ValueError(name)
        except ValueError:
            logging.getLogger("vitlab").exception("failed")
    log, shown = (tmp_path / "train.log").read_text(encoding="utf-8"), capsys.readouterr().err
    for text in (log, shown):
        assert "skipped \\x1b[2J caf\\udce9.png of the class été" in text
        assert "\x1b" not in text
    assert "ValueError: \\x1b[2J caf\\udce9.png" in log
    assert "Logging error" not in shown
