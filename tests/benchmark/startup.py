"""Measure the seconds from a command to its first training step, or its help: complete processes, in turns.

    python src/train.py            until `metrics.csv` has the row of the first step
    import torch, lightning, timm  the imports that train.py needs
    python src/COMMAND.py --help   compared with import hydra

Peak memory and CPU seconds are those of the process.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import torch

from benchmark.case import OURS, Case, Part
from benchmark.timing import Clock, Contender

SOURCE = Path(__file__).resolve().parents[2] / "src"
FIRST_STEP = "first step of the default run"
MAX_ROUNDS = 5  # each takes a minute
POLL_SECONDS = 0.002


@dataclass(kw_only=True)
class Startup(Part):
    """Seconds to the first step and to `--help`.

    Args:
        commands: Programs to measure with `--help`.
        settings: Overrides of the run of train.py.
    """

    part = "start"

    commands: tuple[str, ...] = tuple(sorted(file.stem for file in SOURCE.glob("*.py")))
    settings: tuple[str, ...] = ()

    def cases(self, clock: Clock) -> Iterator[Case]:
        # log the first step at once; otherwise the default run
        train = ["train.py", "hydra.run.dir={folder}", "trainer.log_every_n_steps=1", *self.settings]
        pairs = {FIRST_STEP: (train, "import torch, lightning, timm")}
        pairs |= {f"--help of {name}.py": ([f"{name}.py", "--help"], "import hydra") for name in self.commands}
        for name, ((file, *arguments), imports) in pairs.items():
            ours = process_contender(OURS, [str(SOURCE / file), *arguments], trains=name == FIRST_STEP)
            clock = Clock(rounds=min(MAX_ROUNDS, clock.rounds), seconds=0.0)
            measured = clock.measure([ours, process_contender(imports, ["-c", imports])])
            yield Case(part=self.part, name=name, unit=None, measured=measured)


def process_contender(name: str, arguments: Sequence[str], *, trains: bool = False) -> Contender:
    """A contender: Python until it ends or, if it `trains`, makes a step. `{folder}` in arguments is its folder."""
    figures: dict[str, float] = {}

    def run() -> float:
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            seconds, used = run_process(arguments, folder, trains=trains, threads=torch.get_num_threads())
        figures.update({key: max(value, figures.get(key, 0.0)) for key, value in used.items()})
        return seconds

    return Contender(name=name, run=run, figures=figures, self_timed=True)


def run_process(
    arguments: Sequence[str], folder: str, *, threads: int, trains: bool = False, timeout: float = 300.0
) -> tuple[float, dict[str, float]]:
    """Run Python in `folder` until it ends or, if it `trains`, has made a step; then kill it.

    Returns the seconds, and peak memory and CPU time. Raises `RuntimeError` with the output after a failure.
    """
    line = [sys.executable, *(argument.replace("{folder}", folder) for argument in arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HYDRA_FULL_ERROR": "1"}
    peak, done, metrics, cpu = 0.0, False, Path(folder, "metrics.csv"), sum(os.times()[2:4])  # of ended children
    with TemporaryFile() as output:
        begin = time.perf_counter()
        process = subprocess.Popen(line, cwd=folder, env=env, start_new_session=True, stdout=output, stderr=output)
        try:
            while not (done := trains and has_step(metrics)) and process.poll() is None:
                peak = max(peak, peak_mib(process.pid))
                if time.perf_counter() - begin > timeout:
                    break
                time.sleep(POLL_SECONDS)
            seconds = time.perf_counter() - begin
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not done and (trains or process.returncode):
            output.seek(0)
            raise RuntimeError(f"{' '.join(line)} failed: {output.read().decode(errors='replace')[-2000:]}")
    return seconds, {"MiB": peak, "CPU seconds": sum(os.times()[2:4]) - cpu}


def peak_mib(process: int) -> float:
    """Peak memory of a running process; 0 if unknown. (`wait4` includes the parent's at the fork.)"""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return float(next(text.split()[1] for text in lines if text.startswith("VmHWM"))) / 2**10
    return 0.0


def has_step(file: Path) -> bool:
    names, *rows = (file.read_text().splitlines() if file.exists() else []) or [""]
    return bool(rows) and "train/loss" in names
