"""Read the environment of this process: rank, node, launcher, cores."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# SLURM's variables, removed for the ranks: they describe the process that starts them, and Lightning reads them.
TASK_VARIABLES = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ranks_per_node(devices: int | str | Sequence[int], accelerator: str) -> int:
    """The number of processes on this machine for `trainer.devices`."""
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


@dataclass(frozen=True)
class NodeInfo:
    """This machine's index among a job's machines, and the address of the first one."""

    node: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"
    port: int = 0  # any that is free


def node_from_env(environment: Mapping[str, str]) -> NodeInfo | None:
    """The machine's index in a job that `srun` started with one task on each of several nodes; None for others."""
    machines, tasks = (int(environment.get(f"SLURM_{name}", "1")) for name in ("NNODES", "NTASKS"))
    if "TORCHELASTIC_RUN_ID" in environment or machines == 1 or tasks != machines:
        return None
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    address = SLURMEnvironment.resolve_root_node_address(environment["SLURM_JOB_NODELIST"])
    return NodeInfo(int(environment["SLURM_NODEID"]), machines, address, 15000 + int(environment["SLURM_JOB_ID"][-4:]))


def launched_externally(environment: Mapping[str, str]) -> bool:
    """Whether torchrun, or `srun` with several tasks on a node, has started the ranks."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return True
    return int(environment.get("SLURM_NTASKS", "1")) > 1 and node_from_env(environment) is None


def rank(environment: Mapping[str, str]) -> int:
    """This process's rank in its job; 0 if no launcher set it."""
    return int(environment.get("RANK", environment.get("SLURM_PROCID", "0")))


def is_restart(environment: Mapping[str, str]) -> bool:
    """Whether torchrun, the cluster or vitlab has restarted this job, which then resumes."""
    return any(int(environment.get(name) or 0) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
