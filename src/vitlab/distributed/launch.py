"""One job, one process tree: starting the ranks of a multi-device job, and reading what Hydra's process can't know.

A job is a *resolved* configuration in a run folder. Hydra composes it once; every rank then reads that one file.
So the ranks cannot differ (no time stamp, random suggestion or sweep value is made twice), and nothing depends on
which Hydra launcher the job came through. Lightning's own launcher re-runs the command line instead, which under
`--multirun` runs the whole sweep in every rank.

The ranks are told their places in torchrun's variables, which torch and Lightning know. They are started here and
not by torchrun, for what it can't do: signals reach each rank once and leave it the time to save, a rank's death
takes the others down within seconds and is told in one line, and no process imports torch only to wait.
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from hydra.errors import CompactHydraException

from vitlab.distributed import signals
from vitlab.distributed.environment import NODES_VARIABLE, TASK_VARIABLES, NodeInfo, cores, node_from_env
from vitlab.distributed.signals import Outcome, StopRequested

TAKEDOWN = 15.0  # seconds for the other ranks to end once one has
RUN_VARIABLE = "VITLAB_RUN"  # the run folder, for a process that is (a rank of) a job
PARENT_VARIABLE = "VITLAB_PARENT"  # the process that started a rank, without which it doesn't go on
MEETING = timedelta(minutes=10)  # that a machine waits for the first of a job's machines
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


_stores: dict[Path, Any] = {}  # kept as long as this process: ranks that end talk to them to the last

log = logging.getLogger(__name__)


class JobFailed(CompactHydraException):
    """A job's processes ended with a status other than zero; `killed`: by a signal, so that none could say why.

    Hydra shows it, of a sweep's job, without the traceback of the process that only waited.
    """

    def __init__(self, reason: str, *, killed: bool = False) -> None:
        super().__init__(reason)
        self.killed = killed


def rejoin_group(environment: Mapping[str, str]) -> None:
    """In a rank that was started again: joins the others by a store of this start's own.

    torchrun keeps its store when it starts the ranks again, with the addresses of the processes that are gone, and
    these would be waited for (torch 2.15 with gloo).
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
    """Ends this process's part in the ranks' communication, once all of them have come so far.

    Lightning leaves it to the interpreter's end, where a thread that still listens may abort a process (seen with
    gloo: status -6 after a job that was done).
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def run_ranks(entry: Path, run_dir: Path, ranks: int, *, max_restarts: int = 0) -> None:
    """Runs `entry` once per rank on the configuration in `run_dir`, and waits; after a failure, `restarts` times again.

    Of a job on several machines, those of this one: `ranks` counts these. Signals that ask to stop are passed on.
    Raises `JobFailed` when a rank fails, `Stopped` when the job was asked to.
    """
    processes: list[subprocess.Popen[bytes]] = []
    here = node_from_env(os.environ) or NodeInfo()
    with forward_signals(processes) as asked:
        for attempt in range(max_restarts + 1):
            processes[:] = start_ranks(entry, run_dir, ranks, attempt, max_restarts, here)
            failure = wait_for_ranks(processes)
            for outcome, status in signals.STATUS.items():
                if any(process.returncode == status for process in processes):
                    raise StopRequested(outcome)
            if failure is None:
                break
            if asked:  # twice, or too early to be heard: no failure, and nothing to start again
                raise StopRequested(asked[0])
            reason = failure_line(failure, ranks, here)
            if attempt == max_restarts:
                raise JobFailed(reason, killed=failure[1] < 0)
            log.warning("%s; start %d of %d", reason, attempt + 2, max_restarts + 1)


def start_ranks(
    entry: Path, run_dir: Path, ranks: int, attempt: int, max_restarts: int, here: NodeInfo
) -> list["subprocess.Popen[bytes]"]:
    """Starts this machine's ranks, each told its place as torchrun tells it."""
    own = ("MASTER_ADDR", "MASTER_PORT", NODES_VARIABLE, *TASK_VARIABLES)
    environment = {k: v for k, v in os.environ.items() if k not in own}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // ranks)))
    environment |= {RUN_VARIABLE: str(run_dir), PARENT_VARIABLE: str(os.getpid())}
    environment |= {"TORCHELASTIC_RESTART_COUNT": str(attempt)}
    several, first = ranks * here.nodes > 1, ranks * here.node
    if several:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        # They meet at a store that the first machine's process serves, as torchrun does: on one machine its port is
        # free because it is taken already. On others, that it is there also says that the configuration is.
        serves = here.node == 0
        store = TCPStore(here.address, here.port, is_master=serves, wait_for_workers=False, timeout=MEETING)
        _stores[run_dir] = store
        environment |= {"MASTER_ADDR": here.address, "MASTER_PORT": str(store.port)}
        environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": run_dir.name}
        environment |= {"TORCHELASTIC_MAX_RESTARTS": str(max_restarts), "GROUP_RANK": str(here.node)}
        environment |= {"WORLD_SIZE": str(ranks * here.nodes), "LOCAL_WORLD_SIZE": str(ranks)}
    places = [{"RANK": str(first + n), "LOCAL_RANK": str(n)} if several else {} for n in range(ranks)]
    # Process groups of their own: Ctrl-C comes to this process alone, which passes it on exactly once.
    line = [sys.executable, str(entry)]
    return [subprocess.Popen(line, env={**environment, **place}, process_group=0) for place in places]


def export_pythonpath(source: Path) -> None:
    """Has every Python that is started from here import the same vitlab, also where it is not installed."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(source)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(source), *others])


def exit_with_parent(parent: int) -> None:
    """Has a rank hear the signals, and be asked to stop, by SIGTERM, when `parent` is gone, however that ended.

    The latter is Linux's. Ray blocks SIGINT in its workers, and what they start inherits that.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


class Process(Protocol):
    """A process that was started: `subprocess.Popen`, or what does the same."""

    def poll(self) -> int | None: ...
    def send_signal(self, sig: int, /) -> None: ...
    def kill(self) -> None: ...
    def wait(self) -> Any: ...


@contextmanager
def forward_signals(processes: Sequence[Process]) -> Iterator[list[Outcome]]:
    """Passes signals on to the processes while the block runs, and notes them; whatever ends it, none is left behind.

    The block may put other processes into the list.
    """
    asked: list[Outcome] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        asked.append(signals.SIGNALS[number])
        for process in processes:
            process.send_signal(number)

    # Only a main thread may set handlers; elsewhere (some launchers' workers) the launcher owns the signals.
    passed = signals.SIGNALS if threading.current_thread() is threading.main_thread() else {}
    former = {number: signal.signal(number, pass_on) for number in passed}
    try:
        yield asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def wait_for_ranks(processes: list["subprocess.Popen[bytes]"]) -> tuple[int, int, float] | None:
    """Waits for all ranks: the one that failed first with its status and how long the others took after it, or None.

    When one rank has ended as it should not, or was stopped, the others can't go on: they have `TAKEDOWN` seconds to
    notice and to say what they know, four times as long where the first was stopped; then they are killed.
    """
    first: tuple[int, int] | None = None
    ended = 0.0
    while None in (codes := [process.poll() for process in processes]):
        if not ended and any(code for code in codes):
            ended = time.monotonic()
        first = first or first_failure(codes)
        if ended and time.monotonic() - ended > (
            TAKEDOWN if first else 4 * TAKEDOWN
        ):  # one that was stopped may upload
            for process in processes:
                process.kill()  # does nothing to those that have ended
            break
        time.sleep(0.02)
    else:
        first = first or first_failure(codes)
    for process in processes:
        process.wait()
    return (*first, time.monotonic() - ended if ended else 0.0) if first else None


def first_failure(codes: Sequence[int | None]) -> tuple[int, int] | None:
    """The first rank that ended as it should not have, and its status. A signal's victim goes before its witnesses."""
    bad = [(rank, code) for rank, code in enumerate(codes) if code and code not in signals.STATUS.values()]
    return min(bad, key=lambda found: found[1] > 0) if bad else None


def failure_line(failure: tuple[int, int, float], ranks: int, here: NodeInfo) -> str:
    """How a job failed, in a line."""
    rank, code, seconds = failure
    rank, ranks = ranks * here.node + rank, ranks * here.nodes
    how = f"ended with status {code}"
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += " (by hand, or by the system where memory ran out)"
    others = f"; the other ranks were gone {seconds:.1f} s later" if ranks > 1 else ""
    return f"{f'rank {rank} of {ranks}' if ranks > 1 else 'the process'} {how}{others}"
