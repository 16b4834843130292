"""Start the ranks of a multi-device job, forward signals to them and wait.

A job is a resolved configuration in a run folder. Hydra composes it once, and every rank reads that file. Lightning's
launcher would run the command line again in each rank, under `--multirun` the complete sweep.

Ranks get torchrun's environment variables, which torch and Lightning read. Unlike with torchrun, each rank gets a
signal once and has time to save, a failed rank ends the others within seconds and is reported in one line, and no
process imports torch only to wait.
"""

import ctypes
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.errors import CompactHydraException

from vitlab.distributed import signals
from vitlab.distributed.environment import TASK_VARIABLES, NodeInfo, cores, node_from_env
from vitlab.distributed.template import PARENT_VARIABLE, RUN_VARIABLE, ForkedRank, Template

TAKEDOWN = 15.0  # seconds for the other ranks to end after one has
RENDEZVOUS_TIMEOUT = timedelta(minutes=10)  # for the first machine of a job
PR_SET_PDEATHSIG = 1  # of linux/prctl.h

Rank = subprocess.Popen[bytes] | ForkedRank

TEMPLATE = Template()  # of this command
_stores: dict[Path, Any] = {}  # kept until this process ends: ranks use them to the end

log = logging.getLogger(__name__)


class JobFailed(CompactHydraException):
    """A job's processes ended with a status other than zero; `killed`: by a signal, so none could log the reason.

    For a sweep's job, Hydra prints it without the traceback of the waiting process.
    """

    def __init__(self, reason: str, *, killed: bool = False) -> None:
        super().__init__(reason)
        self.killed = killed


def rejoin_group(environment: Mapping[str, str]) -> None:
    """Connect a restarted rank to the others through a new prefix in torchrun's store.

    After a restart the store still has the addresses of the ended processes, for which torch would wait (2.15, gloo).
    """
    count = int(environment.get("TORCHELASTIC_RESTART_COUNT") or 0)
    served = environment.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    if not count or not served or int(environment.get("WORLD_SIZE", "1")) < 2:
        return
    from torch.distributed import PrefixStore, TCPStore, init_process_group  # type: ignore[attr-defined]

    store = TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    init_process_group(store=PrefixStore(f"start-{count}", store), rank=rank, world_size=world_size)


def leave_group() -> None:
    """Destroy the process group after a barrier.

    Lightning leaves this to the interpreter's exit, where a listening thread may abort a finished process (gloo: -6).
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def run_ranks(entry: Path, run_dir: Path, ranks: int, *, max_restarts: int = 0) -> None:
    """Run `entry` once per rank on the configuration in `run_dir`, wait, and restart all ranks after a failure.

    `ranks` counts those of this machine. Signals are forwarded. Raises `JobFailed` if a rank fails after the last
    restart, `StopRequested` after a request to stop.
    """
    processes: list[Rank] = []
    here = node_from_env(os.environ) or NodeInfo()
    with forward_signals(processes) as requests:
        for attempt in range(max_restarts + 1):
            processes[:] = start_ranks(entry, run_dir, ranks, attempt, max_restarts, here)
            for process in processes if requests else ():  # while they were started
                process.send_signal(signal.SIGINT if requests[0] == "interrupted" else signal.SIGTERM)
            failure = wait_for_ranks(processes)
            for outcome, status in signals.STATUS.items():
                if any(process.returncode == status for process in processes):
                    raise signals.StopRequested(outcome)
            if failure is None:
                break
            if requests:  # a second signal, or one before the ranks handled any
                raise signals.StopRequested(requests[0])
            reason = failure_line(failure, ranks, here)
            if attempt == max_restarts:
                raise JobFailed(reason, killed=failure[1] < 0)
            log.warning("%s; start %d of %d", reason, attempt + 2, max_restarts + 1)


def start_ranks(entry: Path, run_dir: Path, ranks: int, attempt: int, max_restarts: int, here: NodeInfo) -> list[Rank]:
    """Start this machine's ranks with torchrun's environment variables."""
    own = ("MASTER_ADDR", "MASTER_PORT", *TASK_VARIABLES)
    environment = {k: v for k, v in os.environ.items() if k not in own}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // ranks)))
    environment |= {RUN_VARIABLE: str(run_dir), PARENT_VARIABLE: str(os.getpid())}
    environment |= {"TORCHELASTIC_RESTART_COUNT": str(attempt)}
    several, first = ranks * here.nodes > 1, ranks * here.node
    if several:
        port = free_port()  # of the first rank's store
        if here.nodes > 1:
            from torch.distributed import TCPStore  # type: ignore[attr-defined]

            # The first machine's process serves the store, as torchrun does: it also signals that the configuration is
            # written. On one machine no process imports torch only to wait.
            store = TCPStore(
                here.address, here.port, is_master=here.node == 0, wait_for_workers=False, timeout=RENDEZVOUS_TIMEOUT
            )
            _stores[run_dir], port = store, store.port
            environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        environment |= {"MASTER_ADDR": here.address, "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": run_dir.name}
        environment |= {"TORCHELASTIC_MAX_RESTARTS": str(max_restarts), "GROUP_RANK": str(here.node)}
        environment |= {"WORLD_SIZE": str(ranks * here.nodes), "LOCAL_WORLD_SIZE": str(ranks)}
    places = [{"RANK": str(first + n), "LOCAL_RANK": str(n)} if several else {} for n in range(ranks)]
    if here.nodes == 1:
        TEMPLATE.start(environment)
    # Process groups of their own: Ctrl-C reaches this process alone, which forwards it once.
    line, environments = [sys.executable, str(entry)], [{**environment, **place} for place in places]
    return [TEMPLATE.fork(entry, own) or subprocess.Popen(line, env=own, process_group=0) for own in environments]


def free_port() -> int:
    """A port on which nothing listens, below those that systems give to outgoing connections."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port from 20000 to 29999 is free for the ranks to find each other")


def export_pythonpath(source: Path) -> None:
    """Put `source` first in PYTHONPATH, so that child processes import the same vitlab."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(source)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(source), *others])


def exit_with_parent(parent: int) -> None:
    """Unblock the signals to stop, and on Linux get SIGTERM when the process `parent` ends."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def forward_signals(processes: Sequence[Any]) -> Iterator[list[signals.Outcome]]:
    """Forward signals to the processes (by their `send_signal`) within the block, which may change the list.

    Yields a list of the requested outcomes.
    """
    requests: list[signals.Outcome] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        requests.append(signals.SIGNALS[number])
        for process in processes:
            process.send_signal(number)

    # Python sets handlers only in the main thread; elsewhere (in workers of some launchers) the launcher handles them.
    handled = signals.SIGNALS if threading.current_thread() is threading.main_thread() else {}
    former = {number: signal.signal(number, forward) for number in handled}
    try:
        yield requests
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def wait_for_ranks(processes: list[Rank]) -> tuple[int, int, float] | None:
    """Wait for all ranks. Returns the first failed rank, its status and the seconds until the others ended, or None.

    After a failure the other ranks have `TAKEDOWN` seconds to notice and log it, after a request to stop four times as
    long (they may upload); then they are killed.
    """
    first: tuple[int, int] | None = None
    ended = 0.0
    while True:
        codes = [process.poll() for process in processes]
        if not ended and any(codes):
            ended = time.monotonic()
        failures = [(rank, code) for rank, code in enumerate(codes) if code and code not in signals.STATUS.values()]
        # one killed by a signal precedes those that fail because of it
        first = first or min(failures, key=lambda failure: failure[1] > 0, default=None)
        if None not in codes:
            return (*first, time.monotonic() - ended if ended else 0.0) if first else None
        if ended and time.monotonic() - ended > (TAKEDOWN if first else 4 * TAKEDOWN):
            for process in processes:
                process.send_signal(signal.SIGKILL)
        time.sleep(0.02)


def failure_line(failure: tuple[int, int, float], ranks: int, here: NodeInfo) -> str:
    rank, code, seconds = failure
    rank, ranks = ranks * here.node + rank, ranks * here.nodes
    how = f"ended with status {code}"
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += " (by a user, or by the system when out of memory)"
    others = f"; the other ranks ended {seconds:.1f} s later" if ranks > 1 else ""
    return f"{f'rank {rank} of {ranks}' if ranks > 1 else 'the process'} {how}{others}"
