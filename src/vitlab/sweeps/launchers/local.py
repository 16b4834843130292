"""A sweep's jobs, and `hydra/launcher=local`: several of them at once on one machine, each on devices of its own.

overrides -> `composed`: Hydra's configuration of each job, and from it how many devices it needs
          -> `launch`: as devices come free, a forked process for the next job, its environment pinned to its devices
          -> `Job.run`: Hydra's own `run_job` in that process's main thread, which starts the job's ranks
          -> the job's return, told in a line

A job's process is forked, since all that it does is to compose, check, start ranks and wait: what this process has
imported is there already, and ranks are processes of their own anyway. What it prints is in the run's `console.log`.
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

CONSOLE = "console.log"  # what a job prints that shares the terminal with others

log = logging.getLogger(__name__)


# ----------------------------------------------------------------------------------------------------------- jobs


@dataclass
class Job:
    """One combination of a sweep's values."""

    number: int
    overrides: list[str]
    config: DictConfig
    context: HydraContext
    task: TaskFunction
    label: str  # what it has that not all of them have
    started: float = field(default_factory=time.monotonic)

    @property
    def devices(self) -> int | list[int]:
        """How many devices it needs on each machine, or the numbers of those that it was given."""
        trainer = self.config.get("trainer")  # a command without one runs in one process
        if not trainer:
            return 1
        devices, accelerator = trainer.devices, trainer.accelerator
        if OmegaConf.is_list(devices) or (isinstance(devices, str) and "," in devices):
            listed = devices.split(",") if isinstance(devices, str) else devices
            return [int(d) for d in listed if str(d).strip()]
        return ranks_per_node(devices, accelerator)

    @property
    def count(self) -> int:
        """How many devices it needs on each machine."""
        return len(self.devices) if isinstance(self.devices, list) else self.devices

    @property
    def accelerator(self) -> str:
        """What kind of device it asks for, `auto` for any."""
        return str(OmegaConf.select(self.config, "trainer.accelerator") or "auto")

    @property
    def nodes(self) -> int:
        """On how many machines."""
        return int(OmegaConf.select(self.config, "trainer.num_nodes") or 1)

    @property
    def folder(self) -> Path:
        """Where it keeps its files."""
        former = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(self.config)
        try:
            return Path(self.config.hydra.sweep.dir, str(self.config.hydra.sweep.subdir)).absolute()
        finally:
            HydraConfig.instance().cfg = former

    def run(self, *, console: bool = False) -> JobReturn:
        """Runs the job in this process, as Hydra's own launcher does; `console`: what is printed goes to a file."""

        def task(cfg: DictConfig) -> Any:
            if console:
                redirect_output(Path(HydraConfig.get().runtime.output_dir) / CONSOLE)
            return self.task(cfg)

        setup_globals()
        return run_job(task, self.config, "hydra.sweep.dir", "hydra.sweep.subdir", self.context)

    def begins(self, where: str) -> None:
        """Tells that it starts."""
        self.started = time.monotonic()
        log.info("#%d on %s: %s", self.number, where, self.label)

    def ended(self, result: JobReturn) -> JobReturn:
        """Tells how it ended, at once and in a line."""
        seconds = time.monotonic() - self.started
        if result.status == JobStatus.COMPLETED:
            objective = OmegaConf.select(self.config, "objective") or "returned"
            log.info("#%d finished after %.0f s: %s %s", self.number, seconds, objective, result.return_value)
        else:
            error = str(result._return_value).replace("\n", " ")
            if known := read_results(self.folder).get("error"):
                error = error if known in error else f"{known}; {error}"
            log.error("#%d failed after %.0f s (%s): %s; %s", self.number, seconds, self.label, error, self.folder)
        return result

    def failed(self, reason: str) -> JobReturn:
        """The return of a job whose process can't say anything any more."""
        result = JobReturn(overrides=self.overrides, status=JobStatus.FAILED)
        result.return_value = JobFailed(reason)
        return result


def compose_jobs(
    job_overrides: Sequence[Sequence[str]],
    first: int,
    *,
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
) -> list[Job]:
    """The jobs of a batch, numbered from `first`; the sweep's folder is there then."""
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


def redirect_output(file: Path) -> None:
    """Sends what this process and those that it starts print to a file, from now on."""
    sys.stdout.flush()
    sys.stderr.flush()
    with file.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)


# --------------------------------------------------------------------------------------------------------- devices


class Devices:
    """This machine's GPUs, or its cores where a job runs on these, and how many jobs are on each.

    `names`: as CUDA_VISIBLE_DEVICES names them, or the cores' numbers. A device has one job at a time; where `at_once`
    asks for more jobs than that allows, as many as it takes.
    """

    def __init__(self, names: Sequence[str], *, at_once: int | None) -> None:
        self.names, self.at_once = list(names), at_once
        self.load = dict.fromkeys(self.names, 0)

    def take(self, wanted: int | list[int]) -> list[str] | None:
        """The devices that are the least used, or those of the numbers in `wanted`; None while they aren't free."""
        count = wanted if isinstance(wanted, int) else len(wanted)
        most = max(1, math.ceil((self.at_once or 1) * count / len(self.names)))
        least = sorted(self.names, key=lambda name: self.load[name])[:count]
        chosen = least if isinstance(wanted, int) else [self.names[number] for number in wanted]
        if any(self.load[name] >= most for name in chosen):
            return None
        for name in chosen:
            self.load[name] += 1
        return sorted(chosen, key=self.names.index)

    def give_back(self, chosen: Sequence[str]) -> None:
        """Ends a job's use of its devices."""
        for name in chosen:
            self.load[name] -= 1


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed.split(",")[:count] if listed is not None else [str(number) for number in range(count)]


def available_cores() -> list[str]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return [str(core) for core in sorted(os.sched_getaffinity(0))]
    return [str(core) for core in range(os.cpu_count() or 1)]


def device_environment(job: Job, devices: Sequence[str], *, on_gpus: bool, all_devices: int) -> dict[str, str]:
    """The environment of a job's process on these devices."""
    share = len(devices) if not on_gpus else len(available_cores()) * len(devices) // all_devices
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, share // job.count))}
    # a job that names its GPUs' numbers counts them among all
    return threads | ({"CUDA_VISIBLE_DEVICES": ",".join(devices)} if on_gpus and isinstance(job.devices, int) else {})


# ---------------------------------------------------------------------------------------------------------- launch


class ForkedJob:
    """A job's process: a copy of this one in a process group of its own, which signals reach through this one alone."""

    def __init__(self, job: Job, environment: Mapping[str, str], affinity: Sequence[int]) -> None:
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


def run_forked(
    job: Job, environment: Mapping[str, str], affinity: Sequence[int], returns: Connection, parent: int
) -> None:
    """The life of a job's process. Its exit status is the job's where it was asked to stop."""
    os.setpgid(0, 0)
    for number in signals.SIGNALS:  # the parent's are for the parent
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
    except Exception:  # an error that holds what can't be sent
        error = result._return_value
        returns.send(job.failed(f"{type(error).__name__}: {error}"))


def launch(jobs: Sequence[Job], *, at_once: int | None) -> list[JobReturn]:
    """Runs the jobs, as many beside each other as have devices, and returns what each gave, in order.

    `at_once`: so many, whether or not that is one to a device. A job that fails ends alone. A signal that asks to stop
    is passed on to each job, and ends this program, with its status, when the last job is gone.
    """
    on_gpus = any(job.accelerator != "cpu" for job in jobs) and bool(visible_gpus())
    names = visible_gpus() if on_gpus else available_cores()
    most = max(job.count for job in jobs)
    if not on_gpus:  # cores that no job would be on are shared out as well
        fit = at_once or max(1, min(len(jobs), len(names) // most))
        share = max(1, len(names) // fit)
    devices = Devices(names, at_once=at_once)
    waiting, running = list(jobs), dict[Connection, tuple[Job, ForkedJob, list[str]]]()
    results: dict[int, JobReturn] = {}
    processes: list[ForkedJob] = []
    with forward_signals(processes) as asked:
        while running or (waiting and not asked):
            while waiting and not asked and (at_once is None or len(running) < at_once):
                job = waiting[0]
                wanted = job.devices if on_gpus else min(len(names), max(share, job.count))
                if (taken := devices.take(wanted)) is None:
                    break
                environment = device_environment(job, taken, on_gpus=on_gpus, all_devices=len(names))
                affinity = [int(core) for core in taken] if not on_gpus and hasattr(os, "sched_setaffinity") else []
                kind = "GPU" if on_gpus else "core"
                job.begins(f"{kind}{'s' if len(taken) > 1 else ''} {','.join(taken)}")
                # a signal waits until the process is one of those that it is passed on to
                signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
                processes.append(ForkedJob(job, environment, affinity))
                signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
                running[processes[-1].results] = (job, processes[-1], taken)
                waiting.pop(0)
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                job, process, taken = running.pop(ready)
                results[job.number] = job.ended(receive_result(job, process))
                devices.give_back(taken)
                processes.remove(process)
    if asked:
        sys.exit(signals.STATUS[asked[0]])
    return [results[job.number] for job in jobs]


def receive_result(job: Job, process: ForkedJob) -> JobReturn:
    """What a job's process sent before its end; where it sent nothing, what is known of that end."""
    result: JobReturn | None = None
    with suppress(EOFError):
        result = process.results.recv()
    process.results.close()
    status = process.wait()
    if result is not None:
        return result
    stopped = {number: outcome for outcome, number in signals.STATUS.items()}
    how = stopped.get(status or 0) or f"its process ended with status {status}"
    return job.failed(f"{how}; {record.resume_hint(job.folder)}")
