"""Command lines in forked processes, which skip only the imports: `python src/train.py ...` as a user types it."""

import logging
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import train as train_program
from vitlab.config import allowlist
from vitlab.distributed import launch, signals

SRC = Path(train_program.__file__).parent
TIMEOUT = 300.0  # seconds, for each part of a trial
SESSIONS: list[int] = []  # of the programs that a trial has started


class ForkedProgram:
    """A program in a fork of this process, with the methods of `subprocess.Popen` that a launcher uses.

    The ranks that it starts are forks too. `before` is called first in the new process.
    """

    def __init__(
        self,
        line: Sequence[str],
        *,
        env: Mapping[str, str],
        process_group: int | None = None,
        cwd: Path | None = None,
        output: Path | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.returncode: int | None = None
        self.output = output
        signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)  # until the new process has handlers of its own
        self.pid = os.fork()
        if self.pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
        else:
            status = 70
            try:
                if process_group is None:
                    os.setsid()
                else:
                    os.setpgid(0, 0)
                if output:
                    opened = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                    os.dup2(opened, 1)
                    os.dup2(opened, 2)
                sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
                new_interpreter(env, cwd)
                if before:
                    before()
                sys.argv = list(line[1:])
                runpy.run_path(line[1], run_name="__main__")
                status = 0
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else int(error.code is not None)
            except BaseException:
                traceback.print_exc()
                status = 70
            finally:
                with suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(status)
        if process_group is None:
            SESSIONS.append(self.pid)

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait for the end. A program that runs into the timeout is killed, which is an error."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"still running after {timeout:.0f} s\n{self.text()[-2000:]}")
            time.sleep(0.01)
        return status

    def send_signal(self, number: int, /) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def processes(self) -> list[int]:
        """This process and those that it has started, and they in turn, as far as they run."""
        return [pid for pid, session in sessions().items() if session == self.pid]

    def wait_for_all(self) -> int:
        """Wait until the program and all that it has started have ended."""
        status, deadline = self.wait(), time.monotonic() + 60
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not self.processes(), f"processes are left\n{self.text()[-2000:]}"
        return status

    def text(self) -> str:
        return self.output.read_text(errors="replace") if self.output and self.output.exists() else ""


def new_interpreter(env: Mapping[str, str], cwd: Path | None) -> None:
    """Leave nothing of the parent's state but its modules."""
    os.environ.clear()
    os.environ.update(env)
    if cwd:
        os.chdir(cwd)
    allowlist.WORKING_DIR = Path.cwd().resolve()
    for number in signals.SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # SIGINT too: `import vitlab` in a program does it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
    logging.getLogger().handlers = []
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    warnings.resetwarnings()  # under pytest they are errors
    torch.set_num_threads(1)
    vars(launch)["subprocess"] = SimpleNamespace(Popen=ForkedProgram)
    vars(launch.TEMPLATE)["start"] = lambda environment: None  # this process is the ranks' template


def environment(**more: str) -> dict[str, str]:
    """The environment of a program: nothing of a cluster or of the user's logins."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH")
    fixed = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "NO_PROXY": "127.0.0.1", "COLUMNS": "200"}
    return {**{key: os.environ[key] for key in kept if key in os.environ}, **fixed, **more}


def start_command(
    folder: Path, program: str, *arguments: str, before: Callable[[], None] | None = None, **env: str
) -> ForkedProgram:
    """Start `python src/PROGRAM.py ARGUMENTS` in a folder; its output is appended to `output.txt` there."""
    line = [sys.executable, str(SRC / f"{program}.py"), *arguments]
    return ForkedProgram(line, env=environment(**env), cwd=folder, output=folder / "output.txt", before=before)


def run_command(folder: Path, program: str, *arguments: str, expect: int | None = 0, **env: str) -> str:
    """Run a program to its end. Returns its output; no other status than expected, and never a traceback."""
    seen = len(text(folder))
    status = start_command(folder, program, *arguments, before=None, **env).wait()
    output = text(folder)[seen:]
    assert "Traceback (most recent" not in output, f"{program} {arguments}: a traceback\n{output[-3000:]}"
    assert expect is None or status == expect, f"{program} {arguments}: ended with {status}\n{output[-3000:]}"
    return f"{output}\nstatus {status}"


def text(folder: Path) -> str:
    file = folder / "output.txt"
    return file.read_text(errors="replace") if file.exists() else ""


@contextmanager
def real_process(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Start Python as a user does, and kill it at the block's end if it still runs."""
    line, options = [sys.executable, *arguments], {"stderr": subprocess.STDOUT, "cwd": folder, "env": environment()}
    with (folder / "output.txt").open("ab") as output:
        process = subprocess.Popen(line, stdout=output, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def sessions() -> dict[int, int]:
    """The session of each running process."""
    running = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session = file.read_text().rpartition(")")[2].split()[:4]
            if state != "Z":
                running[int(file.parent.name)] = int(session)
    return running


def kill_sessions() -> None:
    """Kill what the programs of a trial have left running."""
    for pid, session in sessions().items() if SESSIONS else ():
        if session in SESSIONS:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
    SESSIONS.clear()
