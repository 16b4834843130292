"""What a run folder remembers: its configuration, its end, where it came from, and whether it can go on."""

import json
import logging
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch.utilities.exceptions import SIGTERMException

from vitlab import runs
from vitlab.schema import Node

CONFIG: dict[str, Any] = {
    "image_size": 8,
    "seed": 0,
    "name": "digits",
    "resume": None,
    "run_dir": "runs",
    "optimizer": {"lr": 0.1, "betas": [0.9, 0.95]},
    "logger": {"csv": None},
    "callbacks": {},
}


def made(folder: Path, *, status: str | None = "running", age: float = 0.0, last: bool = True, **changes: Any) -> Path:
    """A run folder as a run that got so far leaves it."""
    runs.write_config(folder, {**CONFIG, "run_dir": str(folder), **changes})
    if status:
        (folder / "results.json").write_text(json.dumps({"status": status}))
    if last:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").touch()
        os.utime(folder / "checkpoints" / "last.ckpt", (time.time() - age,) * 2)
    return folder


# --------------------------------------------------------------------------------------------------- configuration


def test_a_configuration_is_read_as_it_was_written_in_its_order(tmp_path: Path) -> None:
    runs.write_config(tmp_path / "a" / "b", CONFIG)
    assert runs.read_config(tmp_path / "a" / "b") == CONFIG
    assert list(runs.read_config(tmp_path / "a" / "b")) == list(CONFIG)
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["config.yaml"]


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"run={tmp_path} is not a run folder: it has no config\.yaml"):
        runs.read_config(tmp_path)


def test_results_that_are_not_there_yet_are_empty(tmp_path: Path) -> None:
    assert runs.read_results(tmp_path) == {}


def test_a_kill_while_writing_leaves_the_old_text(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text("old")
    code = f"import sys; sys.path[:0] = {sys.path!r}; from pathlib import Path; from vitlab.runs import replace\n"
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


# ---------------------------------------------------------------------------------------------------------- resume


def test_auto_goes_on_with_the_newest_unfinished_run_of_the_same_configuration(tmp_path: Path) -> None:
    made(tmp_path / "old", age=100)
    newest = made(tmp_path / "crashed", status="crashed", age=50)
    made(tmp_path / "older", age=200)
    made(tmp_path / "finished", status="finished")
    made(tmp_path / "other-seed", seed=1)
    made(tmp_path / "other-rate", optimizer={"lr": 0.2, "betas": [0.9, 0.95]})
    made(tmp_path / "no-checkpoint", last=False)
    (tmp_path / "no-run").mkdir()
    assert runs.resume_auto(CONFIG, tmp_path) == [f"hydra.run.dir='{newest}'"]


def test_what_does_not_change_the_training_does_not_hinder_going_on(tmp_path: Path) -> None:
    run = made(tmp_path / "a", logger={"wandb": {"project": "x"}}, resume="auto")
    assert runs.resume_auto({**CONFIG, "resume": "auto"}, tmp_path) == [f"hydra.run.dir='{run}'"]


def test_a_run_killed_before_it_could_record_anything_can_go_on(tmp_path: Path) -> None:
    run = made(tmp_path / "a", status=None)
    assert runs.resume_auto(CONFIG, tmp_path) == [f"hydra.run.dir='{run}'"]


def test_auto_starts_anew_where_nothing_fits(tmp_path: Path) -> None:
    assert runs.resume_auto(CONFIG, tmp_path / "nothing") == []
    made(tmp_path / "a", status="finished")
    assert runs.resume_auto(CONFIG, tmp_path) == []


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/last.ckpt"])
def test_a_path_into_a_run_brings_back_its_overrides_but_for_what_is_said_anew(place: str, tmp_path: Path) -> None:
    run = made(tmp_path / "it's a run")
    (run / ".hydra").mkdir()
    saved = ["data=fake", "optimizer.lr=0.1", "resume=auto", "model.dim=32"]
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(saved))
    problems: list[str] = []
    quoted_target = "'" + str(run / place).replace("'", "\\'") + "'"
    found = runs.resumed_overrides([f"resume={quoted_target}", "optimizer.lr=0.5"], problems)
    assert problems == []
    assert found == ["data=fake", "model.dim=32", f"hydra.run.dir={runs.quoted(run)}"]
    assert OverridesParser.create().parse_override(found[-1]).value() == str(run), "Hydra reads the same path"


@pytest.mark.parametrize("line", [[], ["resume=auto"], ["resume=null"], ["seed=1"]])
def test_without_a_path_nothing_is_brought_back(line: list[str]) -> None:
    problems: list[str] = []
    assert runs.resumed_overrides(line, problems) == []
    assert problems == []


def test_a_path_to_no_run_is_a_problem_that_names_it(tmp_path: Path) -> None:
    problems: list[str] = []
    assert runs.resumed_overrides([f"resume={tmp_path}"], problems) == []
    assert problems == [f"resume={tmp_path}: no run folder, nor a checkpoint in one; use resume=auto or a path"]


def test_the_checkpoint_to_go_on_from_is_the_one_named_or_the_folders_last(tmp_path: Path) -> None:
    run = made(tmp_path / "a")
    last = run / "checkpoints" / "last.ckpt"
    assert runs.checkpoint_to_resume(None, run) is None
    assert runs.checkpoint_to_resume("auto", run) == last
    assert runs.checkpoint_to_resume(str(run), run) == last
    assert runs.checkpoint_to_resume("x/best.ckpt", run) == Path("x/best.ckpt")
    last.unlink()
    assert runs.checkpoint_to_resume("auto", run) is None


# ---------------------------------------------------------------------------------------------------------- record


def test_a_run_is_running_until_it_is_finished(tmp_path: Path) -> None:
    with runs.recorded(tmp_path, first_rank=True) as results:
        assert runs.read_results(tmp_path)["status"] == "running"
        results["test/acc"] = 0.5
    found = runs.read_results(tmp_path)
    assert (found["status"], found["test/acc"]) == ("finished", 0.5)
    assert found["seconds"] >= 0
    assert "error" not in found


@pytest.mark.parametrize("first_rank", [True, False])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("why"), "ValueError: why"),
        (KeyboardInterrupt("why"), "interrupted"),
        (SystemExit(1), "interrupted"),  # what Lightning makes of Ctrl-C
        (SIGTERMException(), "ended by SIGTERM"),
    ],
)
def test_a_run_that_fails_in_any_rank_has_crashed_and_says_why(
    error: BaseException, told: str, first_rank: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(type(error)), runs.recorded(tmp_path, first_rank=True):  # noqa: SIM117
        with runs.recorded(tmp_path, first_rank=first_rank):
            raise error
    found = runs.read_results(tmp_path)
    assert (found["status"], found["error"]) == ("crashed", told)
    assert found["commit"] == runs.commit()
    assert caplog.records[-1].exc_info is not None


def test_the_first_reason_for_a_crash_stays(tmp_path: Path) -> None:
    def ended() -> None:
        runs.record_crash(tmp_path, "ValueError: in rank 1")
        raise SystemExit("the launcher ends the others")

    with pytest.raises(SystemExit), runs.recorded(tmp_path, first_rank=True):
        ended()
    runs.record_crash(tmp_path, "ended with status 1")
    assert runs.read_results(tmp_path)["error"] == "ValueError: in rank 1"


def test_only_the_first_rank_records_a_good_end(tmp_path: Path) -> None:
    with runs.recorded(tmp_path, first_rank=False):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_record_says_what_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["src/train.py", "ignored"])
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- model=vit_s16\n- name='a b'\n")
    found = runs.provenance(tmp_path)
    assert found["command"].startswith("python src/train.py model=vit_s16 ")
    assert shlex.split(found["command"])[3:] == ["name='a b'"], "it can be pasted into a shell"
    assert {"python", "torch", "lightning", "timm", "numpy"} <= found["versions"].keys()


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *who, "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_the_sources_and_tells_of_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "runs.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert runs.commit() is None, "no repository"
    (tmp_path / "runs.py").write_text("one")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "runs.py")
    git(tmp_path, "commit", "-qm", "one")
    assert runs.commit() == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "new.txt").touch()
    assert runs.commit() == git(tmp_path, "rev-parse", "HEAD"), "what git doesn't know is no source"
    (tmp_path / "runs.py").write_text("two")
    assert runs.commit() == git(tmp_path, "rev-parse", "HEAD") + "+changes"


# ------------------------------------------------------------------------------------------------------------- log


def test_messages_and_warnings_go_to_the_console_and_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("vitlab.somewhere")
    with warnings.catch_warnings(), runs.logging_to(tmp_path / "train.log", first_rank=True):
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
    with runs.logging_to(tmp_path / "train.log", first_rank=True):
        logging.getLogger("vitlab.x").info("a message")
        try:
            raise ValueError("inside")
        except ValueError as error:
            logging.getLogger("vitlab.x").error("it failed", exc_info=error)
    assert capsys.readouterr().err == "a message\nit failed\n"
    assert "Traceback" in (tmp_path / "train.log").read_text()
    assert ([*root.handlers], root.level) == before, "as it was"


def test_other_ranks_tell_errors_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with runs.logging_to(tmp_path / "train.log", first_rank=False):
        logging.getLogger("vitlab.x").warning("a warning")
        assert not (tmp_path / "train.log").exists()
        logging.getLogger("vitlab.x").error("an error")
    assert capsys.readouterr().err == "an error\n"
    assert "an error" in (tmp_path / "train.log").read_text()


def test_a_log_that_goes_on_is_appended_to(tmp_path: Path) -> None:
    for number in (1, 2):
        with runs.logging_to(tmp_path / "train.log", first_rank=True):
            logging.getLogger("vitlab.x").info("start %d", number)
    assert [line[-7:] for line in (tmp_path / "train.log").read_text().splitlines()] == ["start 1", "start 2"]


# ------------------------------------------------------------------------------------------ nothing saved is lost


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The folder of a run that was stopped after its first checkpoint."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / runs.LAST).touch()
    runs.write_config(tmp_path, {"trainer": {"max_epochs": 3}, "resume": None})
    runs.replace(tmp_path / runs.RESULTS, '{"status": "crashed"}')
    return tmp_path


def configuration(resume: str | None, epochs: int = 3) -> Node:
    return {"trainer": {"max_epochs": epochs}, "resume": resume}


def test_a_stopped_run_may_be_resumed_and_not_begun_anew_in_its_folder(stopped: Path, tmp_path: Path) -> None:
    assert runs.folder_problems(configuration(str(stopped)), stopped) == []
    assert runs.folder_problems(configuration("auto"), stopped) == []
    (problem,) = runs.folder_problems(configuration(None), stopped)
    assert f"resume={stopped} goes on with it" in problem
    assert runs.folder_problems(configuration(None), tmp_path / "new") == []
    assert runs.folder_problems({"run": "x"}, stopped) == [], "an evaluation may be made again"


def test_a_finished_run_goes_on_only_with_more_to_do(stopped: Path) -> None:
    runs.replace(stopped / runs.RESULTS, '{"status": "finished"}')
    (problem,) = runs.folder_problems(configuration(str(stopped)), stopped)
    assert "is finished; raise trainer.max_epochs" in problem
    assert runs.folder_problems(configuration(str(stopped), epochs=4), stopped) == []


def test_a_run_without_a_checkpoint_cant_be_resumed_by_name(stopped: Path) -> None:
    (stopped / runs.LAST).unlink()
    (problem,) = runs.folder_problems(configuration(str(stopped)), stopped)
    assert "has no checkpoints/last.ckpt to go on from" in problem
    assert runs.folder_problems(configuration("auto"), stopped) == []


def test_a_run_that_is_being_trained_is_left_alone(stopped: Path) -> None:
    alive = {"status": "running", "host": platform.node(), "process": os.getpid()}
    runs.replace(stopped / runs.RESULTS, json.dumps(alive))
    assert "is being trained by process" in runs.folder_problems(configuration("auto"), stopped)[0]
    assert not runs.is_alive({**alive, "host": "elsewhere"})
    assert not runs.is_alive({**alive, "process": 2**22 + 1})
    assert not runs.is_alive({"status": "running", "host": platform.node()})


def test_changed_settings_are_told_by_name() -> None:
    before, after = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert runs.changes(before, after) == ["a.c: 2 -> 4", "d: 3 -> None", "e: None -> 5"]


def test_other_callbacks_make_another_run_but_not_another_progress_bar_or_folder() -> None:
    def settled(**callbacks: object) -> Node:
        return runs.settled({"callbacks": callbacks})

    assert settled(last={"dirpath": "a"}, progress={"leave": True}) == settled(last={"dirpath": "b"}, progress=None)
    assert settled(ema={"decay": 0.9}) != settled()


def test_where_bad_images_are_listed_makes_no_other_run_but_what_happens_to_them_does() -> None:
    one, other = ({"data": {"skipped_file": f"{run}/skipped.csv", "on_error": "skip"}} for run in "ab")
    assert runs.settled(one) == runs.settled(other)
    assert runs.settled(one) != runs.settled({"data": {**one["data"], "on_error": "raise"}})
