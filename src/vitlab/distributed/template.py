"""Fork ranks from a template: a process of the program that imports what they need once.

launcher  a message with the run folder, its standard streams and one end of a new pair of sockets
template  imports (for the first run), forks, and sends the rank's pid and a pidfd through the pair
launcher  sends the rank's environment, cores and priority
template  sends the rank's status when it ends; if the launcher ends first, closing its socket, signals the rank to stop

`python entry.py` starts a template, so `__main__`, `sys.argv` and `sys.path` are a rank's. All launchers of a command
inherit its only socket for requests, which has no address: no other process can connect to it.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitlab.distributed import signals

RUN_VARIABLE = "VITLAB_RUN"  # the run folder of a rank
PARENT_VARIABLE = "VITLAB_PARENT"  # the process that started a rank; the rank ends with it
REQUESTS_VARIABLE = "VITLAB_TEMPLATE"  # a template's socket for requests
# variables of a rank that nothing keeps at import, except for Lightning's rank
OWN = {RUN_VARIABLE, PARENT_VARIABLE, REQUESTS_VARIABLE, "CUDA_VISIBLE_DEVICES", "MASTER_ADDR", "MASTER_PORT", "RANK"}
OWN |= {"LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID"}
OWN |= {"TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"}


class Template:
    """The launchers' side: starts the process with the first rank, or before launchers are forked."""

    def __init__(self) -> None:
        self.entry: Path | None = None  # of a program that serves templates; None: ranks are new processes
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the template for ranks in this environment, unless it was started before."""
        if self.process or not self.entry or sys.platform != "linux" or not hasattr(os, "pidfd_open"):
            return
        self.state = self.inherited(environment)
        self.requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            own = self.state[0] | {REQUESTS_VARIABLE: str(number)}
            line = [sys.executable, str(self.entry)]
            self.process = subprocess.Popen(line, env=own, pass_fds=[number], process_group=0, stdin=subprocess.DEVNULL)
        atexit.register(self.stop)

    def inherited(self, environment: Mapping[str, str]) -> tuple[dict[str, str], str]:
        """What a rank must have in common with the template: its environment, and the working directory."""
        return {key: value for key, value in environment.items() if key not in OWN}, os.getcwd()  # noqa: PTH109

    def stop(self) -> None:
        if self.process:
            self.requests.close()
            self.process.wait()

    def fork(self, entry: Path, environment: Mapping[str, str]) -> "ForkedRank | None":
        """Fork a rank; None if the template can't: it has ended, or differs from the rank in what it has imported."""
        if entry != self.entry or not self.process or self.state != self.inherited(environment):
            return None
        ours, theirs = socket.socketpair()
        state = {"cores": [*os.sched_getaffinity(0)], "nice": os.nice(0)}
        state |= {"environment": {**environment, PARENT_VARIABLE: str(self.process.pid)}}
        try:
            with theirs:
                run = os.fsencode(environment[RUN_VARIABLE])
                socket.send_fds(self.requests, [run], [0, 1, 2, theirs.fileno()])
            pid, descriptors, _, _ = socket.recv_fds(ours, 32, 1)
            ours.sendall(json.dumps(state).encode())
            ours.shutdown(socket.SHUT_WR)
            return ForkedRank(int(pid), descriptors[0], ours)
        except (OSError, ValueError):  # the template has ended
            ours.close()
            return None


class ForkedRank:
    """A rank that the template has forked, with what `launch` needs of `subprocess.Popen`."""

    def __init__(self, pid: int, pidfd: int, connection: socket.socket) -> None:
        self.pid, self.pidfd, self.connection = pid, pidfd, connection
        self.returncode: int | None = None

    def poll(self, seconds: float | None = 0) -> int | None:
        if self.returncode is None and select.select([self.connection], [], [], seconds)[0]:
            status = b""
            with suppress(ConnectionResetError):
                status = self.connection.recv(32)
            if not status:  # the template has ended, and so has the rank got a signal to stop
                select.select([self.pidfd], [], [])
            self.returncode = int(status or -signal.SIGTERM)
            self.connection.close()
            os.close(self.pidfd)
        return self.returncode

    def wait(self) -> int | None:
        return self.poll(None)

    def send_signal(self, sig: int, /) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def serve(number: int, prepare: Callable[[Path], None]) -> None:
    """Fork a rank for each request at the socket `number`; returns in the ranks, as in new processes.

    `prepare` imports what a run needs. If it fails or starts a thread, this process ends, and ranks are new processes.
    """
    before = dict(os.environ)
    requests, ranks = socket.socket(fileno=number), dict[int, tuple[int, socket.socket]]()  # by their pidfds
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)  # until a rank calls `exit_with_parent`
    poll, prepared, added = select.poll(), False, dict[str, str]()
    poll.register(requests, select.POLLIN)
    while True:
        if (ready := poll.poll()[0][0]) == number:
            run, streams, _, _ = socket.recv_fds(requests, 4096, 4)
            if not run:  # the last launcher has ended, and each rank has a signal to stop
                os._exit(0)
            if not prepared:
                prepare_once(prepare, Path(os.fsdecode(run)))
                prepared, added = True, {k: v for k, v in os.environ.items() if before.get(k) != v}
            connection = socket.socket(fileno=streams.pop())
            if not (pid := os.fork()):
                for other in [requests, *(other for _, other in ranks.values())]:
                    other.close()
                return become_rank(connection, streams, added)
            pidfd = os.pidfd_open(pid)
            ranks[pidfd] = pid, connection
            poll.register(pidfd, select.POLLIN)
            poll.register(connection, 0)  # its end alone
            with suppress(OSError):
                socket.send_fds(connection, [str(pid).encode()], [pidfd])
            for stream in streams:
                os.close(stream)
        elif ready in ranks:
            pid, connection = ranks.pop(ready)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with suppress(OSError):
                connection.sendall(str(status).encode())
            with suppress(KeyError):
                poll.unregister(connection)
            poll.unregister(ready)
            connection.close()
            os.close(ready)
        else:  # the end of a launcher
            poll.unregister(ready)
            pidfd = next(pidfd for pidfd, (_, connection) in ranks.items() if connection.fileno() == ready)
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)


def prepare_once(prepare: Callable[[Path], None], run: Path) -> None:
    try:
        prepare(run)
    except BaseException:  # for ranks in new processes to report
        os._exit(1)
    torch: Any = sys.modules.get("torch")
    if threading.active_count() > 1 or (torch and torch.cuda.is_initialized()):
        os._exit(1)


def become_rank(connection: socket.socket, streams: list[int], added: Mapping[str, str]) -> None:
    """Turn a fork of the template into what `subprocess.Popen` would have started."""
    os.setpgid(0, 0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())
    with connection, connection.makefile("rb") as sent:
        text = sent.read()
    if not text:
        os._exit(1)  # the launcher has ended
    state = json.loads(text)
    os.sched_setaffinity(0, state["cores"])
    if state["nice"] != os.nice(0):
        os.setpriority(os.PRIO_PROCESS, 0, state["nice"])
    os.environ.clear()
    os.environ.update({**added, **state["environment"]})
    numpy: Any = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed()  # Python seeds its own generator
