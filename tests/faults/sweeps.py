"""Sweeps, evaluations and packing: killed, damaged, started twice."""

import shutil
import signal
import time
from pathlib import Path

from faults.damage import SAVED, WAYS, damage_file, prototype
from faults.operations import Operations, read_operations
from faults.programs import run_command, start_command, text
from faults.runs import assert_same_run, finished_run, images, lock
from faults.trials import Trial, fault
from vitlab.runs.folder import read_results
from vitlab.sweeps import ledger

SWEEP = ["-m", *SAVED, "sweep=s", "seed=0,1", "trainer.max_epochs=2"]


def swept(folder: Path) -> Path:
    return folder / "runs" / "sweeps" / "s"


def sweep_reference(work: Path) -> Path:
    """The folder of an undisturbed sweep, made once; `operations` has its file operations."""
    folder = work / "sweep"
    with lock(work, "sweep-reference"):
        if not (folder / "done").exists():
            folder.mkdir()
            counted = Operations(swept(folder), folder / "operations")
            program = start_command(folder, "train", *SWEEP, before=counted.install)
            assert program.wait(300) == 0, program.text()[-3000:]
            (folder / "done").touch()
    return folder


def assert_same_sweep(expected: Path, folder: Path) -> None:
    """All jobs of the ledger are finished, as in the undisturbed sweep."""
    jobs = {job.folder.name: job for job in ledger.read_sweep(swept(folder)).jobs}
    wanted = ledger.read_sweep(swept(expected)).jobs
    assert sorted(jobs) == sorted(job.folder.name for job in wanted), sorted(jobs)
    assert [job.status for job in jobs.values()] == ["finished"] * len(jobs), [j.status for j in jobs.values()]
    for job in wanted:
        assert_same_run(job.folder, jobs[job.folder.name].folder)


def finish_sweep(trial: Trial, expected: Path) -> str:
    """Start the same command again: it ends well, and its sweep is as an undisturbed one."""
    output = run_command(trial.folder, "train", *SWEEP)
    assert_same_sweep(expected, trial.folder)
    return output


@fault("a sweep killed or stopped at random, then the same command", 8)
def stopped_sweep(trial: Trial) -> None:
    expected = sweep_reference(trial.work)
    program = start_command(trial.folder, "train", *SWEEP)
    log = swept(trial.folder)
    moment = trial.random.choice(("planned", "first", "second"))
    while program.poll() is None:
        begun = len(list(log.glob("*/checkpoints/last.ckpt")))
        if begun >= ("planned", "first", "second").index(moment) and (log / "sweep.json").exists():
            break
        time.sleep(0.01)
    time.sleep(trial.random.uniform(0, 1.5))
    number = trial.random.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    program.send_signal(number)
    program.wait()
    table = run_command(trial.folder, "sweep", "status", "sweep=s")
    assert "2 jobs" in table or moment == "planned", table
    finish_sweep(trial, expected)


@fault("a process of a sweep killed at a file operation, then the same command", 12)
def sweep_killed_at_operation(trial: Trial) -> None:
    expected = sweep_reference(trial.work)
    done = read_operations(expected / "operations")
    own = [operation for operation in sorted(done) if "checkpoints/" not in operation[1]]
    operation = trial.random.choice(own)
    at = (operation, trial.random.randint(1, done[operation]))
    killer = Operations(swept(trial.folder), trial.folder / "operations", at, within=trial.random.random() < 0.3)
    program = start_command(trial.folder, "train", *SWEEP, before=killer.install)
    status = program.wait()
    with (trial.folder / "output.txt").open("a") as output:
        output.write(f"--- killed at {at}: status {status}\n")
    if (swept(trial.folder) / "sweep.json").exists():
        run_command(trial.folder, "sweep", "status", "sweep=s")
    finish_sweep(trial, expected)


@fault("two commands share a sweep, and one is killed", 4)
def shared_sweep(trial: Trial) -> None:
    expected = sweep_reference(trial.work)
    first = start_command(trial.folder, "train", *SWEEP)
    while not list(swept(trial.folder).glob("*/checkpoints/last.ckpt")) and first.poll() is None:
        time.sleep(0.01)
    second = start_command(trial.folder, "train", *SWEEP)
    time.sleep(trial.random.uniform(0, 3))
    first.kill()
    first.wait()
    assert second.wait() == 0, second.text()[-3000:]
    assert_same_sweep(expected, trial.folder)


def damage_sweep(trial: Trial) -> tuple[Path, str, str]:
    """A copy of a finished sweep, one of whose files is damaged; in half of the copies a job lost its end before."""
    expected = sweep_reference(trial.work)
    shutil.copytree(swept(expected), swept(trial.folder))
    sweep = swept(trial.folder)
    files = [str(f.relative_to(sweep)) for f in sorted(sweep.rglob("*")) if f.is_file() and not f.name.endswith("lock")]
    few = [name for name in files if Path(name).name in ("sweep.json", "results.json", "job.json", "config.yaml")]
    name, way = trial.random.choice(trial.random.choice((files, few))), trial.random.choice(WAYS)
    damage_file(trial.random, sweep / name, way)
    (trial.folder / "damage.txt").write_text(f"{name} {way}\n")
    return expected, name, way


@fault("any file of a sweep damaged, then sweep.py status and report, and the same command", 24)
def damaged_sweep(trial: Trial) -> None:
    expected, name, way = damage_sweep(trial)
    if (name, way) != ("sweep.json", "removed"):
        table = run_command(trial.folder, "sweep", "status", "sweep=s")
        assert "2 jobs" in table, f"{name} {way}: {table}"
        run_command(trial.folder, "sweep", "report", "sweep=s")
    finish_sweep_after_damage(trial, expected, name, way)


def finish_sweep_after_damage(trial: Trial, expected: Path, name: str, way: str) -> None:
    """The same command ends with all jobs finished and their scores unchanged; damaged figures and logs stay so."""
    output = run_command(trial.folder, "train", *SWEEP)
    state = ledger.read_sweep(swept(trial.folder))
    scores = {}
    for job in ledger.read_sweep(swept(expected)).jobs:
        scores[job.folder.name] = {k: v for k, v in job.results.items() if k.startswith(("val/", "test/"))}
    assert sorted(job.folder.name for job in state.jobs) == sorted(scores), f"{name} {way}\n{output[-2000:]}"
    for job in state.jobs:
        assert job.status == "finished", f"{name} {way}: {job.status}\n{output[-2000:]}"
        known = {k: v for k, v in job.results.items() if k.startswith(("val/", "test/"))}
        assert known == scores[job.folder.name], f"{name} {way}: other scores"


# --------------------------------------------------------------------------------------------- evaluation, packing


@fault("evaluate.py killed at a file operation, then the same command", 6)
def killed_evaluation(trial: Trial) -> None:
    made = prototype(trial.work, "finished", *SAVED, saves=None)
    shutil.copytree(made / "runs", trial.folder / "runs")
    run = finished_run(trial.folder)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    line = [f"run={run.relative_to(trial.folder)}", "trainer.accelerator=cpu"]
    line += [f"split={trial.random.choice(('test', 'val'))}"]
    record = trial.folder / "operations"
    at = (
        (
            trial.random.choice(("open", "write", "rename", "flush")),
            "evaluation/best-" + line[2][6:] + "/.results.json.N",
        ),
        2,
    )
    if at[0][0] == "rename":
        at = (("rename", at[0][1].replace("/.", "/").removesuffix(".N")), 2)
    program = start_command(trial.folder, "evaluate", *line, before=Operations(run, record, at).install)
    assert program.wait() == -signal.SIGKILL, f"{at} was not reached: {program.text()[-2000:]}"
    run_command(trial.folder, "evaluate", *line)
    assert {file: file.read_bytes() for file in before} == before, "the run was changed"
    split = line[2][6:]
    results, trained = read_results(run / "evaluation" / f"best-{split}"), read_results(run)
    for key in ("correct", "count", "loss"):
        assert results[f"{split}/{key}"] == trained[f"{split}/{key}"], key


@fault("prepare.py killed at a file operation, then the same command: the same bytes", 12)
def killed_packing(trial: Trial) -> None:
    images(trial.work)
    line = ["data=image_folder", f"data_dir={trial.work / 'images'}", "shard_images=25", "processes=0", "size=16"]
    expected = trial.work / "packing-reference"
    with lock(trial.work, "packing-reference"):
        if not (expected / "done").exists():
            expected.mkdir()
            counted = Operations(expected / "out", expected / "operations")
            program = start_command(expected, "prepare", *line, "out=out", before=counted.install)
            assert program.wait() == 0, program.text()[-3000:]
            (expected / "done").touch()
    done = read_operations(expected / "operations")
    for attempt in range(trial.random.choice((1, 2))):
        operation = trial.random.choice(sorted(done))
        at = (operation, trial.random.randint(1, done[operation]))
        record = trial.folder / f"operations-{attempt}"
        killer = Operations(trial.folder / "out", record, at, within=trial.random.random() < 0.5)
        status = start_command(trial.folder, "prepare", *line, "out=out", before=killer.install).wait()
        assert status in (0, -signal.SIGKILL), f"{at}: {status}\n{text(trial.folder)[-2000:]}"
        assert status or attempt, f"{at} was not reached"
        if status == 0:
            break
    else:
        run_command(trial.folder, "prepare", *line, "out=out")
    contents = [
        {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.suffix != ".lock"}
        for folder in (expected / "out", trial.folder / "out")
    ]
    assert contents[0].keys() == contents[1].keys(), contents[0].keys() ^ contents[1].keys()
    assert contents[0] == contents[1], [name for name in contents[0] if contents[0][name] != contents[1][name]]
