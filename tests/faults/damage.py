"""Damaged files: checkpoints bit by bit, every file of a run and of a sweep, full disks, and folders of other runs."""

import json
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from faults.programs import run_command, text
from faults.runs import DIGITS, assert_same_run, contents, finish, finished_run, once, reference, rows, start
from faults.trials import Trial, fault
from vitlab.runs.folder import read_results
from vitlab.storage import safe_load

SAVED = [*DIGITS, "callbacks.last.every_n_train_steps=3"]


def killed_run(trial: Trial) -> tuple[Path, Path, list[str]]:
    """An undisturbed run, and one that was killed after several checkpoints, with its settings."""
    expected, seconds = reference(trial.work, "digits", *DIGITS)
    run = trial.folder / "run"
    program = start(trial.folder, *SAVED)
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
        assert_same_run(expected, finish(trial.folder, *settings))
    else:
        assert_same_run(expected, finish(trial.folder, *settings))
        assert "is damaged" in text(trial.folder), "it wasn't reported"
        assert (run / "checkpoints" / "last.ckpt.damaged").exists(), "the damaged file is gone"


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


OTHERS = [
    ("model.dim=32", "model.dim: 16 in the checkpoint, 32 now"),
    ("model.heads=4", "model.heads: 2 in the checkpoint, 4 now"),
    ("data.max_train_samples=500", "train images"),
    ("data.split_seed=1", "the number is the same, the images differ"),
    ("data.val_fraction=0.2", "val images"),
]


@fault("resumed with another network or other data: refused", 5)
def others(trial: Trial) -> None:
    expected, run, settings = killed_run(trial)
    saved = contents(run / "checkpoints")
    for changed, words in trial.random.sample(OTHERS, 2):
        program = start(trial.folder, *settings, changed)
        assert program.wait() == 1, program.text()[-2000:]
        assert words in program.text(), program.text()[-2000:]
        assert "start a new" in program.text(), program.text()[-2000:]
        assert contents(run / "checkpoints") == saved
    assert_same_run(expected, finish(trial.folder, *settings))


@fault("disk full while a checkpoint is written", 5)
def full(trial: Trial) -> None:
    expected, run, settings = killed_run(trial)
    size = (run / "checkpoints" / "last.ckpt").stat().st_size
    most = trial.random.randrange(size // 10, size)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    content = (run / "checkpoints" / "last.ckpt").read_bytes()
    assert start(trial.folder, *settings, before=limit).wait() == 1
    output = text(trial.folder)  # a run that was killed after its last step writes other files
    assert "can't be written" in output or "training ended by max_epochs" in output, output[-2000:]
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == content
    assert_same_run(expected, finish(trial.folder, *settings))


# ------------------------------------------------------------------------------------------------ any file of a run

WAYS = ("truncated", "emptied", "binary", "removed")


def damage_file(draw: random.Random, file: Path, way: str) -> None:
    """Damage a file, of which a hard link may be another."""
    content = file.read_bytes()
    file.unlink()
    if way != "removed":
        kept = {"truncated": content[: draw.randrange(max(1, len(content)))], "emptied": b""}
        file.write_bytes(kept.get(way, draw.randbytes(max(100, len(content)))))


SAVE = ("rename", "runs/digits-vit_NxN_pN-Npx/STAMP/checkpoints/last.ckpt")


def copied_run(trial: Trial, *, finished: bool) -> Path:
    """A copy of a command line's run, which has finished or was killed at its ninth checkpoint."""
    name, at = ("finished", None) if finished else ("killed", (SAVE, 9))
    shutil.copytree(once(trial.work, name, "train", *SAVED, at=at) / "runs", trial.folder / "runs")
    (run,) = trial.folder.glob("runs/*/*")
    return run


def damage_any_file(trial: Trial, folder: Path, *names: str) -> tuple[str, str]:
    """Damage a file below a folder, one of these names if there are any -> its path, how."""
    files = [str(f) for f in sorted(contents(folder)) if not names or f.name in names]
    name, way = trial.random.choice(files), trial.random.choice(WAYS)
    damage_file(trial.random, folder / name, way)
    (trial.folder / "damage.txt").write_text(f"{name} {way}\n")
    return name, way


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
    expected, _ = reference(trial.work, "digits", *DIGITS)
    run = copied_run(trial, finished=False)
    name, way = damage_any_file(trial, run)
    before = contents(run)
    output = run_command(trial.folder, "train", *SAVED, "resume=auto")
    if (done := finished_run(trial.folder)) == run:
        assert "resume=auto: resumes" in output, output
        assert_resumed_as_far_as_known(expected, run, name, output)
    else:
        assert name == "config.yaml", f"{name} {way}: a new run was started\n{output[-2000:]}"
        assert "starts a new run; in " in output, output
        assert way == "removed" or "1 unreadable" in output or "1 with other settings" in output, output
        assert contents(run) == before, "the damaged run was changed"
        assert_same_run(expected, done)


@fault("any file of a killed run damaged, then train.py resume=RUN", 16)
def damaged_then_run(trial: Trial) -> None:
    """The run is resumed to the same end, or refused with the file's name."""
    expected, _ = reference(trial.work, "digits", *DIGITS)
    run = copied_run(trial, finished=False)
    name, way = damage_any_file(trial, run)
    before = contents(run, "*.ckpt")
    output = run_command(trial.folder, "train", f"resume={run}", expect=None)
    if name == ".hydra/overrides.yaml" and ("resume with another setting" in output or "another network" in output):
        return  # without the settings that were lost, which is reported
    if output.endswith("status 0"):
        assert_resumed_as_far_as_known(expected, run, name, output)
    else:
        assert name in output or (name == "config.yaml" and "no run folder" in output), (
            f"{name} {way}: {output[-2000:]}"
        )
        assert contents(run, "*.ckpt") == before


@fault("any file of a finished run damaged, then evaluate.py", 16)
def damaged_then_evaluated(trial: Trial) -> None:
    """The score is that of training, or the error names the file."""
    run = copied_run(trial, finished=True)
    trained = read_results(run)
    name, way = damage_any_file(trial, run)
    before = {k: v for k, v in contents(run).items() if not str(k).startswith(("evaluation/", "report/"))}
    output = run_command(trial.folder, "evaluate", f"run={run}", "trainer.accelerator=cpu", expect=None)
    assert before.items() <= contents(run).items(), "the run was changed, and not its evaluation and report alone"
    if output.endswith("status 0"):
        scores = read_results(run / "evaluation" / "best-test")
        for key in ("test/correct", "test/count", "test/loss"):
            assert scores[key] == trained[key], f"{name} {way}: {key} is {scores[key]}, not {trained[key]}"
    else:
        assert Path(name).name in output, f"{name} {way}: {output[-2000:]}"
