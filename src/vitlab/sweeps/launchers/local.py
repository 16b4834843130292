"""The jobs of a sweep, and `hydra/launcher=local`: several at once on one machine, each on its own devices.

overrides -> `compose_jobs`: Hydra's configuration of each job, which has the number of its devices
          -> `launch`: as devices become free, a forked process for the next job, pinned to its devices
          -> `Job.run`: Hydra's `run_job` in that process, which starts the job's ranks
          -> the job's return value, logged in a line

A job's process is forked, so it has imported everything already; it only composes, checks, starts ranks and waits. Its
output is in the run's `console.log`.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from vitlab.distributed import signals
from vitlab.distributed.environment import ranks_per_node
from vitlab.distributed.launch import TEMPLATE, JobFailed, exit_with_parent, forward_signals
from vitlab.runs import record
from vitlab.runs.folder import read_results
from vitlab.sweeps.launchers.devices import Devices, available_cores, visible_gpus

CONSOLE = "console.log"  # the output of a job that shares the terminal with others

log = logging.getLogger(__name__)


@dataclass
class Job:
    """One combination of a sweep's values; `label` has the overrides that other jobs don't share."""

    number: int
    overrides: list[str]
    config: DictConfig
    context: HydraContext
    task: TaskFunction
    label: str

    @property
    def devices(self) -> int | list[int]:
        """The number of devices on each machine, or the indices of given devices."""
        trainer = self.config.get("trainer")
        if not trainer:  # one process
            return 1
        devices = trainer.devices
        if isinstance(devices, str) and "," in devices:
            return [int(number) for number in devices.split(",") if number.strip()]
        return list(devices) if OmegaConf.is_list(devices) else ranks_per_node(devices, trainer.accelerator)

    @property
    def count(self) -> int:
        return len(self.devices) if isinstance(self.devices, list) else self.devices

    def trainer(self, key: str, default: Any) -> Any:
        return OmegaConf.select(self.config, f"trainer.{key}") or default

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
                with Path(HydraConfig.get().runtime.output_dir, CONSOLE).open("ab") as output:
                    os.dup2(output.fileno(), 1)  # of child processes as well
                    os.dup2(output.fileno(), 2)
            return self.task(cfg)

        setup_globals()
        return run_job(task, self.config, "hydra.sweep.dir", "hydra.sweep.subdir", self.context)

    def log_start(self, where: str) -> None:
        log.info("#%d on %s: %s", self.number, where, self.label)

    def log_end(self, result: JobReturn) -> JobReturn:
        """Log in one line if the job has failed, and return its result."""
        if result.status != JobStatus.COMPLETED:
            error = str(result._return_value).replace("\n", " ")
            if recorded := read_results(self.folder).get("error"):
                error = error if recorded in error else f"{recorded}; {error}"
            log.error("#%d failed (%s): %s; %s", self.number, self.label, error, self.folder)
        return result

    def failure(self, reason: str, *, hint: bool = False) -> JobReturn:
        """Return the result of a job whose process returned none; with `hint`, add how to resume it."""
        result = JobReturn(overrides=self.overrides, status=JobStatus.FAILED)
        result.return_value = JobFailed(f"{reason}; {record.resume_hint(self.folder)}" if hint else reason)
        return result


def compose_jobs(
    job_overrides: Sequence[Sequence[str]], first: int, *, context: HydraContext, task: TaskFunction, config: DictConfig
) -> Iterator[Job]:
    """Create the sweep's folder, and compose the jobs of a batch one after the other, numbered from `first`."""
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    shared: frozenset[str] = getattr(job_overrides, "shared", frozenset())  # of a grid, whose jobs come one by one
    if isinstance(job_overrides, list | tuple) and len(job_overrides) > 1:
        shared = frozenset.intersection(*map(frozenset, job_overrides))
    for number, overrides in enumerate(map(list, job_overrides), start=first):
        job_config = context.config_loader.load_sweep_config(config, overrides)
        with open_dict(job_config):
            job_config.hydra.job.id = f"{job_config.hydra.job.name}_{number}"
            job_config.hydra.job.num = number
        label = " ".join(filter_overrides([o for o in overrides if o not in shared]))
        yield Job(number, overrides, job_config, context, task, label)


def device_environment(job: Job, devices: Sequence[str], *, on_gpus: bool, all_devices: int) -> dict[str, str]:
    share = len(available_cores()) * len(devices) // all_devices if on_gpus else len(devices)
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, share // job.count))}
    # the indices that a job gives count among all GPUs
    return threads | ({"CUDA_VISIBLE_DEVICES": ",".join(devices)} if on_gpus and isinstance(job.devices, int) else {})


class ForkedJob(ForkProcess):
    """A job's process: a fork of this one in its own process group, which gets signals only from this one."""

    def __init__(self, job: Job, environment: Mapping[str, str], affinity: Sequence[int], *, on_gpus: bool) -> None:
        super().__init__()
        self.job, self.environment, self.affinity, self.on_gpus = job, environment, affinity, on_gpus
        self.launcher = os.getpid()
        self.results, self.returns = Pipe(duplex=False)

    def run(self) -> None:
        """Run the job in the new process, which exits with the job's status if it was asked to stop."""
        os.setpgid(0, 0)
        for number in signals.SIGNALS:  # remove the launcher's handlers
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        exit_with_parent(self.launcher)
        os.environ.update(self.environment)
        if self.affinity:
            os.sched_setaffinity(0, self.affinity)
        try:
            result = self.job.run(console=True)
        except KeyboardInterrupt:
            sys.exit(signals.STATUS["interrupted"])
        try:
            self.returns.send(result)
        except Exception:  # an error that can't be pickled
            error = result._return_value
            self.returns.send(self.job.failure(f"{type(error).__name__}: {error}"))

    def send_signal(self, sig: int, /) -> None:
        if self.exitcode is None and self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def receive_result(self) -> JobReturn:
        """Return what the process sent before its end, or else a failure with its status."""
        result: JobReturn | None = None
        with suppress(EOFError):
            result = self.results.recv()
        self.results.close()
        self.join()
        known = next((outcome for outcome, number in signals.STATUS.items() if number == self.exitcode), None)
        return result or self.job.failure(known or f"its process ended with status {self.exitcode}", hint=True)


def launch(jobs: Iterable[Job], *, at_once: int | None, total: int) -> list[JobReturn]:
    """Run as many jobs at once as have devices, or `at_once`, and return their results in order.

    A job is taken from `jobs`, at most `total`, when there may be devices for it. A signal to stop is forwarded to each
    running job, and exits this program when the last one has ended.
    """
    gpus, cores = visible_gpus(), available_cores()
    pools = {True: Devices(gpus, at_once=at_once), False: Devices(cores, at_once=at_once)}
    running = dict[Connection, tuple[ForkedJob, list[str]]]()
    results: dict[int, JobReturn] = {}
    processes: list[ForkedJob] = []
    coming = iter(jobs)
    job = next(coming, None)
    with forward_signals(processes) as asked:
        while running or (job and not asked):
            while job and not asked and (at_once is None or len(running) < at_once):
                on_gpus = job.trainer("accelerator", "auto") != "cpu" and bool(gpus)
                names = gpus if on_gpus else cores
                # idle cores are shared out
                share = len(names) // (at_once or max(1, min(total, len(names) // job.count)))
                taken = pools[on_gpus].acquire(job.devices if on_gpus else min(len(names), max(1, share, job.count)))
                if taken is None:
                    break
                environment = device_environment(job, taken, on_gpus=on_gpus, all_devices=len(names))
                affinity = [int(core) for core in taken] if not on_gpus and hasattr(os, "sched_setaffinity") else []
                job.log_start(f"{'GPU' if on_gpus else 'core'}{'s' if len(taken) > 1 else ''} {','.join(taken)}")
                TEMPLATE.start({**os.environ, **environment})
                process = ForkedJob(job, environment, affinity, on_gpus=on_gpus)
                # block signals until the process is in the list of those that get them
                signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
                process.start()
                processes.append(process)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
                process.returns.close()
                running[process.results] = (process, taken)
                job = next(coming, None)
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                process, taken = running.pop(ready)
                results[process.job.number] = process.job.log_end(process.receive_result())
                pools[process.on_gpus].release(taken)
                processes.remove(process)
    if asked:
        sys.exit(signals.STATUS[asked[0]])
    return [results[number] for number in sorted(results)]
