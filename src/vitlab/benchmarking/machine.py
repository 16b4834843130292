"""The machine that is measured: on what, with how many threads, and what it is called in the tables."""

import platform
from importlib.metadata import version
from typing import Literal

import torch

from vitlab.benchmarking.timing import Clock


def clock(
    *, rounds: int, seconds: float, threads: int | None, accelerator: Literal["auto", "cpu", "gpu"]
) -> "DeviceClock":
    """Sets torch's threads. Raises `ValueError` where there is no such device."""
    if threads is not None:
        torch.set_num_threads(threads)
    there = torch.cuda.is_available()
    if accelerator == "gpu" and not there:
        raise ValueError("accelerator=gpu: torch sees no GPU here; use accelerator=cpu, or auto")
    device = torch.device("cuda" if there and accelerator != "cpu" else "cpu")
    return DeviceClock(device=device, rounds=rounds, seconds=seconds)


class DeviceClock(Clock):
    """A clock that knows where the contenders compute, and waits for it."""

    def __init__(self, *, device: torch.device, rounds: int, seconds: float) -> None:
        self.device = device
        wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        super().__init__(rounds=rounds, seconds=seconds, synchronise=wait)


def described(clock: Clock) -> str:
    """The title of the tables: processor, threads, versions, rounds."""
    device = getattr(clock, "device", torch.device("cpu"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "torchvision", "timm", "lightning"))
    return f"{name}, {torch.get_num_threads()} threads, {versions}, {clock.rounds} rounds"


def processor() -> str:
    """The CPU's name, or its architecture where it has none."""
    try:
        with open("/proc/cpuinfo") as lines:
            found = [text.partition(":")[2].strip() for text in lines if text.startswith("model name")]
    except OSError:
        found = []
    return found[0] if found else platform.processor() or platform.machine()
