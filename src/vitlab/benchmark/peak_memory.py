"""Peak memory of a step: counted, not sampled, and the same each time."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own log lines


def peak_bytes(step: Callable[[], object], held: Iterable[Tensor], device: torch.device) -> int:
    """Bytes of tensors at a step's fullest moment: those `held` all the time, and those the step allocates.

    By torch's own allocator; the step must not leave new tensors behind.
    """
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    before = sum(storages.values())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return before + torch.cuda.max_memory_allocated(device) - allocated
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        trace = json.loads(file.read_text())["traceEvents"]
    events = sorted((event["args"]["Ev Idx"], event["args"]["Bytes"]) for event in trace if event["name"] == "[memory]")
    return before + max(accumulate((int(change) for _, change in events), initial=0))
