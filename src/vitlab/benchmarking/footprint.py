"""What a step takes of memory at its peak: counted, not timed, and the same each time."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would write lines of its own into ours


def peak(step: Callable[[], object], held: Iterable[Tensor], device: torch.device) -> int:
    """Bytes of tensors at the fullest moment of a step: those that are `held` all the time, and what comes and goes.

    Exact, and the same each time: on a CPU from what torch's allocator was asked for, which leaves out what a library
    below it takes for itself; on a GPU from the allocator's own count. A step must leave nothing behind.
    """
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    kept = sum(storages.values())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return kept + torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        trace = json.loads(file.read_text())["traceEvents"]
    events = sorted((event["args"]["Ev Idx"], event["args"]["Bytes"]) for event in trace if event["name"] == "[memory]")
    now = most = 0
    for _, change in events:
        now += change
        most = max(most, now)
    return kept + most
