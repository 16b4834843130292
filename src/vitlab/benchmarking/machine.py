"""The machine that is measured: on what, with how many threads, and what it is called in the tables."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from vitlab import flops
from vitlab.benchmarking.timing import Clock


def clock(*, rounds: int, seconds: float, threads: int | None, accelerator: Literal["auto", "cpu", "gpu"]) -> Clock:
    """Sets torch's threads. Raises `ValueError` where there is no such device."""
    if threads is not None:
        torch.set_num_threads(threads)
    there = torch.cuda.is_available()
    if accelerator == "gpu" and not there:
        raise ValueError("accelerator=gpu: torch sees no GPU here; use accelerator=cpu, or auto")
    device = torch.device("cuda" if there and accelerator != "cpu" else "cpu")
    return Clock(rounds=rounds, seconds=seconds, device=device)


def described(clock: Clock) -> str:
    """The title of the tables: processor, threads, versions. Rounds are a part's own."""
    device = clock.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "torchvision", "timm", "lightning"))
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}, {versions}"


def processor() -> str:
    """The CPU's name, or its architecture where it has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        found = []
    return found[0] if found else platform.processor() or platform.machine()


class Product:
    """The machine's own limit: a product of two square matrices, for which libraries are tuned before all else."""

    def __init__(self, device: torch.device, *, precision: Literal["float32", "bf16"]) -> None:
        side = 8192 if device.type == "cuda" else 1536
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self.left, self.right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        self.result, self.flops = torch.empty_like(self.left), 2.0 * side**3

    def __call__(self) -> object:
        return torch.mm(self.left, self.right, out=self.result)


def datasheet(device: torch.device, precision: Literal["float32", "bf16"]) -> float | None:
    """FLOPs a second that the maker promises; None for CPUs and unknown cards."""
    return flops.peak_flops(device, "bf16" if precision == "bf16" else "32") if device.type == "cuda" else None
