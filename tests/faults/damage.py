"""Damaged files: checkpoints bit by bit, every file of a run and of a sweep, full disks, and folders of other runs."""

import json
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from faults.operations import Operations
from faults.programs import run_command, start_command
from faults.runs import (
    DIGITS,
    assert_same_run,
    finish,
    finished_run,
    lock,
    reference,
    rows,
    start,
)
from faults.trials import Trial, fault
from vitlab.runs.folder import read_results
from vitlab.storage import safe_load

SAVED = [*DIGITS, "callbacks.last.every_n_train_steps=3"]


def killed_run(trial: Trial) -> tuple[Path, Path, list[str]]:
    """An undisturbed run, and one that was killed after several checkpoints, with its settings."""
    expected, seconds = reference(trial.work, "digits", *DIGITS)
    run = trial.folder / "run"
    program = start(run, *SAVED)
    while not (run / "checkpoints" / "previous.ckpt").exists() and program.poll() is None:
        time.sleep(0.005)
    time.sleep(trial.random.uniform(0, 0.2) * seconds)
    program.kill()
    assert program.wait(), "it has finished"
    return expected, run, SAVED


def damage_checkpoint(trial: Trial, damage: Callable[[random.Random, bytearray], bytearray]) -> None:
    """Damage the last checkpoint of a killed run: this must be detected, and the one before gives the same result."""
    expected, run, settings = killed_run(trial)
    file = run / "checkpoints" / "last.ckpt"
    content = file.read_bytes()
    before = safe_load.load_checkpoint(file)
    before = {k: before[k] for k in ("state_dict", "optimizer_states", "loops", "global_step")}
    before = json.loads(json.dumps(before, default=lambda tensor: tensor.tolist()))
    file.write_bytes(damage(trial.random, bytearray(content)))
    if safe_load.corruption(file) is None:  # an unused bit (a date, a flag): the content is the same
        after = safe_load.load_checkpoint(file)
        after = json.loads(json.dumps({k: after[k] for k in before}, default=lambda tensor: tensor.tolist()))
        assert before == after, "undetected damage"
    else:
        finish(run, *settings)
        assert "is damaged" in run.with_name("run.txt").read_text(), "it wasn't reported"
        assert (run / "checkpoints" / "last.ckpt.damaged").exists(), "the damaged file is gone"
        return assert_same_run(expected, run)
    finish(run, *settings)
    return assert_same_run(expected, run)


def zero(draw: random.Random, content: bytearray) -> bytearray:
    begin = draw.randrange(len(content))
    end = min(len(content), begin + draw.choice((512, 4096, len(content))))
    content[begin:end] = bytes(end - begin)
    return content


def flip(draw: random.Random, content: bytearray) -> bytearray:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return content


fault("last checkpoint truncated", 6)(lambda t: damage_checkpoint(t, lambda draw, c: c[: draw.randrange(len(c))]))
fault("last checkpoint zeroed from a random position", 6)(lambda t: damage_checkpoint(t, zero))
fault("last checkpoint with a flipped bit", 12)(lambda t: damage_checkpoint(t, flip))


def assert_refused(run: Path, *overrides: str, words: tuple[str, ...]) -> None:
    """Resuming fails with these words, and the checkpoints don't change."""
    saved = {file.name: file.read_bytes() for file in (run / "checkpoints").iterdir()}
    program = start(run, *overrides)
    assert program.wait() == 1, program.text()[-2000:]
    for word in words:
        assert word in program.text(), f"{word!r} isn't in\n{program.text()[-2000:]}"
    assert {file.name: file.read_bytes() for file in (run / "checkpoints").iterdir()} == saved


@fault("resumed with another network or other data: refused", 5)
def others(trial: Trial) -> None:
    expected, run, settings = killed_run(trial)
    for changed, word in trial.random.sample(
        [
            (["model.dim=32"], "model.dim: 16 in the checkpoint, 32 now"),
            (["model.heads=4"], "model.heads: 2 in the checkpoint, 4 now"),
            (["data.max_train_samples=500"], "train images"),
            (["data.split_seed=1"], "the number is the same, the images differ"),
            (["data.val_fraction=0.2"], "val images"),
        ],
        2,
    ):
        assert_refused(run, *settings, *changed, words=(word, "start a new"))
    finish(run, *settings)
    assert_same_run(expected, run)


@fault("disk full while a checkpoint is written", 5)
def full(trial: Trial) -> None:
    expected, run, settings = killed_run(trial)
    size = (run / "checkpoints" / "last.ckpt").stat().st_size
    most = trial.random.randrange(size // 10, size)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    content = (run / "checkpoints" / "last.ckpt").read_bytes()
    assert start(run, *settings, before=limit).wait() == 1
    assert "can't be written" in run.with_name("run.txt").read_text()
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == content
    finish(run, *settings)
    assert_same_run(expected, run)


# ------------------------------------------------------------------------------------------------ any file of a run

WAYS = ("truncated", "emptied", "binary", "removed")


def damage_file(draw: random.Random, file: Path, way: str) -> None:
    """Damage a file, of which a hard link may be another."""
    content = file.read_bytes()
    file.unlink()
    if way != "removed":
        kept = {"truncated": content[: draw.randrange(max(1, len(content)))], "emptied": b""}
        file.write_bytes(kept.get(way, draw.randbytes(max(100, len(content)))))


def prototype(work: Path, name: str, *settings: str, saves: int | None) -> Path:
    """The folder of a command line's run, made once, and killed after a number of checkpoints, or finished."""
    folder = work / "prototypes" / name
    with lock(work, f"prototype-{name}"):
        if not (folder / "done").exists():
            folder.mkdir(parents=True)
            operation = ("rename", "digits-vit_NxN_pN-Npx/STAMP/checkpoints/last.ckpt")
            killer = Operations(folder / "runs", folder / "operations", (operation, saves) if saves else None)
            program = start_command(folder, "train", *settings, before=killer.install)
            assert program.wait() == (-signal.SIGKILL if saves else 0), program.text()[-3000:]
            (folder / "done").touch()
    return folder


def damage_run(trial: Trial, *, saves: int | None) -> tuple[Path, Path, str, str]:
    """A copy of a run with a damaged file -> an undisturbed one, the copy, the damaged file, and how."""
    finished = prototype(trial.work, "finished", *SAVED, saves=None)
    made = prototype(trial.work, "killed", *SAVED, saves=saves) if saves else finished
    shutil.copytree(made / "runs", trial.folder / "runs")
    (run,) = trial.folder.glob("runs/*/*")
    files = [str(f.relative_to(run)) for f in sorted(run.rglob("*")) if f.is_file() and not f.name.endswith(".lock")]
    name, way = trial.random.choice(files), trial.random.choice(WAYS)
    damage_file(trial.random, run / name, way)
    (trial.folder / "damage.txt").write_text(f"{name} {way}\n")
    return finished_run(finished), run, name, way


def assert_resumed_as_far_as_known(expected: Path, run: Path, name: str, output: str) -> None:
    """A resumed run equals the undisturbed one, except for what was lost with the damaged file, which is reported."""
    lost_best, lost_rows = "search for the best checkpoint starts again" in output, "is shorter than" in output
    assert not lost_best or name.startswith("checkpoints/best"), output
    assert not lost_rows or name == "metrics.csv", output
    assert_same_run(expected, run, best=not lost_best, metrics=not lost_rows)
    if lost_rows:
        wrong = [row for row in rows(run) if row not in rows(expected)]
        assert not wrong, f"rows that the run hasn't logged: {wrong}"
        assert rows(run)[-1] == rows(expected)[-1]


@fault("any file of a killed run damaged, then train.py resume=auto", 32)
def damaged_then_auto(trial: Trial) -> None:
    """The run is resumed to the same end, or skipped with a warning: then a new one is, and nothing else is changed."""
    expected, run, name, way = damage_run(trial, saves=9)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    output = run_command(trial.folder, "train", *SAVED, "resume=auto")
    done = finished_run(trial.folder)
    if done == run:
        assert "resume=auto: resumes" in output, output
        assert_resumed_as_far_as_known(expected, run, name, output)
    else:
        assert name == "config.yaml", f"{name} {way}: a new run was started\n{output[-2000:]}"
        assert "starts a new run; in " in output, output
        assert way == "removed" or "1 unreadable" in output or "1 with other settings" in output, output
        assert {file: file.read_bytes() for file in before} == before, "the damaged run was changed"
        assert_same_run(expected, done)


@fault("any file of a killed run damaged, then train.py resume=RUN", 16)
def damaged_then_run(trial: Trial) -> None:
    """The run is resumed to the same end, or refused with the file's name."""
    expected, run, name, way = damage_run(trial, saves=9)
    before = {file: file.read_bytes() for file in run.rglob("*.ckpt")}
    output = run_command(trial.folder, "train", f"resume={run}", expect=None)
    if output.endswith("status 0") and "runs it with" not in output and name != ".hydra/overrides.yaml":
        assert_resumed_as_far_as_known(expected, run, name, output)
    elif not output.endswith("status 0"):
        assert name in output or (name == "config.yaml" and "no run folder" in output), (
            f"{name} {way}: {output[-2000:]}"
        )
        assert {file: file.read_bytes() for file in before} == before
    elif name == ".hydra/overrides.yaml":
        raise AssertionError(f"{name} {way}: resumed without the run's own settings\n{output[-2000:]}")


@fault("any file of a finished run damaged, then evaluate.py", 16)
def damaged_then_evaluated(trial: Trial) -> None:
    """The score is that of training, or the error names the file."""
    expected, run, name, way = damage_run(trial, saves=None)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    output = run_command(trial.folder, "evaluate", f"run={run}", "trainer.accelerator=cpu", expect=None)
    assert {file: file.read_bytes() for file in before} == before, "the run was changed"
    if output.endswith("status 0"):
        results = read_results(run / "evaluation" / "best-test")
        keys = ("test/correct", "test/count", "test/loss")
        assert [results[k] for k in keys] == [read_results(expected)[k] for k in keys], f"{name} {way}: other scores"
    else:
        assert Path(name).name in output, f"{name} {way}: {output[-2000:]}"
