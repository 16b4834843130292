"""`make faults`: disturb runs at random moments, resume them, and count the trials that lost something.

    python tests/faults.py                            all faults, in less than half an hour on two cores
    python tests/faults.py --seed 7 --only SIGKILL    another seed; faults with this word in their names
    python tests/faults.py --scale 0.1                a tenth of the trials

A trial survives if the resumed run ends bit for bit as an undisturbed one (weights, optimizer, metrics file, best
checkpoint). If it can't be resumed, it must end with the documented error and an intact last checkpoint. Runs use
`train.py`'s code in forked processes, which skip only the imports.
"""

import argparse
import collections
import csv
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import hydra
import torch
import torch.distributed as distributed
from PIL import Image

import train as train_program
from vitlab.cli import checks, register
from vitlab.config.schema import Node
from vitlab.diagnostics import replay
from vitlab.distributed import launch, signals
from vitlab.jobs import compose
from vitlab.jobs.run import run_here
from vitlab.runs.folder import RESULTS, read_config, read_results, write_config
from vitlab.storage import safe_load
from vitlab.training.throughput import TIMED

SMALL = [
    "model.dim=16",
    "model.depth=2",
    "model.heads=2",
    "objective=val/acc",
    "schedule.warmup_steps=2",
    "trainer.max_epochs=4",
    "trainer.log_every_n_steps=3",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "logger=csv",
    "batch_size=32",
]
# Random operations, and state between steps.
HARD = [
    "data.augment.mixup=0.4",
    "data.augment.cutmix=0.5",
    "data.augment.erasing=0.3",
    "model.dropout=0.1",
    "model.drop_path=0.2",
    "trainer.accumulate_grad_batches=2",
    "callbacks=ema",
]
DIGITS = [*SMALL, "data.max_train_samples=600", *HARD]
SRC = Path(train_program.__file__).parent
TIMEOUT = 120.0  # seconds, for each part of a trial


# ---------------------------------------------------------------------------------------------------- runs in processes


def train_config(folder: Path, *overrides: str) -> Node:
    """The checked configuration of `train.py` for a run in `folder`."""
    register.register()
    with hydra.initialize_config_dir(str(compose.CONF), version_base="1.3"):
        config = compose.resolve_config(compose.compose("train", list(overrides)), str(folder))
    problems = checks.problems(train_program.main, config)
    assert not problems, problems
    assert isinstance(config, dict)
    return config


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
    environment = {"OMP_NUM_THREADS": "1"}
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


def finish(run: Path, *overrides: str, ranks: int = 1, resume: bool = True) -> None:
    """Resume a run and wait for its end."""
    status = start(run, *overrides, ranks=ranks, resume=resume).wait()
    assert not any(status), f"ended with {status}\n{last_output(run)}"


def reference(work: Path, name: str, *overrides: str, ranks: int = 1) -> tuple[Path, float]:
    """An undisturbed run, made once, and its seconds."""
    run = work / "references" / name
    took = run.with_suffix(".seconds")
    with runs_lock(work):
        if not took.exists():
            begin = time.monotonic()
            finish(run, *overrides, ranks=ranks, resume=False)
            took.write_text(str(time.monotonic() - begin))
    return run, float(took.read_text())


@contextmanager
def runs_lock(work: Path) -> Iterator[None]:
    from filelock import FileLock

    with FileLock(work / "references.lock"):
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


def assert_same_run(one: Path, two: Path) -> None:
    """Compare metrics, scores and the content of the last and the best checkpoint, except for paths."""
    assert rows(one) == rows(two), "metrics.csv differs"
    for name in ("last", "best"):
        first, second = (safe_load.load_checkpoint(run / "checkpoints" / f"{name}.ckpt") for run in (one, two))
        parts = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "random", "monitor", "global_step")
        for part in (*parts, "current_model_state", "averaging_state"):
            assert same(first.get(part), second.get(part)), f"{name}.ckpt: {part} differs"
    first, second = (read_results(run) for run in (one, two))
    assert first["status"] == second["status"] == "finished"
    for key in (*(k for k in first if k.startswith(("val/", "test/"))), "steps", "epochs", "images"):
        assert first[key] == second[key], f"results.json: {key} differs"


# -------------------------------------------------------------------------------------------------------------- faults


@dataclass
class Trial:
    """Random numbers and a folder of a trial, and the folder of the references."""

    random: random.Random
    folder: Path
    work: Path


Fault = Callable[[Trial], None]
FAULTS: dict[str, tuple[int, Fault]] = {}  # number of trials and function, by name


def fault(name: str, times: int) -> Callable[[Fault], Fault]:
    def add(function: Fault) -> Fault:
        FAULTS[name] = (times, function)
        return function

    return add


def images(work: Path) -> list[str]:
    """Overrides for a folder of digits as PNG files, of three classes, loaded by two worker processes."""
    folder = work / "images"
    with runs_lock(work):
        if not folder.exists():
            from vitlab.data.sets.digits import digits

            train = digits().train
            assert train.images is not None
            for index, label in enumerate(train.labels.tolist()):
                if label < 3 and index < 600:
                    file = folder / str(label) / f"{index}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(train.images[index, 0].numpy()).resize((16, 16)).save(file)
    return [
        *(o for o in SMALL if not o.startswith("model.")),
        "data=image_folder",
        f"data_dir={folder}",
        "image_size=16",
        "data.num_workers=2",
        "model.dim=16",
        "model.depth=2",
        "model.heads=2",
        "model/patch=p8",
        *(o for o in HARD if "crop_padding" not in o),
    ]


def run_until(trial: Trial, seconds: float, *overrides: str, ranks: int = 1, resume: bool = False) -> Job:
    """Start a run and wait for `seconds`."""
    job = start(trial.folder / "run", *overrides, ranks=ranks, resume=resume)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not job.poll():
        time.sleep(0.005)
    return job


def send_signal(
    trial: Trial, numbers: tuple[int, ...], name: str, *settings: str, ranks: int = 1, every: bool = True
) -> None:
    """Send one of the signals at up to three random moments, and resume the run each time."""
    settings = (*settings, f"callbacks.last.every_n_train_steps={trial.random.choice((1, 2, 5, 'null'))}")
    # the interval of checkpoints doesn't affect the training, so references don't set it
    expected, seconds = reference(trial.work, name, *settings[:-1], ranks=ranks)
    run = trial.folder / "run"
    for attempt in range(trial.random.choice((1, 1, 2, 3))):
        job = run_until(trial, trial.random.uniform(0.02, 1.0) * seconds, *settings, ranks=ranks, resume=attempt > 0)
        number = trial.random.choice(numbers)
        if every:
            job.send(number)
        else:
            job.send(number, rank=trial.random.randrange(ranks))
        statuses = job.wait(launch.TAKEDOWN + 45)
        status = read_results(run).get("status")
        if number != signal.SIGKILL and any(statuses):
            outcome = signals.SIGNALS[number]
            assert set(statuses) == {signals.STATUS[outcome]}, f"ended with {statuses}\n{last_output(run)}"
            assert status in (outcome, None), f"results.json says {status}"
        for file in (run / "checkpoints").glob("*.ckpt"):
            assert safe_load.corruption(file) is None, f"{file.name} is damaged"
        if status == "finished":
            break
    else:
        finish(run, *settings, ranks=ranks)
    assert_same_run(expected, run)


@fault("SIGKILL, one process, with all random operations", 60)
def killed(trial: Trial) -> None:
    send_signal(trial, (signal.SIGKILL,), "digits", *DIGITS)


@fault("SIGKILL, image folder, two loading processes", 16)
def killed_loading(trial: Trial) -> None:
    send_signal(trial, (signal.SIGKILL,), "images", *images(trial.work))


@fault("SIGKILL, two gloo ranks", 16)
def killed_ranks(trial: Trial) -> None:
    send_signal(trial, (signal.SIGKILL,), "digits-2", *DIGITS, ranks=2)


@fault("SIGKILL, two gloo ranks, image folder, two loading processes each", 6)
def killed_ranks_loading(trial: Trial) -> None:
    send_signal(trial, (signal.SIGKILL,), "images-2", *images(trial.work), ranks=2)


@fault("SIGKILL of one of two gloo ranks: the other must end too", 8)
def killed_rank(trial: Trial) -> None:
    send_signal(trial, (signal.SIGKILL,), "digits-2", *DIGITS, ranks=2, every=False)


@fault("SIGTERM or SIGUSR1: preempted, requeued", 20)
def preempted(trial: Trial) -> None:
    send_signal(trial, (signal.SIGTERM, signal.SIGUSR1), "digits", *DIGITS)


@fault("SIGTERM or SIGUSR1, two gloo ranks", 8)
def preempted_ranks(trial: Trial) -> None:
    send_signal(trial, (signal.SIGTERM, signal.SIGUSR1), "digits-2", *DIGITS, ranks=2)


@fault("Ctrl-C", 8)
def interrupted(trial: Trial) -> None:
    send_signal(trial, (signal.SIGINT,), "digits", *DIGITS)


@fault("a second signal: ends immediately", 6)
def signalled_twice(trial: Trial) -> None:
    settings = [*DIGITS, "callbacks.last.every_n_train_steps=5"]
    expected, seconds = reference(trial.work, "digits", *DIGITS)
    job = run_until(trial, trial.random.uniform(0.1, 0.9) * seconds, *settings)
    os.kill(job.pids[0], signal.SIGSTOP)  # so that the step doesn't end before the second signal
    job.send(signal.SIGTERM)
    time.sleep(signals.ECHO + 0.2)
    job.send(signal.SIGINT)
    os.kill(job.pids[0], signal.SIGCONT)
    job.wait(10)
    finish(trial.folder / "run", *settings)
    assert_same_run(expected, trial.folder / "run")


def killed_run(trial: Trial) -> tuple[Path, Path, list[str]]:
    """An undisturbed run, and one that was killed after several checkpoints, with its settings."""
    settings = [*DIGITS, "callbacks.last.every_n_train_steps=3"]
    expected, seconds = reference(trial.work, "digits", *DIGITS)
    run = trial.folder / "run"
    job = start(run, *settings)
    while not (run / "checkpoints" / "previous.ckpt").exists() and not job.poll():
        time.sleep(0.005)
    time.sleep(trial.random.uniform(0, 0.4) * seconds)
    job.send(signal.SIGKILL)
    job.wait()
    return expected, run, settings


def damage_checkpoint(trial: Trial, damage: Callable[[bytearray], bytearray]) -> None:
    """Damage the last checkpoint of a killed run: this must be detected, and the one before gives the same result."""
    expected, run, settings = killed_run(trial)
    file = run / "checkpoints" / "last.ckpt"
    content = file.read_bytes()
    before = safe_load.load_checkpoint(file)
    before = {k: before[k] for k in ("state_dict", "optimizer_states", "loops", "global_step")}
    before = json.loads(json.dumps(before, default=lambda tensor: tensor.tolist()))
    file.write_bytes(damage(bytearray(content)))
    if safe_load.corruption(file) is None:  # an unused bit (a date, a flag): the content is the same
        after = safe_load.load_checkpoint(file)
        after = json.loads(json.dumps({k: after[k] for k in before}, default=lambda tensor: tensor.tolist()))
        assert before == after, "undetected damage"
    else:
        finish(run, *settings)
        assert "is damaged" in (run / "output.txt").read_text(), "it wasn't reported"
        assert_same_run(expected, run)
        assert (run / "checkpoints" / "last.ckpt.damaged").exists(), "the damaged file is gone"
        return
    finish(run, *settings)
    assert_same_run(expected, run)


@fault("last checkpoint truncated", 12)
def truncated(trial: Trial) -> None:
    damage_checkpoint(trial, lambda content: content[: trial.random.randrange(len(content))])


@fault("last checkpoint zeroed from a random position", 8)
def zeroed(trial: Trial) -> None:
    def damage(content: bytearray) -> bytearray:
        begin = trial.random.randrange(len(content))
        end = min(len(content), begin + trial.random.choice((512, 4096, len(content))))
        content[begin:end] = bytes(end - begin)
        return content

    damage_checkpoint(trial, damage)


@fault("last checkpoint with a flipped bit", 20)
def flipped(trial: Trial) -> None:
    def damage(content: bytearray) -> bytearray:
        content[trial.random.randrange(len(content))] ^= 1 << trial.random.randrange(8)
        return content

    damage_checkpoint(trial, damage)


def assert_refused(run: Path, *overrides: str, words: tuple[str, ...]) -> None:
    """Resuming fails with these words, and the checkpoints don't change."""
    saved = {file.name: file.read_bytes() for file in (run / "checkpoints").iterdir()}
    config = read_config(run)
    status = start(run, *overrides, resume=True).wait()
    write_config(run, config)
    assert status == [1], f"ended with {status}"
    output = (run / "output.txt").read_text()
    for word in words:
        assert word in output, f"{word!r} isn't in\n{last_output(run)}"
    assert {file.name: file.read_bytes() for file in (run / "checkpoints").iterdir()} == saved


@fault("resumed with another network or other data: refused", 10)
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


@fault("two processes in one run folder: the second refused", 6)
def occupied(trial: Trial) -> None:
    expected, seconds = reference(trial.work, "digits", *DIGITS)
    job = run_until(trial, trial.random.uniform(0.1, 0.5) * seconds, *DIGITS)
    while not (trial.folder / "run" / RESULTS).exists():
        time.sleep(0.005)
    status = start(trial.folder / "run", *DIGITS).wait()
    assert status == [1]
    assert "is being trained in by process" in (trial.folder / "run" / "output.txt").read_text()
    assert job.wait() == [0]
    assert_same_run(expected, trial.folder / "run")


@fault("disk full while a checkpoint is written", 10)
def full(trial: Trial) -> None:
    expected, run, settings = killed_run(trial)
    size = (run / "checkpoints" / "last.ckpt").stat().st_size
    most = trial.random.randrange(size // 10, size)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    content = (run / "checkpoints" / "last.ckpt").read_bytes()
    assert start(run, *settings, resume=True, before=limit).wait() == [1]
    assert "can't be written" in (run / "output.txt").read_text()
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == content
    finish(run, *settings)
    assert_same_run(expected, run)


# ------------------------------------------------------------------------------------------------------------ bad input


def image_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def break_image(draw: random.Random, file: Path) -> None:
    """Damage an image file in one of several ways."""
    content = bytearray(file.read_bytes())
    kind = draw.choice(("empty", "truncated", "text", "flipped", "link"))
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "truncated":
        file.write_bytes(content[: draw.randrange(8, len(content) - 12)])
    elif kind == "text":
        file.write_text("not an image")
    elif kind == "flipped":
        content[draw.randrange(33, len(content) - 12)] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    else:
        file.unlink()
        file.symlink_to(f"nowhere-{file.name}")


def own_images(trial: Trial) -> tuple[Path, list[str]]:
    """A copy of the images for this trial, and its overrides."""
    settings = images(trial.work)
    folder = trial.folder / "images"
    shutil.copytree(trial.work / "images", folder)
    return folder, [f"data_dir={folder}" if s.startswith("data_dir=") else s for s in settings]


@fault("broken images: reported before training, or skipped and listed; killed and resumed", 12)
def broken_images(trial: Trial) -> None:
    folder, settings = own_images(trial)
    broken = trial.random.sample(image_files(folder), trial.random.randrange(1, 4))
    for file in broken:
        break_image(trial.random, file)
    run = trial.folder / "refused"
    status = start(run, *settings, "data.scan=decode").wait()
    assert status == [1], f"ended with {status}"
    assert not (run / "metrics.csv").exists(), "training has started"
    assert all(file.name in (run / "output.txt").read_text() for file in broken), last_output(run)

    settings += ["data.on_error=skip", "data.max_skipped=0.05", "callbacks.last.every_n_train_steps=2"]
    expected = trial.folder / "expected"
    finish(expected, *settings, resume=False)
    listed = (expected / "skipped.csv").read_text()
    assert all(file.name in listed for file in broken), listed
    assert len(listed.splitlines()) == len(broken) + 1
    job = run_until(trial, trial.random.uniform(0.5, 2.0), *settings)
    job.send(signal.SIGKILL)
    job.wait()
    finish(trial.folder / "run", *settings)
    assert_same_run(expected, trial.folder / "run")


@fault("the data folder vanishes during the run and comes back", 6)
def vanished(trial: Trial) -> None:
    folder, settings = own_images(trial)
    settings += ["callbacks.last.every_n_train_steps=1"]
    expected = trial.folder / "expected"
    begin = time.monotonic()
    finish(expected, *settings, resume=False)
    job = run_until(trial, trial.random.uniform(0.3, 0.8) * (time.monotonic() - begin), *settings)
    folder.rename(folder.with_name("gone"))
    status = job.wait()
    if status != [0]:
        assert status == [1], f"ended with {status}"
        assert str(folder) in (trial.folder / "run" / "output.txt").read_text(), last_output(trial.folder / "run")
    folder.with_name("gone").rename(folder)
    if status != [0]:
        finish(trial.folder / "run", *settings)
    assert_same_run(expected, trial.folder / "run")


@fault("a loss that isn't finite: stopped, captured, replayed", 8)
def diverged(trial: Trial) -> None:
    rate = 10 ** trial.random.uniform(12, 30)
    settings = [*DIGITS, f"optimizer.lr={rate:.3g}", "trainer.gradient_clip_val=0", "schedule.warmup_steps=0"]
    ranks = trial.random.choice((1, 1, 2))
    run = trial.folder / "run"
    status = start(run, *settings, ranks=ranks).wait()
    assert 0 not in status, f"ended with {status}"
    (capture,) = (run / "captures").iterdir()
    assert f"capture={capture}" in (run / "output.txt").read_text().replace("'", ""), last_output(run)
    for file in (run / "checkpoints").glob("*.ckpt"):
        assert safe_load.corruption(file) is None
    found = replay.replay_capture(capture, rank=trial.random.randrange(ranks), accelerator="cpu").results()
    assert found["reproduced"], found
    assert found["module"], found


# ------------------------------------------------------------------------------------------------- untrusted things


@fault("a checkpoint that would run code: refused", 4)
def code(trial: Trial) -> None:
    expected, run, settings = killed_run(trial)
    flag = trial.folder / "executed"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(flag),))

    torch.save({"global_step": 10**6, "state_dict": Evil()}, run / "checkpoints" / "last.ckpt")
    finish(run, *settings)
    assert not flag.exists(), "it was executed"
    assert "last.ckpt is damaged" in (run / "output.txt").read_text()
    assert_same_run(expected, run)


@fault("a configuration that would call what it may not: refused", 8)
def untrusted(trial: Trial) -> None:
    flag = trial.folder / "executed"
    target = trial.random.choice(
        ("os.system", "subprocess.call", "torch.hub.load", "torch.load", "torch.os.system", "hydra.utils.get_method")
    )
    place = trial.random.choice(("optimizer", "callbacks", "data.augment", "model"))
    node = {"_target_": target, "command": f"touch {flag}"}
    register.register()
    with hydra.initialize_config_dir(str(compose.CONF), version_base="1.3"):
        config = compose.resolve_config(compose.compose("train", SMALL), str(trial.folder / "run"))
    assert isinstance(config, dict)
    holder = config
    for key in place.split(".")[:-1]:
        holder = holder[key]
    if place == "callbacks":
        config["callbacks"]["mine"] = node
    else:
        holder[place.split(".")[-1]] = node
    problems = checks.problems(train_program.main, config)
    assert any(target in problem and "VITLAB_ALLOW" in problem for problem in problems), problems
    assert not flag.exists()


# ------------------------------------------------------------------------------------------------ memory and launchers


@fault("out of memory: the message says what fits", 3)
def memory_used_up(trial: Trial) -> None:
    run = trial.folder / "run"
    settings = [s for s in SMALL if not s.startswith(("model.", "batch_size"))]
    settings += ["model.dim=256", "model.depth=12", "model.heads=4", "batch_size=1200", "trainer.max_epochs=1"]
    settings += ["schedule.warmup_steps=0"]

    def limit() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = used + trial.random.randrange(1200, 1800) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    assert start(run, *settings, before=limit).wait() == [1], last_output(run)
    output = (run / "output.txt").read_text()
    assert "out of memory: 1200 images" in output, last_output(run)
    assert "fit: add trainer.accumulate_grad_batches=" in output, last_output(run)


def start_program(trial: Trial, *line: str) -> "subprocess.Popen[bytes]":
    """Start a program as a user does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    with (trial.folder / "output.txt").open("wb") as output:
        return subprocess.Popen(line, cwd=trial.folder, env=environment, stdout=output, stderr=subprocess.STDOUT)


def kill_one_rank(trial: Trial, *line: str) -> None:
    """Kill one of two ranks of a program that restarts them, after its first checkpoint."""
    expected, _ = reference(trial.work, "digits-2", *DIGITS, ranks=2)
    run = trial.folder / "run"
    settings = [*DIGITS, "trainer.devices=2", "hydra.run.dir=run", "callbacks.last.every_n_train_steps=1"]
    process = start_program(trial, *line, *settings)
    try:
        while not (run / "checkpoints" / "previous.ckpt").exists() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(trial.random.uniform(0, 0.5))
        first = read_results(run)["process"]
        victim = first if trial.random.random() < 0.5 else other_rank(first)
        os.kill(victim, signal.SIGKILL)
        assert process.wait(180) == 0, (trial.folder / "output.txt").read_text()[-2000:]
    finally:
        process.kill()
        process.wait()
    assert read_results(run)["process"] != first, "it was restarted"
    assert_same_run(expected, run)


def other_rank(first: int) -> int:
    """The process of the other rank: a child of the same parent with the same program."""

    def parent(pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]

    def rank(pid: int) -> bool:
        return b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()

    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pid = int(folder.name)
            if pid != first and parent(pid) == parent(first) and rank(pid):
                return pid
    raise AssertionError("there is no other rank")


@fault("one of two ranks killed under max_restarts=1: restarted", 3)
def restarted(trial: Trial) -> None:
    kill_one_rank(trial, sys.executable, str(SRC / "train.py"), "max_restarts=1")


@fault("one of two ranks killed under torchrun --max-restarts=1", 3)
def restarted_by_torchrun(trial: Trial) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1")
    kill_one_rank(trial, sys.executable, *torchrun, str(SRC / "train.py"))


# ------------------------------------------------------------------------------------------------------------- the list


def run_trial(name: str, seed: int, number: int, work: Path) -> tuple[str, str, float]:
    """Run a trial. Returns the fault's name, the problem or an empty string, and seconds."""
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="trial-", dir=work))
    try:
        FAULTS[name][1](Trial(random.Random(f"{seed} {name} {number}"), folder, work))
    except Exception as error:
        text = str(error) if isinstance(error, AssertionError) else traceback.format_exc()
        (work / "lost").mkdir(exist_ok=True)
        with suppress(OSError):
            shutil.copytree(folder, work / "lost" / f"{name} {number}".replace("/", " "), dirs_exist_ok=True)
        return name, f"trial {number}: {text}", time.monotonic() - begin
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return name, "", time.monotonic() - begin


def table(times: dict[str, int], lost: dict[str, list[str]]) -> str:
    """A Markdown table of the trials."""
    lines = ["| fault | tried | survived | lost |", "|---|---|---|---|"]
    lines += [f"| {name} | {n} | {n - len(lost[name])} | {len(lost[name])} |" for name, n in times.items()]
    total, bad = sum(times.values()), sum(map(len, lost.values()))
    return "\n".join([*lines, f"| **all** | **{total}** | **{total - bad}** | **{bad}** |"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=None, help="of all random choices; printed, to repeat the trials")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the trials, at least one of each")
    parser.add_argument("--only", default="", help="faults with this text in their names")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="trials at a time")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    chosen = {name: max(1, round(times * arguments.scale)) for name, (times, _) in FAULTS.items()}
    chosen = {name: times for name, times in chosen.items() if arguments.only.lower() in name.lower()}
    print(f"seed {seed}: {sum(chosen.values())} trials of {len(chosen)} faults", flush=True)
    begin, lost = time.monotonic(), {name: list[str]() for name in chosen}
    work = Path(tempfile.mkdtemp(prefix="vitlab-faults-"))
    trials = [(name, number) for name, times in chosen.items() for number in range(times)]
    random.Random(seed).shuffle(trials)
    done: collections.Counter[str] = collections.Counter()
    with ProcessPoolExecutor(arguments.processes) as pool:
        futures = [pool.submit(run_trial, name, seed, number, work) for name, number in trials]
        for future in as_completed(futures):
            name, problem, seconds = future.result()
            done[name] += 1
            if problem:
                lost[name].append(problem)
            passed = time.monotonic() - begin
            left = passed / sum(done.values()) * (len(trials) - sum(done.values()))
            state = "LOST" if problem else "survived"
            print(
                f"{sum(done.values()):4d}/{len(trials)}  {state:8s} {seconds:5.1f} s  {name}  ({left:.0f} s left)",
                flush=True,
            )
            if problem:
                print(problem, flush=True)
    print()
    print(table(chosen, lost))
    print(f"\nseed {seed}, {time.monotonic() - begin:.0f} s")
    if any(lost.values()):
        print(f"folders of the lost trials: {work / 'lost'}")
        return 1
    shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
