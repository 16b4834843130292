"""Resuming a run: which folder, which checkpoint, and what is refused."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from digits_identity import data, identity
from hostile_files import alias_bomb
from vitlab.config.overrides import hydra_quote
from vitlab.config.schema import Node
from vitlab.jobs.resume import LAST, CannotResume, checkpoint_to_resume, folder_problems, resume_auto, resumed_overrides
from vitlab.runs import lock
from vitlab.runs.folder import RESULTS, write_config
from vitlab.storage import atomic
from vitlab.training import checkpoint_files

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


def made(
    folder: Path,
    *,
    status: str | None = "running",
    age: float = 0.0,
    last: bool = True,
    steps: int = 3,
    job: str | None = None,
    **changes: Any,
) -> Path:
    """A run folder as a run that got so far leaves it."""
    write_config(folder, {**CONFIG, "run_dir": str(folder), **changes})
    if status:
        (folder / "results.json").write_text(json.dumps({"status": status, "job": job}))
    (folder / "metrics.csv").write_text(f"step,train/loss\n1,2.0\n{steps},1.0\n")
    if last:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").touch()
        os.utime(folder / "checkpoints" / "last.ckpt", (time.time() - age,) * 2)
    return folder


# -------------------------------------------------------------------------------------------------------- the folder


def test_auto_resumes_the_newest_unfinished_run_of_the_same_configuration(tmp_path: Path) -> None:
    made(tmp_path / "old", age=100)
    newest = made(tmp_path / "crashed", status="crashed", age=50)
    made(tmp_path / "older", age=200)
    made(tmp_path / "finished", status="finished")
    made(tmp_path / "other-seed", seed=1)
    made(tmp_path / "other-rate", optimizer={"lr": 0.2, "betas": [0.9, 0.95]})
    made(tmp_path / "no-checkpoint", last=False)
    (tmp_path / "no-run").mkdir()
    assert resume_auto(CONFIG, tmp_path) == [f"hydra.run.dir='{newest}'"]


def test_what_does_not_change_the_training_does_not_hinder_resuming(tmp_path: Path) -> None:
    run = made(tmp_path / "a", logger={"wandb": {"project": "x"}}, resume="auto")
    assert resume_auto({**CONFIG, "resume": "auto"}, tmp_path) == [f"hydra.run.dir='{run}'"]


def test_a_setting_that_is_null_may_be_one_that_the_run_did_not_know_yet(tmp_path: Path) -> None:
    run = made(tmp_path / "a")
    assert resume_auto({**CONFIG, "data": {"later": None}}, tmp_path) == [f"hydra.run.dir='{run}'"]
    assert resume_auto({**CONFIG, "data": {"later": 1}}, tmp_path) == []


def test_a_run_killed_before_it_could_record_anything_can_be_resumed(tmp_path: Path) -> None:
    run = made(tmp_path / "a", status=None)
    assert resume_auto(CONFIG, tmp_path) == [f"hydra.run.dir='{run}'"]


def test_auto_starts_a_new_run_where_nothing_fits(tmp_path: Path) -> None:
    assert resume_auto(CONFIG, tmp_path / "nothing") == []
    made(tmp_path / "a", status="finished")
    assert resume_auto(CONFIG, tmp_path) == []


def test_auto_takes_the_run_that_was_trained_furthest_whatever_the_clock_says(tmp_path: Path) -> None:
    furthest = made(tmp_path / "a", steps=20, age=1000)
    made(tmp_path / "b", steps=9, age=-1000)
    assert resume_auto(CONFIG, tmp_path) == [f"hydra.run.dir='{furthest}'"]


def test_a_requeued_job_finds_its_own_run_before_any_other(tmp_path: Path) -> None:
    mine = made(tmp_path / "a", status="preempted", job="17", last=False)
    made(tmp_path / "b", steps=90, job="18")
    assert resume_auto(CONFIG, tmp_path, environment={"SLURM_JOB_ID": "17"}) == [f"hydra.run.dir='{mine}'"]


def test_a_run_that_another_process_trains_is_left_alone(tmp_path: Path) -> None:
    run = made(tmp_path / "a")
    results = {"status": "running", "host": "elsewhere", "process": 1}
    atomic.atomic_write(run / RESULTS, json.dumps(results))
    with lock.run_lock(run, "rank0"):
        assert resume_auto(CONFIG, tmp_path) == []
        (problem,) = folder_problems({**CONFIG, "resume": "auto"}, run)
    assert "is being trained in by process 1 on elsewhere; two can't share a folder" in problem


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/last.ckpt"])
def test_a_path_into_a_run_brings_back_its_overrides_but_for_what_is_given_again(place: str, tmp_path: Path) -> None:
    run = made(tmp_path / "it's a run")
    (run / ".hydra").mkdir()
    saved = ["sweep=mine", "data=fake", "optimizer.lr=0.1", "resume=auto", "model.dim=32"]
    saved.append("on_out_of_memory=accumulate")  # of an earlier version
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(saved))
    problems: list[str] = []
    quoted_target = "'" + str(run / place).replace("'", "\\'") + "'"
    found = resumed_overrides([f"resume={quoted_target}", "optimizer.lr=0.5"], problems)
    assert problems == []
    assert found == ["data=fake", "model.dim=32", f"hydra.run.dir={hydra_quote(run)}"]
    assert OverridesParser.create().parse_override(found[-1]).value() == str(run), "Hydra reads the same path"


@pytest.mark.parametrize("line", [[], ["resume=auto"], ["resume=null"], ["seed=1"]])
def test_without_a_path_nothing_is_brought_back(line: list[str]) -> None:
    problems: list[str] = []
    assert resumed_overrides(line, problems) == []
    assert problems == []


def test_a_path_to_no_run_is_a_problem_that_names_it(tmp_path: Path) -> None:
    problems: list[str] = []
    assert resumed_overrides([f"resume={tmp_path}"], problems) == []
    assert problems == [f"resume={tmp_path}: no run folder, nor a checkpoint in one; use resume=auto or a path"]


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The folder of a run that was stopped after its first checkpoint."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / LAST).touch()
    write_config(tmp_path, {"trainer": {"max_epochs": 3}, "resume": None})
    atomic.atomic_write(tmp_path / RESULTS, '{"status": "crashed"}')
    return tmp_path


def configuration(resume: str | None, epochs: int = 3) -> Node:
    return {"trainer": {"max_epochs": epochs}, "resume": resume}


def test_a_stopped_run_may_be_resumed_and_not_started_again_in_its_folder(stopped: Path, tmp_path: Path) -> None:
    assert folder_problems(configuration(str(stopped)), stopped) == []
    assert folder_problems(configuration("auto"), stopped) == []
    (problem,) = folder_problems(configuration(None), stopped)
    assert f"resume it with resume={stopped}" in problem
    assert folder_problems(configuration(None), tmp_path / "new") == []
    assert folder_problems({"run": "x"}, stopped) == [], "an evaluation may be made again"


def test_a_finished_run_is_resumed_only_with_more_to_do(stopped: Path) -> None:
    atomic.atomic_write(stopped / RESULTS, '{"status": "finished"}')
    (problem,) = folder_problems(configuration(str(stopped)), stopped)
    assert "is finished; raise trainer.max_epochs" in problem
    assert folder_problems(configuration(str(stopped), epochs=4), stopped) == []


def test_a_run_without_a_checkpoint_cant_be_resumed_by_name(stopped: Path) -> None:
    (stopped / LAST).unlink()
    (problem,) = folder_problems(configuration(str(stopped)), stopped)
    assert "has no checkpoints/last.ckpt to resume from" in problem
    assert folder_problems(configuration("auto"), stopped) == []


# ------------------------------------------------------------------------------------------------------ the checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A run folder with two intact checkpoints, of steps 3 and 6."""
    files = checkpoint_files.AtomicFiles()
    for step in (3, 6):
        content = {"global_step": step, "weights": torch.arange(1000.0), "vitlab": identity(data())}
        files.save_checkpoint(content, tmp_path / "checkpoints" / "last.ckpt")
    return tmp_path


def begun(run: Path, target: str = "auto", **model: Any) -> Path | None:
    return checkpoint_to_resume(target, run, identity(data(), **model), first_rank=True)


def test_the_newest_checkpoint_is_resumed_or_the_one_that_is_named(saved: Path) -> None:
    folder = saved / "checkpoints"
    assert checkpoint_to_resume(None, saved, {}, first_rank=True) is None
    assert begun(saved) == begun(saved, str(saved)) == folder / "last.ckpt"
    assert begun(saved, str(folder / "last.ckpt")) == folder / "last.ckpt"
    assert begun(saved / "nothing") is None


def test_a_damaged_checkpoint_is_reported_renamed_and_the_one_before_taken(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved / "checkpoints"
    content = bytearray((folder / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "last.ckpt").write_bytes(content)
    assert begun(saved) == folder / "previous.ckpt"
    assert f"{folder / 'last.ckpt'} is damaged (the checksum of its record" in caplog.text
    assert (folder / "last.ckpt.damaged").read_bytes() == content, "nothing is deleted"


def test_a_missing_last_checkpoint_leaves_the_one_before(saved: Path) -> None:
    (saved / "checkpoints" / "last.ckpt").unlink()
    assert begun(saved) == saved / "checkpoints" / "previous.ckpt"


def test_where_all_are_damaged_nothing_is_started_again_in_silence(saved: Path) -> None:
    for file in (saved / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CannotResume, match=r"all checkpoints of .* are damaged \(.*\); start again in another folder"):
        begun(saved)


def test_a_damaged_checkpoint_that_is_named_is_refused(saved: Path) -> None:
    file = saved / "checkpoints" / "last.ckpt"
    file.write_bytes(b"")
    with pytest.raises(CannotResume, match=r"last.ckpt is damaged .* takes the newest intact one"):
        begun(saved, str(file))


def test_a_checkpoint_of_another_network_is_refused_with_the_list_of_differences(saved: Path) -> None:
    with pytest.raises(CannotResume) as refused:
        begun(saved, dim=32, dropout=0.5)
    lines = str(refused.value).splitlines()
    assert "is of another network or other data" in lines[0]
    assert lines[1] == "  - model.dim: 16 in the checkpoint, 32 now"
    assert "  - also model.dropout: 0.0 -> 0.5 (changes the training)" in lines


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    checkpoint_files.AtomicFiles().save_checkpoint({"global_step": 1}, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(CannotResume, match="is not a checkpoint of vitlab"):
        begun(tmp_path)


def test_changed_settings_are_warned_of(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert begun(saved, dropout=0.5)
    assert caplog.messages == ["resume with another setting: model.dropout: 0.0 -> 0.5 (changes the training)"]


def test_resuming_an_earlier_checkpoint_renames_the_later_ones(saved: Path) -> None:
    folder = saved / "checkpoints"
    with pytest.raises(CannotResume, match="of another network"):
        begun(saved, str(folder / "previous.ckpt"), dim=32)
    assert {file.name for file in folder.iterdir()} == {"previous.ckpt", "last.ckpt"}, "what is refused renames nothing"
    assert begun(saved, str(folder / "previous.ckpt")) == folder / "previous.ckpt"
    assert {file.name for file in folder.iterdir()} == {"previous.ckpt", "last.ckpt.abandoned"}
    assert begun(saved) == folder / "previous.ckpt", "what was abandoned is not resumed"


DAMAGE = [b"", b"\xff\xfe\x00", b"{", b"[1, 2]", b"7", b"\x00" * 100]


@pytest.mark.parametrize("content", DAMAGE)
def test_a_run_that_cannot_be_read_hinders_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    run = made(tmp_path / "a")
    for name in ("config.yaml", "results.json", "metrics.csv"):
        (made(tmp_path / name) / name).write_bytes(content)
    (tmp_path / "results.json" / "checkpoints" / "last.ckpt").unlink()
    (tmp_path / "metrics.csv" / "results.json").write_text('{"status": "finished"}')
    assert resume_auto(CONFIG, tmp_path) == [f"hydra.run.dir='{run}'"]
    assert f"{tmp_path / 'config.yaml' / 'config.yaml'} can't be read" in caplog.text
    assert "and is skipped" in caplog.text


@pytest.mark.parametrize("file", ["config.yaml", ".hydra/overrides.yaml"])
@pytest.mark.parametrize("content", ["a: &a [*a]", "text", "[1, {a: b}]", "[", b"\xff\xff", None])
def test_a_run_that_is_no_run_of_vitlab_is_a_problem_and_no_error(
    file: str, content: str | bytes | None, tmp_path: Path
) -> None:
    run = made(tmp_path / "a")
    (run / ".hydra").mkdir(exist_ok=True)
    hostile = alias_bomb() if content is None else content
    (run / file).write_bytes(hostile.encode() if isinstance(hostile, str) else hostile)
    problems: list[str] = []
    assert resumed_overrides([f"resume={run}"], problems) == []
    (problem,) = problems
    assert problem.startswith(f"resume={run}: ")
    assert Path(file).name in problem


def test_auto_skips_a_run_with_endless_aliases(tmp_path: Path) -> None:
    run = made(tmp_path / "a")
    (made(tmp_path / "b") / "config.yaml").write_text(alias_bomb())
    assert resume_auto(CONFIG, tmp_path) == [f"hydra.run.dir='{run}'"]


@pytest.mark.parametrize(
    "line",
    [
        "hydra.searchpath=[pkg://antigravity]",
        "hydra/job_logging=default",
        "+hydra.callbacks.x={_target_: a.B}",
        "hydra/launcher=slurm",
        "++hydra.job.env_set.A=b",
        "hydra.run.dir=/elsewhere",
        "+hydra={searchpath: [pkg://antigravity]}",
        "~hydra.sweeper",
        "+optimizer@hydra.callbacks.x=adamw",
    ],
)
def test_a_run_s_own_overrides_set_nothing_of_hydra(line: str, tmp_path: Path) -> None:
    run = made(tmp_path / "a")
    (run / ".hydra").mkdir()
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(["model.dim=32", line]))
    problems: list[str] = []
    assert resumed_overrides([f"resume={run}"], problems) == []
    expected = f"resume={run}: .hydra/overrides.yaml has {line}; a run's own sets nothing of hydra"
    assert problems == [expected]


@pytest.mark.parametrize("content", DAMAGE)
@pytest.mark.parametrize("name", ["results.json", "metrics.csv"])
def test_a_damaged_record_keeps_no_run_from_being_resumed(tmp_path: Path, name: str, content: bytes) -> None:
    run = made(tmp_path / "a")
    (run / name).write_bytes(content)
    assert resume_auto(CONFIG, tmp_path) == [f"hydra.run.dir='{run}'"]


@pytest.mark.parametrize("content", DAMAGE)
@pytest.mark.parametrize("name", ["config.yaml", ".hydra/overrides.yaml"])
def test_the_settings_of_a_damaged_run_are_a_problem_that_names_the_file(
    tmp_path: Path, name: str, content: bytes
) -> None:
    run = made(tmp_path / "a")
    (run / ".hydra").mkdir()
    (run / name).write_bytes(content)
    problems: list[str] = []
    assert resumed_overrides([f"resume={run}"], problems) == []
    (problem,) = problems
    assert problem.startswith(f"resume={run}: {run / name} is damaged (")


def test_an_edited_configuration_is_reported_and_others_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = made(tmp_path / "a")
    old = made(tmp_path / "b")
    (old / "config.yaml").write_text(yaml.safe_dump(CONFIG))  # as an earlier version wrote it
    for resumed in (run, old):
        resumed_overrides([f"resume={resumed}"], [])
    resume_auto(CONFIG, tmp_path)
    assert caplog.messages == []
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("lr: 0.1", "lr: 0.2"))
    words = f"{file} was edited, which changes no setting of the run; resume={run} KEY=VALUE changes a setting"
    resumed_overrides([f"resume={run}"], [])
    resume_auto(CONFIG, tmp_path)
    assert [message.startswith(words) for message in caplog.messages] == [True, True]


def test_auto_says_which_run_it_resumes_or_why_it_starts_a_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume_auto(CONFIG, tmp_path)
    assert capsys.readouterr().err == f"resume=auto: starts a new run; in {tmp_path}: there is no run\n"
    made(tmp_path / "a", status="finished")
    made(tmp_path / "b", seed=1)
    made(tmp_path / "c", seed=2)
    made(tmp_path / "d", last=False)
    resume_auto(CONFIG, tmp_path)
    why = "1 finished, 2 with other settings, 1 without a checkpoint"
    assert capsys.readouterr().err == f"resume=auto: starts a new run; in {tmp_path}: {why}\n"
    run = made(tmp_path / "e", status="stopped", steps=12)
    resume_auto(CONFIG, tmp_path)
    assert capsys.readouterr().err == f"resume=auto: resumes {run}, which has logged 12 steps (stopped)\n"


def test_the_log_has_the_step_at_which_a_training_continues(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        file = begun(saved)
        begun(saved / "nothing")
    assert caplog.messages == [
        f"resume=auto: training continues at step 6, from {file}",
        f"resume=auto: {saved / 'nothing'} has no checkpoint: training starts from the beginning",
    ]


def test_a_run_that_ended_by_time_is_resumed_as_it_is(stopped: Path) -> None:
    atomic.atomic_write(stopped / RESULTS, '{"status": "stopped"}')
    assert folder_problems(configuration(str(stopped)), stopped) == []
