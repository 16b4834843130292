"""The machine that is measured: device, threads, and its name in the tables."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from vitlab.diagnostics.timing import Clock


def clock(*, rounds: int, seconds: float, threads: int | None, accelerator: Literal["auto", "cpu", "gpu"]) -> Clock:
    """The clock of these settings; sets torch's threads. Raises `ValueError`, a line for each problem."""
    gpu = torch.cuda.is_available()
    problems = {
        f"rounds={rounds} must be at least 1": rounds < 1,
        f"seconds={seconds} must be 0 (a single call) or more": not 0 <= seconds < float("inf"),
        f"threads={threads} must be at least 1, or null for torch's own choice": threads is not None and threads < 1,
        f"accelerator={accelerator}: torch finds no GPU; use accelerator=cpu, or auto": accelerator == "gpu"
        and not gpu,
    }
    if found := [problem for problem, is_there in problems.items() if is_there]:
        raise ValueError("\n".join(found))
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if gpu and accelerator != "cpu" else "cpu")
    return Clock(rounds=rounds, seconds=seconds, device=device)


def description(clock: Clock) -> str:
    """Processor, threads and versions: the title of the tables."""
    name = torch.cuda.get_device_name(clock.device) if clock.device.type == "cuda" else processor()
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "torchvision", "timm", "lightning"))
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}, {versions}"


def processor() -> str:
    """The CPU's name, or its architecture."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
