"""One job, one process tree: starting the ranks of a multi-device job, and reading what Hydra's process can't know.

A job is a *resolved* configuration in a run folder. Hydra composes it once; every rank then reads that one file.
So the ranks cannot differ (no time stamp, random suggestion or sweep value is made twice), and nothing depends on
which Hydra launcher the job came through. Lightning's own launcher re-runs the command line instead, which under
`--multirun` runs the whole sweep in every rank.

The ranks are started and watched by `torch.distributed.run`, torch's own launcher: it finds a free port, takes the
others down when one dies, and Lightning knows its environment.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

RUN_VARIABLE = "VITLAB_RUN"  # the run folder, for a process that is (a rank of) a job


class JobFailed(RuntimeError):
    """A job's processes ended with a status other than zero; the reason stands in its output and log."""


def ranks_per_node(devices: int | str | Sequence[int], accelerator: str) -> int:
    """How many processes `trainer.devices` asks for on this machine."""
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if isinstance(devices, int) and devices > 0:
        return devices
    if isinstance(devices, str) and devices != "auto":
        return len([d for d in devices.split(",") if d.strip()])
    if not isinstance(devices, int | str):
        return len(devices)
    if accelerator == "cpu":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def started_by_others(environment: Mapping[str, str]) -> bool:
    """Whether torchrun or `srun` with several tasks has already made the ranks."""
    return "TORCHELASTIC_RUN_ID" in environment or int(environment.get("SLURM_NTASKS", "1")) > 1


def rank(environment: Mapping[str, str]) -> int:
    """This process's number among all of a job's; 0 where nobody counted."""
    return int(environment.get("RANK", environment.get("SLURM_PROCID", "0")))


def local_rank(environment: Mapping[str, str]) -> int:
    """This process's number among a job's on the same machine; 0 where nobody counted."""
    return int(environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID", "0")))


def leave_group() -> None:
    """Ends this process's part in the ranks' communication, once all of them have come so far.

    Lightning leaves it to the interpreter's end, where a thread that still listens may abort a process (seen with
    gloo: status -6 after a job that was done).
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def run_ranks(entry: Path, run_dir: Path, ranks: int) -> None:
    """Runs `entry` once per rank on the configuration in `run_dir`, and waits.

    Ctrl-C and SIGTERM are passed on and waited for. Raises `JobFailed` when a rank fails.
    """
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += [str(entry)]
    environment = {k: v for k, v in os.environ.items() if k not in ("MASTER_ADDR", "MASTER_PORT")}
    environment[RUN_VARIABLE] = str(run_dir)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))

    # A process group of its own: Ctrl-C comes to this process alone, which passes it on exactly once.
    process = subprocess.Popen(command, env=environment, process_group=0)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        process.send_signal(number)

    # Only a main thread may set handlers; elsewhere (some launchers' workers) the launcher owns the signals.
    passed = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    former = {number: signal.signal(number, pass_on) for number in passed}
    try:
        status = process.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if status:
        raise JobFailed(f"{entry.name} ended with status {status}; its output is above and in {run_dir}")
