"""Runs of a small network: settings, references, and the comparison of two runs."""

import csv
import shlex
import sys
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
from faults.operations import Operations
from faults.programs import SRC, ForkedProgram, environment
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


def start(run: Path, *settings: str, ranks: int = 1, before: Callable[[], None] | None = None) -> ForkedProgram:
    """Start or resume a run; its output is in `RUN.txt`. Each of its processes calls `before` first, or inherits it."""
    run.parent.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, str(SRC / "train.py"), *settings, f"hydra.run.dir={run}", "resume=auto"]
    output = run.with_name(f"{run.name}.txt")
    return ForkedProgram(
        [*line, f"trainer.devices={ranks}"], env=environment(), cwd=run.parent, output=output, before=before
    )


def finish(run: Path, *settings: str, ranks: int = 1, before: Callable[[], None] | None = None) -> None:
    """Start or resume a run and wait for its end."""
    program = start(run, *settings, ranks=ranks, before=before)
    assert program.wait() == 0, program.text()[-3000:]


def reference(work: Path, name: str, *overrides: str, ranks: int = 1) -> tuple[Path, float]:
    """An undisturbed run, made once, and its seconds. `NAME.operations` has its file operations."""
    run = work / "references" / name
    took, record = run.with_suffix(".seconds"), run.with_suffix(".operations")
    with lock(work, name):
        if not took.exists():
            run.parent.mkdir(exist_ok=True)
            begin = time.monotonic()
            finish(run, *overrides, ranks=ranks, before=Operations(run, record).install)
            took.write_text(str(time.monotonic() - begin))
    return run, float(took.read_text())


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
        for part in (*parts, "current_model_state", "averaging_state"):
            assert same(first.get(part), second.get(part)), f"{name}.ckpt: {part} differs"
    first, second = (read_results(run) for run in (one, two))
    assert first["status"] == second["status"] == "finished"
    scores = (k for k in first if k.startswith(("val/", "test/"))) if best else ()
    for key in (*scores, "steps", "epochs", "images"):
        assert first[key] == second[key], f"results.json: {key} differs"


def finished_run(folder: Path) -> Path:
    """The only finished run in `folder/runs`."""
    runs = [file.parent for file in folder.glob("runs/*/*/results.json")]
    done = [run for run in runs if read_results(run).get("status") == "finished"]
    assert len(done) == 1, f"{len(done)} of {[(run.name, read_results(run).get('status')) for run in runs]} finished"
    return done[0]
