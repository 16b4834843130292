"""Runs of a small network in forked processes: settings, ranks, references, and the comparison of two runs."""

import csv
import os
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
import torch.distributed as distributed
from filelock import FileLock
from PIL import Image

import train as train_program
from faults.operations import Operations
from faults.programs import TIMEOUT
from vitlab.cli import checks, register
from vitlab.config.schema import Node
from vitlab.data.sets.digits import digits
from vitlab.distributed import launch
from vitlab.jobs import compose
from vitlab.jobs.run import run_here
from vitlab.runs.folder import read_config, read_results, write_config
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
    """Import and cache what runs use, before this process is forked."""
    torch.set_num_threads(1)
    import evaluate
    import prepare
    import sweep
    from vitlab.runs import plots, wandb

    _ = evaluate, prepare, sweep, wandb
    digits()
    (work / "warm.csv").write_text("step,epoch,train/loss,val/loss\n1,1,1,1\n2,2,1,1\n")
    plots.plot_curves(work / "warm.csv", work / "warm.png", "fonts")
    train_config(work / "warm", *DIGITS)


# ---------------------------------------------------------------------------------------------------- runs in processes


def train_config(folder: Path, *overrides: str) -> Node:
    """The checked configuration of `train.py` for a run in `folder`."""
    config, problems = check_config(folder, *overrides)
    assert not problems, problems
    return config


def check_config(folder: Path, *overrides: str) -> tuple[Node, list[str]]:
    """The configuration and its problems."""
    register.register()
    with hydra.initialize_config_dir(str(compose.CONF), version_base="1.3"):
        config = compose.resolve_config(compose.compose("train", list(overrides)), str(folder))
    assert isinstance(config, dict)
    return config, checks.problems(train_program.main, config)


@dataclass
class Job:
    """A running training: the processes of its ranks."""

    run: Path
    pids: list[int]
    status: dict[int, int] = field(default_factory=dict)
    store: Any = None

    def poll(self) -> bool:
        """Whether all ranks have ended."""
        for pid in self.pids:
            if pid not in self.status:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.status[pid] = os.waitstatus_to_exitcode(status)
        return len(self.status) == len(self.pids)

    def wait(self, seconds: float = TIMEOUT) -> list[int]:
        """Wait for the ranks and return their statuses. Ranks that run into the timeout are killed, which is an error.

        After a rank has failed, the others have `launch.TAKEDOWN` seconds to end, as with vitlab's launcher. Then they
        get its status.
        """
        deadline, ended = time.monotonic() + seconds, 0.0
        while not self.poll():
            early = [status for status in self.status.values() if status]
            ended = ended or (time.monotonic() if early else 0.0)
            if ended and time.monotonic() - ended > launch.TAKEDOWN:
                self.send(signal.SIGKILL)
                while not self.poll():
                    time.sleep(0.01)
                self.status = dict.fromkeys(self.pids, early[0])
                break
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                raise AssertionError(f"still running after {seconds:.0f} s\n{last_output(self.run)}")
            time.sleep(0.01)
        return [self.status[pid] for pid in self.pids]

    def send(self, number: int, rank: int | None = None) -> None:
        for pid in self.pids if rank is None else [self.pids[rank]]:
            if pid not in self.status:
                os.kill(pid, number)


def start(
    run: Path, *overrides: str, ranks: int = 1, resume: bool = False, before: Callable[[], None] | None = None
) -> Job:
    """Start the ranks of a run; each one calls `before` first."""
    config = train_config(run, *overrides, f"trainer.devices={ranks}")
    config["resume"] = "auto" if resume else None
    write_config(run, config)
    environment = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    store = None
    if ranks > 1:
        store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(ranks)}
        environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "faults", "GROUP_RANK": "0"}
        environment |= {"LOCAL_WORLD_SIZE": str(ranks)}
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                os.environ.update(environment)
                if ranks > 1:
                    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
                output = os.open(run / "output.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                os.dup2(output, 1)
                os.dup2(output, 2)
                sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1)
                warnings.resetwarnings()  # under pytest they are errors
                torch.set_num_threads(1)
                if before:
                    before()
                run_here("train", train_program.main.function, run, read_config(run))
                status = 0
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        pids.append(pid)
    return Job(run, pids, store=store)


def last_output(run: Path) -> str:
    """The last lines of a run's output."""
    file = run / "output.txt"
    return "\n".join(file.read_text(errors="replace").splitlines()[-15:]) if file.exists() else ""


def finish(
    run: Path, *overrides: str, ranks: int = 1, resume: bool = True, before: Callable[[], None] | None = None
) -> None:
    """Resume a run and wait for its end."""
    status = start(run, *overrides, ranks=ranks, resume=resume, before=before).wait()
    assert not any(status), f"ended with {status}\n{last_output(run)}"


def reference(work: Path, name: str, *overrides: str, ranks: int = 1) -> tuple[Path, float]:
    """An undisturbed run, made once, and its seconds. `NAME.operations` has its file operations."""
    run = work / "references" / name
    took, record = run.with_suffix(".seconds"), run.with_suffix(".operations")
    with lock(work, name):
        if not took.exists():
            run.mkdir(parents=True, exist_ok=True)
            begin = time.monotonic()
            finish(run, *overrides, ranks=ranks, resume=False, before=Operations(run, record).install)
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
