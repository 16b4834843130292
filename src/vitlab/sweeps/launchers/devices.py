"""The GPUs or cores of this machine, shared out to jobs."""

import math
import os
from collections.abc import Sequence


class Devices:
    """This machine's devices, by name, and the number of jobs on each: one, or as many as `at_once` jobs need."""

    def __init__(self, names: Sequence[str], *, at_once: int | None) -> None:
        self.names, self.at_once = list(names), at_once
        self.load = dict.fromkeys(self.names, 0)

    def acquire(self, wanted: int | list[int]) -> list[str] | None:
        """Return the least used devices, or those with the indices in `wanted`; None while they are not free."""
        count = wanted if isinstance(wanted, int) else len(wanted)
        limit = max(1, math.ceil((self.at_once or 1) * count / len(self.names)))
        least = sorted(self.names, key=lambda name: self.load[name])[:count]
        chosen = least if isinstance(wanted, int) else [self.names[number] for number in wanted]
        if any(self.load[name] >= limit for name in chosen):
            return None
        for name in chosen:
            self.load[name] += 1
        return sorted(chosen, key=self.names.index)

    def release(self, names: Sequence[str]) -> None:
        for name in names:
            self.load[name] -= 1


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as in CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed.split(",")[:count] if listed is not None else [str(number) for number in range(count)]


def available_cores() -> list[str]:
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return [str(core) for core in sorted(cores)]
