"""The machine that is measured: on what, with how many threads, and what it is called in the tables."""

import platform
from importlib.metadata import version
from typing import Literal

import torch

from vitlab.benchmarking.timing import Clock


def clock(*, rounds: int, seconds: float, threads: int | None, accelerator: Literal["auto", "cpu", "gpu"]) -> Clock:
    """Sets torch's threads. Raises `ValueError` where there is no such device."""
    if threads is not None:
        torch.set_num_threads(threads)
    there = torch.cuda.is_available()
    if accelerator == "gpu" and not there:
        raise ValueError("accelerator=gpu: torch sees no GPU here; use accelerator=cpu, or auto")
    if accelerator == "cpu" or not there:
        return Clock(rounds=rounds, seconds=seconds)
    return Clock(rounds=rounds, seconds=seconds, synchronise=torch.cuda.synchronize, device=torch.device("cuda"))


def described(clock: Clock) -> str:
    """The title of the tables: processor, threads, versions, rounds."""
    device = clock.device
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


class Product:
    """The machine's own limit: a product of two square matrices, for which libraries are tuned before all else."""

    def __init__(self, device: torch.device, *, precision: Literal["float32", "bf16"]) -> None:
        side = 8192 if device.type == "cuda" else 1536
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self.left, self.right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        self.result, self.flops = torch.empty_like(self.left), 2.0 * side**3

    def __call__(self) -> object:
        return torch.mm(self.left, self.right, out=self.result)


# Dense FLOPs a second as NVIDIA's datasheets have them: float32, and bfloat16 on tensor cores. The first name that a
# card's own begins with counts.
DATASHEETS: dict[str, dict[str, float]] = {
    "NVIDIA H200": {"float32": 67e12, "bf16": 989e12},
    "NVIDIA H100 PCIe": {"float32": 51e12, "bf16": 756e12},
    "NVIDIA H100": {"float32": 67e12, "bf16": 989e12},
    "NVIDIA A100": {"float32": 19.5e12, "bf16": 312e12},
    "NVIDIA L40S": {"float32": 91.6e12, "bf16": 362e12},
    "NVIDIA L4": {"float32": 30.3e12, "bf16": 121e12},
}


def datasheet(device: torch.device, precision: Literal["float32", "bf16"]) -> float | None:
    """FLOPs a second that the maker promises; None for CPUs and unknown cards, and for float32 by TF32."""
    if device.type != "cuda" or (precision == "float32" and torch.get_float32_matmul_precision() != "highest"):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peaks[precision] for card, peaks in DATASHEETS.items() if name.startswith(card)), None)
