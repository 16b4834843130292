"""Runs of a small network: settings, references, and the comparison of two runs."""

import csv
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import torch
from filelock import FileLock
from PIL import Image

import train as train_program
from faults.operations import Operation, Operations, read_operations
from faults.programs import ForkedProgram, run_command, start_command
from faults.trials import Trial
from vitlab.cli import checks, register
from vitlab.config.schema import Node
from vitlab.data.sets.digits import digits
from vitlab.jobs import compose
from vitlab.runs import plots, wandb
from vitlab.runs.folder import read_results
from vitlab.storage import safe_load
from vitlab.training.throughput import TIMED

SMALL = shlex.split(
    "model.dim=16 model.depth=2 model.heads=2 objective=val/acc schedule.warmup_steps=2 trainer.max_epochs=4 "
    "trainer.log_every_n_steps=3 trainer.accelerator=cpu trainer.enable_progress_bar=false logger=csv batch_size=32"
)
# Random operations, and state between steps.
HARD = shlex.split(
    "data.augment.mixup=0.4 data.augment.cutmix=0.5 data.augment.erasing=0.3 model.dropout=0.1 model.drop_path=0.2 "
    "trainer.accumulate_grad_batches=2 callbacks=ema"
)
DIGITS = [*SMALL, "data.max_train_samples=300", *HARD]


def images(work: Path) -> list[str]:
    """Overrides for a folder of digits as PNG files, of three classes, loaded by two worker processes."""
    folder = work / "images"
    with lock(work):
        if not folder.exists():
            train = digits().train
            assert train.images is not None
            for index, label in enumerate(train.labels.tolist()):
                if label < 3 and index < 600:
                    file = folder / str(label) / f"{index}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(train.images[index, 0].numpy()).resize((16, 16)).save(file)
    files = ["data=image_folder", f"data_dir={folder}", "image_size=16", "data.num_workers=2", "model/patch=p8"]
    return [*SMALL, *files, *HARD]


def warm_up(work: Path) -> None:
    """Import and cache what programs use, before this process is forked."""
    torch.set_num_threads(1)
    import evaluate
    import prepare
    import sweep

    _ = evaluate, prepare, sweep, wandb, digits()
    (work / "warm.csv").write_text("step,epoch,train/loss,val/loss\n1,1,1,1\n2,2,1,1\n")
    plots.plot_curves(work / "warm.csv", work / "warm.png", "fonts")
    check_config(work / "warm", *DIGITS)


def check_config(folder: Path, *overrides: str) -> tuple[Node, list[str]]:
    """The configuration of `train.py` for a run in `folder`, and its problems."""
    register.register()
    with hydra.initialize_config_dir(str(compose.CONF), version_base="1.3"):
        config = compose.resolve_config(compose.compose("train", list(overrides)), str(folder))
    assert isinstance(config, dict)
    return config, checks.problems(train_program.main, config)


def start(folder: Path, *settings: str, ranks: int = 1, before: Callable[[], None] | None = None) -> ForkedProgram:
    """Start or resume the run in `FOLDER/run`. Each of its processes calls `before` first, or inherits what it does."""
    folder.mkdir(parents=True, exist_ok=True)
    line = [*settings, "hydra.run.dir=run", "resume=auto", f"trainer.devices={ranks}"]
    return start_command(folder, "train", *line, before=before)


def start_for(seconds: float, folder: Path, *settings: str, ranks: int = 1) -> ForkedProgram:
    """Start or resume a run, and return after `seconds` or at its end."""
    program, deadline = start(folder, *settings, ranks=ranks), time.monotonic() + seconds
    while time.monotonic() < deadline and program.poll() is None:
        time.sleep(0.005)
    return program


def finish(folder: Path, *settings: str, ranks: int = 1) -> Path:
    """Start or resume a run, wait for its end, and return the run."""
    if read_results(folder / "run").get("status") != "finished":
        program = start(folder, *settings, ranks=ranks)
        assert program.wait() == 0, program.text()[-3000:]
    return folder / "run"


def reference(work: Path, name: str, *settings: str, ranks: int = 1) -> tuple[Path, float]:
    """An undisturbed run, made once, and its seconds."""
    folder = once(work, name, "train", *settings, "hydra.run.dir=run", f"trainer.devices={ranks}")
    return folder / "run", float((folder / "seconds").read_text())


def once(work: Path, name: str, program: str, *line: str, at: tuple[Operation, int] | None = None) -> Path:
    """The folder of a command that is run once for all trials, or killed at an operation.

    `operations` has its file operations, `seconds` its time.
    """
    folder = work / "once" / name
    with lock(work, name):
        if not (folder / "seconds").exists():
            folder.mkdir(parents=True)
            begin = time.monotonic()
            made = start_command(folder, program, *line, before=Operations(folder, folder / "operations", at).install)
            assert made.wait_for_all() == (-signal.SIGKILL if at else 0), made.text()[-3000:]
            (folder / "seconds").write_text(str(time.monotonic() - begin))
    return folder


def disturb(
    trial: Trial,
    program: str,
    *line: str,
    like: Path,
    only: Callable[[Operation], bool] = lambda operation: True,
    within: bool = False,
    then: Callable[[], Any] = lambda: None,
) -> None:
    """Kill a command at a random operation on a random file, once or twice, each time followed by `then`.

    `like` is the folder of an undisturbed one. The command can be run again until it ends well.
    """
    done = read_operations(like / "operations")
    for attempt in range(trial.random.choice((1, 1, 2))):
        operation = trial.random.choice([operation for operation in sorted(done) if only(operation)])
        at = (operation, trial.random.randint(1, done[operation]))
        killer = Operations(trial.folder, trial.folder / f"operations-{attempt}", at, within=within)
        started = start_command(trial.folder, program, *line, before=killer.install)
        status = started.wait_for_all()
        with (trial.folder / "output.txt").open("a") as output:
            output.write(f"--- to be killed at {at}, ended with {status}\n")
        # 1: the program of a killed rank or job
        assert status in (0, 1, -signal.SIGKILL, -signal.SIGXFSZ), f"{at}: {status}\n{started.text()[-3000:]}"
        assert status or attempt, f"{at} was not reached"
        then()
        if status == 0 or (program == "train" and finished_runs(trial.folder)):
            return
    run_command(trial.folder, program, *line)


@contextmanager
def lock(work: Path, name: str = "shared") -> Iterator[None]:
    """Let one trial at a time make what others use."""
    with FileLock(work / f"{name}.lock"):
        yield


# -------------------------------------------------------------------------------------------------------- comparisons


def rows(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without the speed."""
    with (run / "metrics.csv").open(newline="") as lines:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(lines)]


def same(one: Any, two: Any) -> bool:
    """Whether two contents are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


def assert_same_run(one: Path, two: Path, *, best: bool = True, metrics: bool = True) -> None:
    """Compare metrics, scores and the content of the last and the best checkpoint, except for paths."""
    assert not metrics or rows(one) == rows(two), "metrics.csv differs"
    for name in ("last", "best") if best else ("last",):
        first, second = (safe_load.load_checkpoint(run / "checkpoints" / f"{name}.ckpt") for run in (one, two))
        parts = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "random", "monitor", "global_step")
        if not metrics:  # whose rows it counts
            first["monitor"]["rows"] = second["monitor"]["rows"]
        for part in (*parts, "current_model_state", "averaging_state"):
            assert same(first.get(part), second.get(part)), f"{name}.ckpt: {part} differs"
    first, second = (read_results(run) for run in (one, two))
    assert first["status"] == second["status"] == "finished"
    scores = (k for k in first if k.startswith(("val/", "test/"))) if best else ()
    for key in (*scores, "steps", "epochs", "images"):
        assert first[key] == second[key], f"results.json: {key} differs"


def finished_runs(folder: Path) -> list[Path]:
    """The finished runs in `FOLDER/run` and `FOLDER/runs`."""
    runs = [folder / "run", *(file.parent for file in folder.glob("runs/*/*/results.json"))]
    return [run for run in runs if read_results(run).get("status") == "finished"]


def finished_run(folder: Path) -> Path:
    """The only finished run in a folder."""
    done = finished_runs(folder)
    assert len(done) == 1, f"finished are {done}"
    return done[0]


def contents(folder: Path, pattern: str = "*") -> dict[Path, bytes]:
    """The files in a folder."""
    return {
        f.relative_to(folder): f.read_bytes() for f in folder.rglob(pattern) if f.is_file() and "lock" not in f.suffix
    }
