"""Fork ranks from a template: a process of the program that imports what they need once.

launcher  sends its standard streams and an end of a new pipe, then through the pipe a rank's environment
template  imports what the first run needs, and forks a keeper
keeper    forks the rank, sends its pid and in the end its status, and signals it to stop if the launcher has ended

All launchers of a command inherit the socket for requests. It has no address: no other process can connect to it.
"""

import atexit
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vitlab.distributed import signals
from vitlab.distributed.environment import TASK_VARIABLES

RUN_VARIABLE = "VITLAB_RUN"  # the run folder of a rank
PARENT_VARIABLE = "VITLAB_PARENT"  # the process that started a rank; the rank ends with it
REQUESTS_VARIABLE = "VITLAB_TEMPLATE"  # a template's socket for requests
# what a rank has of its own, or not at all: when libraries are imported, they read nothing of it but the rank
NAMES = r"CUDA_VISIBLE_DEVICES|GROUP_RANK|(LOCAL_)?(RANK|WORLD_SIZE)|(MASTER|TORCHELASTIC|VITLAB)_\w+"
OWN = re.compile("|".join((NAMES, *TASK_VARIABLES)))


@dataclass
class ForkedRank:
    """A forked rank, with what `launch` needs of `subprocess.Popen`."""

    pid: int
    connection: Connection
    returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and self.connection.poll():
            self.returncode = -signal.SIGTERM  # that is what a rank gets, and ends by, if its keeper is killed
            with suppress(EOFError, OSError):
                self.returncode = self.connection.recv()
        return self.returncode

    def send_signal(self, sig: int, /) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)


class Template:
    """A command's template, as its launchers see it. Without the program's `entry`, ranks are new processes."""

    entry: Path | None = None
    process: Any = None

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the template once: with the first rank, or before launchers are forked."""
        if self.process or not self.entry or sys.platform != "linux":
            return
        with suppress(OSError):
            os.close(os.pidfd_open(os.getpid()))  # since Linux 5.3; where it can't, ranks are new processes
            self.shared = shared_state(environment)
            self.requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                own, line = {REQUESTS_VARIABLE: str(theirs.fileno())}, [sys.executable, str(self.entry)]
                options: Any = {"pass_fds": [theirs.fileno()], "stdin": subprocess.DEVNULL, "process_group": 0}
                self.process = subprocess.Popen(line, env={**self.shared[0], **own}, **options)
            atexit.register(self.stop)

    def stop(self) -> None:
        self.requests.close()
        with suppress(subprocess.TimeoutExpired):  # ranks that still run are stopped after the end of this process
            self.process.wait(5)

    def fork(self, entry: Path, environment: Mapping[str, str]) -> ForkedRank | None:
        """Fork a rank; None if the template has ended, or has imported its libraries in another environment."""
        if not self.process or entry != self.entry or self.shared != shared_state(environment):
            return None
        ours, theirs = Pipe()
        with suppress(EOFError, OSError):
            with theirs:
                run = os.fsencode(environment[RUN_VARIABLE])
                socket.send_fds(self.requests, [run], [0, 1, 2, theirs.fileno()])
            ours.send((dict(environment), os.sched_getaffinity(0), os.nice(0)))
            return ForkedRank(ours.recv(), ours)
        return None


def shared_state(environment: Mapping[str, str]) -> tuple[dict[str, str], Path]:
    """What a rank has in common with its template: environment variables and the working directory."""
    return {key: value for key, value in environment.items() if not OWN.fullmatch(key)}, Path.cwd()


def serve(prepare: Callable[[Path], Any]) -> None:
    """Return at once in a process that is no template; else fork ranks, and return in each as in a new process.

    `prepare` imports what a run needs. If it fails or starts a thread, the template ends.
    """
    if (number := int(os.environ.pop(REQUESTS_VARIABLE, "-1"))) < 0:
        return None
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)  # until a rank calls `exit_with_parent`
    requests, prepared = socket.socket(fileno=number), False
    while True:
        run, files, _, _ = socket.recv_fds(requests, 4096, 4)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG if run else 0)[0]:
                pass
        if not run:  # no launcher is left
            os._exit(0)
        if not prepared:
            prepare(Path(os.fsdecode(run)))
            torch: Any = sys.modules.get("torch")
            if threading.active_count() > 1 or (torch and torch.cuda.is_initialized()):
                os._exit(1)
            prepared = True
        if not os.fork():
            requests.close()
            return keep_rank(files)
        for file in files:
            os.close(file)


def keep_rank(files: list[int]) -> None:
    """Fork a rank, in which this returns, and wait for its end or the launcher's."""
    connection = Connection(files.pop())
    os.set_inheritable(connection.fileno(), False)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    environment, cores, nice = connection.recv()
    os.sched_setaffinity(0, cores)
    os.nice(max(0, nice - os.nice(0)))
    os.environ.update({**environment, PARENT_VARIABLE: str(os.getpid())})  # it has none that a rank has not
    if not (pid := os.fork()):
        os.setpgid(0, 0)
        os.dup(connection.fileno())  # so that its end closes the pipe
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed()  # Python seeds its own generator
        return
    end = os.pidfd_open(pid)
    with suppress(OSError):
        connection.send(pid)
    if end not in wait([connection, end]):
        os.kill(pid, signal.SIGTERM)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(OSError):
        connection.send(status)
    os._exit(0)
