"""Sweeps, evaluations and packing: killed, damaged, started twice."""

import shutil
import signal
import time
from pathlib import Path

from faults.damage import SAVED, copied_run, damage_any_file
from faults.programs import run_command, start_command
from faults.runs import assert_same_run, contents, disturb, images, once
from faults.trials import Trial, fault
from vitlab.runs.folder import read_results
from vitlab.sweeps import ledger

SWEEP = ["-m", *SAVED, "sweep=s", "seed=0,1", "trainer.max_epochs=2"]
FOLDER = "runs/sweeps/s"


def show(trial: Trial) -> str:
    """What `sweep.py` says of the trial's sweep, if there is one."""
    there = (trial.folder / FOLDER / "sweep.json").exists()
    return run_command(trial.folder, "sweep", "status", "sweep=s") if there else ""


def assert_same_sweep(trial: Trial, *, scores: bool = False) -> None:
    """All jobs have finished as those of an undisturbed sweep, or with `scores` with the same ones."""
    expected = once(trial.work, "sweep", "train", *SWEEP) / FOLDER
    jobs = {job.folder.name: job for job in ledger.read_sweep(trial.folder / FOLDER).jobs}
    wanted = ledger.read_sweep(expected).jobs
    assert sorted(jobs) == sorted(job.folder.name for job in wanted), sorted(jobs)
    for job in wanted:
        assert jobs[job.folder.name].status == "finished", f"{job.folder.name}: {jobs[job.folder.name].status}"
        for key, score in job.results.items():
            assert not key.startswith(("val/", "test/")) or jobs[job.folder.name].results[key] == score, key
        if not scores:
            assert_same_run(job.folder, jobs[job.folder.name].folder)


@fault("a sweep killed or stopped at random, then the same command", 8)
def stopped_sweep(trial: Trial) -> None:
    program = start_command(trial.folder, "train", *SWEEP)
    jobs, sweep = trial.random.randrange(3), trial.folder / FOLDER
    while program.poll() is None:
        if len(list(sweep.glob("*/checkpoints/last.ckpt"))) >= jobs and (sweep / "sweep.json").exists():
            break
        time.sleep(0.01)
    time.sleep(trial.random.uniform(0, 1.5))
    program.send_signal(trial.random.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
    program.wait()
    table = show(trial)
    assert "2 jobs" in table or ("1 job," in table and "1 more not planned yet" in table) or jobs == 0, table
    run_command(trial.folder, "train", *SWEEP)
    assert_same_sweep(trial)


@fault("a process of a sweep killed at a file operation, then the same command", 12)
def sweep_killed_at_operation(trial: Trial) -> None:
    like = once(trial.work, "sweep", "train", *SWEEP)
    within = trial.random.random() < 0.3
    mine, table = (lambda op: "/checkpoints/" not in op[1]), (lambda: show(trial))
    disturb(trial, "train", *SWEEP, like=like, only=mine, within=within, then=table)
    assert_same_sweep(trial)


@fault("two commands share a sweep, and one is killed", 4)
def shared_sweep(trial: Trial) -> None:
    first = start_command(trial.folder, "train", *SWEEP)
    while not list(trial.folder.glob(f"{FOLDER}/*/checkpoints/last.ckpt")) and first.poll() is None:
        time.sleep(0.01)
    second = start_command(trial.folder, "train", *SWEEP)
    time.sleep(trial.random.uniform(0, 3))
    first.kill()
    first.wait()
    assert second.wait() == 0, second.text()[-3000:]
    assert_same_sweep(trial)


@fault("any file of a sweep damaged, then sweep.py status and report, and the same command", 24)
def damaged_sweep(trial: Trial) -> None:
    """Both commands end well; damaged figures and logs of finished jobs stay so, their scores are unchanged."""
    shutil.copytree(once(trial.work, "sweep", "train", *SWEEP) / FOLDER, trial.folder / FOLDER)
    most = ("sweep.json", "results.json", "job.json", "config.yaml")
    name, way = damage_any_file(trial, trial.folder / FOLDER, *trial.random.choice(((), most)))
    if (name, way) != ("sweep.json", "removed"):
        assert "2 jobs" in (table := show(trial)), f"{name} {way}: {table}"
        run_command(trial.folder, "sweep", "report", "sweep=s")
    run_command(trial.folder, "train", *SWEEP)
    assert_same_sweep(trial, scores=True)


def without_page(files: dict[Path, bytes]) -> dict[Path, bytes]:
    """A run's files but its page, which has the time at which it was written again."""
    return {file: content for file, content in files.items() if file.parts[0] != "report"}


@fault("evaluate.py killed at a file operation, then the same command", 6)
def killed_evaluation(trial: Trial) -> None:
    run = copied_run(trial, finished=True)
    split = trial.random.choice(("test", "val"))
    line = ["trainer.accelerator=cpu", f"split={split}", "hydra.run.dir=scores"]
    before, trained = without_page(contents(run)), read_results(run)
    like = once(trial.work, f"evaluated-{split}", "evaluate", f"run={run}", *line)
    disturb(trial, "evaluate", f"run={run}", *line, like=like)
    assert without_page(contents(run)) == before, "the run was changed"
    scores = read_results(trial.folder / "scores")
    assert all(scores[f"{split}/{key}"] == trained[f"{split}/{key}"] for key in ("correct", "count", "loss")), scores


@fault("prepare.py killed at a file operation, then the same command: the same bytes", 12)
def killed_packing(trial: Trial) -> None:
    images(trial.work)
    line = ["data=image_folder", f"data_dir={trial.work / 'images'}", "shard_images=25", "processes=0", "size=16"]
    expected = once(trial.work, "packing", "prepare", *line, "out=out")
    within = trial.random.random() < 0.5
    line.append("out=out")
    disturb(trial, "prepare", *line, like=expected, only=lambda op: op[1].startswith("out/"), within=within)
    assert contents(trial.folder / "out") == contents(expected / "out")
