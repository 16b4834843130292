"""Asked to stop: a step is finished, what can be broken off is, a second signal ends at once."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from vitlab.distributed import signals
from vitlab.distributed.signals import StopRequested


def never(outcome: signals.Outcome) -> None:
    pytest.fail("no second signal was sent")


@pytest.mark.parametrize(
    ("number", "outcome", "status"),
    [(signal.SIGTERM, "preempted", 75), (signal.SIGUSR1, "preempted", 75), (signal.SIGINT, "interrupted", 130)],
)
def test_other_work_than_training_is_aborted(number: int, outcome: str, status: int) -> None:
    def loading() -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    with pytest.raises(StopRequested) as stopped, signals.handle_signals(never):
        loading()
    assert stopped.value.outcome == outcome
    assert signals.STATUS[stopped.value.outcome] == status
    assert signals.requested_outcome() is None, "it is done with"


def test_training_checks_for_requests_and_ends() -> None:
    done = []

    def training() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(signals.requested_outcome())

    with pytest.raises(StopRequested), signals.handle_signals(never), signals.graceful_shutdown():
        training()
    assert done == ["preempted"], "the block went on to its end, and then nothing else was begun"


def test_the_same_signal_from_a_cluster_and_from_the_launcher_counts_once() -> None:
    def training() -> None:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)

    with pytest.raises(StopRequested), signals.handle_signals(never), signals.graceful_shutdown():
        training()


@pytest.mark.parametrize("graceful", [False, True])
def test_a_forked_process_ends_without_a_word_or_stays_while_its_parent_shuts_down_gracefully(
    graceful: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()

    def loading() -> None:
        os.write(writer, b"r")
        time.sleep(0.2)
        os.write(writer, b"s")  # it has outlived the signal
        time.sleep(20)

    with signals.handle_signals(never), signals.graceful_shutdown() if graceful else nullcontext():
        process = get_context("fork").Process(target=loading)
        process.start()
        assert os.read(reader, 1) == b"r"
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        if graceful:
            assert os.read(reader, 1) == b"s"
            process.kill()
        process.join(5)
        assert process.exitcode == (-signal.SIGKILL if graceful else 0)
        assert signals.requested_outcome() is None, "the parent wasn't asked"
    os.close(reader)
    os.close(writer)
    assert capfd.readouterr().err == ""


def test_afterwards_signals_mean_what_they_meant_before() -> None:
    former = {number: signal.getsignal(number) for number in signals.SIGNALS}
    with signals.handle_signals(never):
        assert signal.getsignal(signal.SIGTERM) is not former[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in signals.SIGNALS} == former


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from vitlab.distributed import signals\n"
        "folder = Path(sys.argv[1]); signals.ECHO = 0.1\n"
        "with signals.handle_signals(lambda outcome: (folder / outcome).touch()), signals.graceful_shutdown():\n"
        "    (folder / 'ready').touch()\n"
        "    end = time.monotonic() + 60\n"
        "    while time.monotonic() < end:\n        time.sleep(0.01)\n"
    )
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(Path(signals.__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None, "the first one is only noted"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 128 + signal.SIGINT
    assert (tmp_path / "interrupted").exists()
