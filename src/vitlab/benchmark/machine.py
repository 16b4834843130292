"""The measured machine: device, threads, and its name in the tables."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from vitlab.diagnostics.timing import Clock


def clock(*, rounds: int, seconds: float, threads: int | None, accelerator: Literal["auto", "cpu", "gpu"]) -> Clock:
    """A clock for these settings. Sets torch's number of threads."""
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu")
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
