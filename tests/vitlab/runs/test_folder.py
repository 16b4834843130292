"""What a run folder remembers: its configuration, its end, where it came from, and whether it can go on."""

import json
import logging
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vitlab.config.schema import Node
from vitlab.distributed import signals
from vitlab.runs import folder as runs_folder
from vitlab.runs import lock, record
from vitlab.runs.folder import (
    RESULTS,
    __file__,
    data_without_scan,
    read_config,
    read_results,
    write_config,
    write_problem,
)
from vitlab.storage import atomic

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


def test_a_kill_while_writing_leaves_the_old_text(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text("old")
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; from pathlib import Path; from vitlab.runs.folder import replace\n"
    )
    code += f"file, n = Path({str(file)!r}), 10**6\nwhile True: replace(file, 'a' * n); replace(file, 'b' * n)"
    process = subprocess.Popen([sys.executable, "-c", code])
    while file.read_text() == "old":
        time.sleep(0.01)
    for _ in range(50):
        text = file.read_text()
        assert text in ("a" * 10**6, "b" * 10**6)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert file.read_text() in ("a" * 10**6, "b" * 10**6)


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
    ("error", "told"),
    [
        (ValueError("why"), "ValueError: why"),
        (KeyboardInterrupt("why"), "interrupted"),
        (SystemExit(1), "interrupted"),
    ],
)
def test_a_run_that_fails_in_any_rank_has_crashed_and_says_why(
    error: BaseException, told: str, first_rank: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(type(error)), record.record_run(tmp_path, first_rank=True):  # noqa: SIM117
        with record.record_run(tmp_path, first_rank=first_rank):
            raise error
    found = read_results(tmp_path)
    assert (found["status"], found["error"]) == ("crashed", told)
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


def test_the_commit_is_the_sources_and_tells_of_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_folder, "__file__", str(tmp_path / "runs.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert record.git_commit() is None, "no repository"
    (tmp_path / "runs.py").write_text("one")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "runs.py")
    git(tmp_path, "commit", "-qm", "one")
    assert record.git_commit() == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "new.txt").touch()
    assert record.git_commit() == git(tmp_path, "rev-parse", "HEAD"), "what git doesn't know is no source"
    (tmp_path / "runs.py").write_text("two")
    assert record.git_commit() == git(tmp_path, "rev-parse", "HEAD") + "+changes"


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


def test_other_ranks_tell_errors_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with record.log_to(tmp_path / "train.log", first_rank=False):
        logging.getLogger("vitlab.x").warning("a warning")
        assert not (tmp_path / "train.log").exists()
        logging.getLogger("vitlab.x").error("an error")
    assert capsys.readouterr().err == "an error\n"
    assert "an error" in (tmp_path / "train.log").read_text()


def test_a_log_that_goes_on_is_appended_to(tmp_path: Path) -> None:
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
    ("config", "told"),
    [
        ({"resume": None}, "resume={} goes on"),
        ({"shard_images": 9, "out": "x"}, "the same command goes on"),
        ({"shard_images": 9, "out": None}, "the same command begins anew; what this one had written is in {}"),
        ({"rounds": 9}, "the same command begins anew; what this one had written is in {}"),
    ],
)
def test_what_was_stopped_tells_how_it_goes_on(config: Node, told: str, tmp_path: Path) -> None:
    write_config(tmp_path, config)
    assert record.restart_hint(tmp_path) == told.format(tmp_path)


def test_a_rank_killed_by_a_signal_goes_before_what_the_others_saw_of_it(tmp_path: Path) -> None:
    record.record_crash(tmp_path, "RuntimeError: connection closed by peer")
    record.record_crash(tmp_path, "rank 1 of 2 was killed by SIGKILL", first=True)
    assert read_results(tmp_path)["error"] == "rank 1 of 2 was killed by SIGKILL"


# -------------------------------------------------------------------------------------------------------- one owner


OWNER = "import sys, time; from pathlib import Path; from vitlab import runs\nfolder = Path(sys.argv[1])\n"
OWNER += "with runs.held(folder, sys.argv[2]):\n    (folder / 'held').touch()\n    time.sleep(60)\n"


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Callable[[str], "subprocess.Popen[bytes]"]]:
    """Another process that owns the folder in a role."""
    started: list[subprocess.Popen[bytes]] = []

    def start(role: str) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        started.append(subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path), role], env=environment))
        while not (tmp_path / "held").exists():
            time.sleep(0.01)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("role", lock.LOCKS)
def test_a_folder_has_one_owner_until_that_ends_however_it_ends(role: str, tmp_path: Path, owner: Any) -> None:
    assert not lock.is_held(tmp_path)
    process = owner(role)
    alive = {"status": "running", "host": platform.node(), "process": process.pid}
    atomic.atomic_write(tmp_path / RESULTS, json.dumps(alive))
    assert lock.is_held(tmp_path)
    with (
        pytest.raises(lock.RunInUse, match=rf"is being trained in by process {process.pid} on "),
        lock.run_lock(tmp_path, role),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not lock.is_held(tmp_path)
    with lock.run_lock(tmp_path, role):
        pass


def test_a_folder_that_cant_be_locked_is_used_and_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / lock.LOCKS["job"]).mkdir()  # no file can be made there
    with lock.run_lock(tmp_path, "job"):
        (line,) = caplog.messages
    assert line.startswith(f"{tmp_path} can't be locked (")
    assert line.endswith("): take care that only one process trains in it")


def test_what_a_killed_run_leaves_for_a_moment_is_waited_for(tmp_path: Path, owner: Any) -> None:
    process = owner("rank0")
    dead = {"status": "running", "host": platform.node(), "process": 2**22 + 1}
    atomic.atomic_write(tmp_path / RESULTS, json.dumps(dead))
    threading.Timer(0.5, process.kill).start()
    assert not lock.is_held(tmp_path), "the process that is recorded is dead: what holds the lock will go as well"


def test_what_a_user_can_do_about_a_run_that_ended_too_early(tmp_path: Path) -> None:
    assert record.resume_hint(tmp_path) == "no checkpoint was made yet"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert record.resume_hint(tmp_path) == f"resume={tmp_path} goes on from the last checkpoint"


def test_a_folder_that_can_be_made_is_no_problem_and_isnt_made(tmp_path: Path) -> None:
    assert write_problem("hydra.run.dir", tmp_path / "a" / "b") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    (locked := tmp_path / "locked").mkdir(mode=0o500)
    words = f"hydra.run.dir={locked / 'a'} can't be written to (Permission denied); name another folder"
    assert write_problem("hydra.run.dir", locked / "a") == words
