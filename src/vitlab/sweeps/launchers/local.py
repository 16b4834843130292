"""The jobs of a sweep, and `hydra/launcher=local`: several at once on one machine, each on devices of its own.

overrides -> `compose_jobs`: Hydra's configuration of each job, and from it the number of devices it needs
          -> `launch`: as devices become free, a forked process for the next job, pinned to its devices
          -> `Job.run`: Hydra's own `run_job` in that process's main thread, which starts the job's ranks
          -> the job's return value, logged in a line

A job's process is forked, since it only composes, checks, starts ranks and waits: what this process has imported is
already there, and ranks are processes of their own anyway. What it prints is in the run's `console.log`.
"""

import logging
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from vitlab.distributed import signals
from vitlab.distributed.environment import ranks_per_node
from vitlab.distributed.launch import JobFailed, exit_with_parent, forward_signals
from vitlab.runs import record
from vitlab.runs.folder import read_results

CONSOLE = "console.log"  # the output of a job that shares the terminal with others

log = logging.getLogger(__name__)


@dataclass
class Job:
    """One combination of a sweep's values; `label` is what it does not share with all others."""

    number: int
    overrides: list[str]
    config: DictConfig
    context: HydraContext
    task: TaskFunction
    label: str
    started: float = field(default_factory=time.monotonic)

    @property
    def devices(self) -> int | list[int]:
        """The number of devices it needs on each machine, or the numbers of the devices it was given."""
        trainer = self.config.get("trainer")  # a command without one runs in one process
        if not trainer:
            return 1
        devices = trainer.devices
        if isinstance(devices, str) and "," in devices:
            return [int(number) for number in devices.split(",") if number.strip()]
        return list(devices) if OmegaConf.is_list(devices) else ranks_per_node(devices, trainer.accelerator)

    @property
    def count(self) -> int:
        return len(self.devices) if isinstance(self.devices, list) else self.devices

    @property
    def accelerator(self) -> str:
        return str(OmegaConf.select(self.config, "trainer.accelerator") or "auto")

    @property
    def nodes(self) -> int:
        return int(OmegaConf.select(self.config, "trainer.num_nodes") or 1)

    @property
    def folder(self) -> Path:
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(self.config)
        try:
            return Path(self.config.hydra.sweep.dir, str(self.config.hydra.sweep.subdir)).absolute()
        finally:
            HydraConfig.instance().cfg = before

    def run(self, *, console: bool = False) -> JobReturn:
        """Run the job in this process, as Hydra's own launcher does; with `console`, redirect its output to a file."""

        def task(cfg: DictConfig) -> Any:
            if console:
                sys.stdout.flush()
                sys.stderr.flush()
                with Path(HydraConfig.get().runtime.output_dir, CONSOLE).open("ab") as output:
                    os.dup2(output.fileno(), 1)  # of child processes as well
                    os.dup2(output.fileno(), 2)
            return self.task(cfg)

        setup_globals()
        return run_job(task, self.config, "hydra.sweep.dir", "hydra.sweep.subdir", self.context)

    def log_start(self, where: str) -> None:
        self.started = time.monotonic()
        log.info("#%d on %s: %s", self.number, where, self.label)

    def log_end(self, result: JobReturn) -> JobReturn:
        """Log how the job ended, in one line, and return its result."""
        seconds = time.monotonic() - self.started
        if result.status == JobStatus.COMPLETED:
            objective = OmegaConf.select(self.config, "objective") or "returned"
            log.info("#%d finished after %.0f s: %s %s", self.number, seconds, objective, result.return_value)
        else:
            error = str(result._return_value).replace("\n", " ")
            if recorded := read_results(self.folder).get("error"):
                error = error if recorded in error else f"{recorded}; {error}"
            log.error("#%d failed after %.0f s (%s): %s; %s", self.number, seconds, self.label, error, self.folder)
        return result

    def failure(self, reason: str, *, hint: bool = False) -> JobReturn:
        """Return the result of a job whose process returned none; with `hint`, say how to resume it."""
        result = JobReturn(overrides=self.overrides, status=JobStatus.FAILED)
        result.return_value = JobFailed(f"{reason}; {record.resume_hint(self.folder)}" if hint else reason)
        return result

    def exit_failure(self, status: int | str | None) -> JobReturn:
        outcomes = {number: outcome for outcome, number in signals.STATUS.items()}
        known = outcomes.get(status) if isinstance(status, int) else None
        return self.failure(known or f"its process ended with status {status}", hint=True)


def compose_jobs(
    job_overrides: Sequence[Sequence[str]], first: int, *, context: HydraContext, task: TaskFunction, config: DictConfig
) -> list[Job]:
    """Compose the jobs of a batch, numbered from `first`, and create the sweep's folder."""
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    jobs = []
    shared = set.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set()
    for number, overrides in enumerate(map(list, job_overrides), start=first):
        job_config = context.config_loader.load_sweep_config(config, overrides)
        with open_dict(job_config):
            job_config.hydra.job.id = f"{job_config.hydra.job.name}_{number}"
            job_config.hydra.job.num = number
        label = " ".join(filter_overrides([o for o in overrides if o not in shared]))
        jobs.append(Job(number, overrides, job_config, context, task, label))
    return jobs


class Devices:
    """This machine's GPUs or cores, and the number of jobs on each.

    A device has one job at a time, or as many as `at_once` jobs need.

    Args:
        names: The GPUs as in CUDA_VISIBLE_DEVICES, or the cores' numbers.
        at_once: The number of jobs to run at once; None: one on each device.
    """

    def __init__(self, names: Sequence[str], *, at_once: int | None) -> None:
        self.names, self.at_once = list(names), at_once
        self.load = dict.fromkeys(self.names, 0)

    def acquire(self, wanted: int | list[int]) -> list[str] | None:
        """Return the least used devices, or those with the numbers in `wanted`; None while they are not free."""
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
    """Return the numbers of the cores that this process may use."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return [str(core) for core in sorted(cores)]


def device_environment(job: Job, devices: Sequence[str], *, on_gpus: bool, all_devices: int) -> dict[str, str]:
    share = len(available_cores()) * len(devices) // all_devices if on_gpus else len(devices)
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, share // job.count))}
    # a job that names its GPUs' numbers counts them among all
    return threads | ({"CUDA_VISIBLE_DEVICES": ",".join(devices)} if on_gpus and isinstance(job.devices, int) else {})


class ForkedJob:
    """A job's process: a copy of this one in a process group of its own, which gets signals only from this one."""

    def __init__(self, job: Job, environment: Mapping[str, str], affinity: Sequence[int]) -> None:
        self.job = job
        self.results, returns = get_context("fork").Pipe(duplex=False)
        arguments = (job, environment, affinity, returns, os.getpid())
        self.process = get_context("fork").Process(target=run_forked, args=arguments)
        self.process.start()
        returns.close()

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, sig: int, /) -> None:
        if self.poll() is None and self.process.pid:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, sig)

    def kill(self) -> None:
        self.process.kill()

    def wait(self) -> int | None:
        self.process.join()
        return self.poll()

    def receive_result(self) -> JobReturn:
        """Return what the process sent before its end, or what is known of its end."""
        result: JobReturn | None = None
        with suppress(EOFError):
            result = self.results.recv()
        self.results.close()
        status = self.wait()
        return result or self.job.exit_failure(status)


def run_forked(
    job: Job, environment: Mapping[str, str], affinity: Sequence[int], returns: Connection, parent: int
) -> None:
    """Run a job in its process, which exits with the job's status if it was asked to stop."""
    os.setpgid(0, 0)
    for number in signals.SIGNALS:  # without the parent's handlers
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    exit_with_parent(parent)
    os.environ.update(environment)
    if affinity:
        os.sched_setaffinity(0, affinity)
    try:
        result = job.run(console=True)
    except KeyboardInterrupt:
        sys.exit(signals.STATUS["interrupted"])
    try:
        returns.send(result)
    except Exception:  # an error that can't be pickled
        error = result._return_value
        returns.send(job.failure(f"{type(error).__name__}: {error}"))


def launch(jobs: Sequence[Job], *, at_once: int | None) -> list[JobReturn]:
    """Run as many jobs at once as have devices, or `at_once`, and return their results in order.

    A job that fails does not stop the others. A signal to stop is forwarded to each job, and exits this program with
    its status when the last job has ended.
    """
    on_gpus = any(job.accelerator != "cpu" for job in jobs) and bool(visible_gpus())
    names = visible_gpus() if on_gpus else available_cores()
    # cores that would be idle are shared out as well
    share = len(names) // (at_once or max(1, min(len(jobs), len(names) // max(job.count for job in jobs))))
    devices = Devices(names, at_once=at_once)
    waiting, running = list(jobs), dict[Connection, tuple[ForkedJob, list[str]]]()
    results: dict[int, JobReturn] = {}
    processes: list[ForkedJob] = []
    with forward_signals(processes) as asked:
        while running or (waiting and not asked):
            while waiting and not asked and (at_once is None or len(running) < at_once):
                job = waiting[0]
                taken = devices.acquire(job.devices if on_gpus else min(len(names), max(1, share, job.count)))
                if taken is None:
                    break
                environment = device_environment(job, taken, on_gpus=on_gpus, all_devices=len(names))
                affinity = [int(core) for core in taken] if not on_gpus and hasattr(os, "sched_setaffinity") else []
                job.log_start(f"{'GPU' if on_gpus else 'core'}{'s' if len(taken) > 1 else ''} {','.join(taken)}")
                # a signal waits until the process is one of those that it is forwarded to
                signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
                processes.append(ForkedJob(job, environment, affinity))
                signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
                running[processes[-1].results] = (processes[-1], taken)
                waiting.pop(0)
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                process, taken = running.pop(ready)
                results[process.job.number] = process.job.log_end(process.receive_result())
                devices.release(taken)
                processes.remove(process)
    if asked:
        sys.exit(signals.STATUS[asked[0]])
    return [results[job.number] for job in jobs]
