"""Seconds from a command to what it is for: the first step of training, or its help; whole processes, in turns.

    python src/train.py            until `metrics.csv` has the row of the first step
    import torch, lightning, timm  what no program that trains with these can do without
    lightning + timm               a short program of Lightning's that trains a network of timm's on the same digits

A process that has made its first step is killed. Each leaves the most memory that it held, too: of the process that
trains, without wandb's own.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from vitlab.benchmarking.settings import train_problems
from vitlab.benchmarking.timing import OURS, Case, Clock, Contender, Goal, Part, demand, too_small
from vitlab.config import paths
from vitlab.schema import suggest

SOURCE = paths.PROGRAMS
COMMANDS = tuple(sorted(file.stem for file in SOURCE.glob("*.py")))
IMPORTS = "import torch, lightning, timm"
LATEST = 300.0  # seconds until a process that has not come to its first step counts as broken
PAUSE = 0.002  # between two looks at a process

# Reads digits as vitlab does, and writes a file after the first step.
PEER = """
import sys
from pathlib import Path
import lightning, timm, torch
from sklearn.datasets import load_digits

class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        options = dict(patch_size=2, embed_dim=64, depth=4, num_heads=4, in_chans=1, num_classes=10)
        self.network = timm.models.VisionTransformer(img_size=8, **options)
    def training_step(self, batch, index):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.network(images), labels)
    def on_train_batch_end(self, outputs, batch, index):
        Path(sys.argv[1], "metrics.csv").write_text("step,train/loss\\n1,0\\n")
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())

digits = load_digits()
images = torch.from_numpy(digits.images).float()[:, None] / 16
data = torch.utils.data.TensorDataset(images, torch.from_numpy(digits.target))
loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)
trainer = lightning.Trainer(max_epochs=100, accelerator="cpu", devices=1, default_root_dir=sys.argv[1])
trainer.fit(Classifier(), loader)
"""


class Start(Part):
    """`commands`: whose `--help` is measured. `settings`: of the run that is started, besides where it goes.

    `rounds`: at most so many of the benchmark's, since each takes a minute.
    """

    def __init__(
        self,
        *,
        commands: tuple[str, ...] = COMMANDS,
        settings: tuple[str, ...] = (),
        peers: bool = True,
        rounds: int = 5,
    ) -> None:
        found = [*too_small("start", 1, rounds=rounds)]
        for command in commands:
            if command not in COMMANDS:
                found.append(f"start.commands: {command} is none of {', '.join(COMMANDS)}{suggest(command, COMMANDS)}")
        for line in settings:
            if line.lstrip("+").startswith(("hydra.", "trainer.log_every_n_steps=")):
                found.append(
                    f"start.settings: {line} is for the part to set, which reads the run's folder; leave it out"
                )
        demand(found)
        self.commands, self.settings, self.peers, self.rounds = commands, settings, peers, rounds

    def problems(self, device: Literal["cpu", "cuda"]) -> Iterator[str]:
        for told in train_problems([*self.settings]) if self.settings else ():
            yield f"start.settings: train.py would say: {told.splitlines()[0]}"

    def cases(self, clock: Clock) -> Iterator[Case]:
        clock = Clock(rounds=min(self.rounds, clock.rounds), seconds=0.0)
        rivals = [process(IMPORTS, [sys.executable, "-c", IMPORTS])]
        if self.peers:
            rivals.append(process("lightning + timm", [sys.executable, "-c", PEER, "{folder}"], trains=True))
        # the row of the first step is written at once; nothing else differs from the default run
        line = [str(SOURCE / "train.py"), "hydra.run.dir={folder}", "trainer.log_every_n_steps=1", *self.settings]
        ours = process(OURS, [sys.executable, *line], trains=True)
        yield Case(
            part="start",
            name="first step of the default run",
            unit="starts",
            lasting=True,
            measured=clock.measure([ours, *rivals]),
            goals=[Goal(least=1 / 1.3, against=IMPORTS)],
        )
        for command in self.commands:
            ours = process(OURS, [sys.executable, str(SOURCE / f"{command}.py"), "--help"])
            limit = Contender(name="two seconds", run=lambda: 2.0, own=True)
            yield Case(
                part="start",
                name=f"{command}.py --help",
                unit="starts",
                lasting=True,
                measured=clock.measure([ours, limit]),
                goals=[Goal(least=1.0, against="two seconds")],
            )


def process(name: str, line: Sequence[str], *, trains: bool = False) -> Contender:
    """A contender that starts a process; `{folder}` in its line becomes an empty folder."""
    figures: dict[str, float] = {}

    def run() -> float:
        seconds, memory = started(line, trains=trains)
        figures["MiB"] = max(memory, figures.get("MiB", 0.0))
        return seconds

    return Contender(name=name, run=run, figures=figures, own=True)


def started(line: Sequence[str], *, trains: bool) -> tuple[float, float]:
    """Seconds until a process has ended, or `trains` and has made a step; and the most memory that it held, in MiB.

    Raises `RuntimeError` with what it said where it failed.
    """
    with tempfile.TemporaryDirectory() as name:
        until = partial(has_stepped, Path(name, "metrics.csv")) if trains else None
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        return watched(line, Path(name), until=until, latest=LATEST, environment=threads)


def watched(
    line: Sequence[str],
    folder: Path,
    *,
    until: Callable[[], bool] | None = None,
    latest: float,
    environment: Mapping[str, str] | None = None,
    patience: float = 0.0,
) -> tuple[float, float]:
    """Runs a process in `folder`, whose name takes the place of `{folder}`. Returns and raises what `started` does.

    It is done when `until` says so or, where that is None, when it ends with status 0. If it goes on then, or after
    `latest` seconds, or if this process is stopped, it is killed; with `patience`, it is first asked to end, and has so
    many seconds to end its own processes too. `environment` is added to this process's.
    """
    with tempfile.TemporaryFile() as said:
        words, memory, done = [part.replace("{folder}", str(folder)) for part in line], 0.0, False
        begun = time.perf_counter()
        variables = {**os.environ, **(environment or {})}
        child = subprocess.Popen(words, cwd=folder, stdout=said, stderr=said, start_new_session=True, env=variables)
        try:
            while not (done := until is not None and until()) and child.poll() is None:
                memory = max(memory, most_memory(child.pid))
                if time.perf_counter() - begun > latest:
                    break
                time.sleep(PAUSE)
            seconds = time.perf_counter() - begun
        finally:
            if patience and child.poll() is None:
                child.terminate()
                with suppress(subprocess.TimeoutExpired):
                    child.wait(patience)
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # with what it has started
            child.wait()
        if not done and (until is not None or child.returncode):
            said.seek(0)
            raise RuntimeError(f"{' '.join(words)} failed: {said.read().decode(errors='replace')[-2000:]}")
    return seconds, memory


def most_memory(process: int) -> float:
    """The most that a process has held so far, in MiB; 0 where the system doesn't say, or it is gone.

    What `wait4` tells at the end counts in what the parent held when the child was forked.
    """
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return float(next(text.split()[1] for text in lines if text.startswith("VmHWM"))) / 2**10
    return 0.0


def has_stepped(file: Path) -> bool:
    """Whether a run's `metrics.csv` has a row of training."""
    if not file.exists():
        return False
    names, *rows = file.read_text().splitlines() or [""]  # it may just be begun
    return bool(rows) and "train/loss" in names
