"""Runs that are killed or stopped: by the clock, and at chosen file operations."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from faults.programs import SRC, real_process, run_command, start_command, text
from faults.runs import (
    DIGITS,
    assert_same_run,
    disturb,
    finish,
    finished_run,
    images,
    once,
    reference,
    start,
    start_for,
)
from faults.trials import Trial, fault
from vitlab.distributed import signals
from vitlab.runs.folder import RESULTS, read_results
from vitlab.storage import safe_load

# ----------------------------------------------------------------------------------------------------- by the clock


def stop_at_random(
    trial: Trial, numbers: tuple[int, ...], name: str, *settings: str, ranks: int = 1, every: bool = True
) -> None:
    """Send one of the signals at up to three random moments, and resume the run each time.

    SIGKILL goes to all processes of the run or, with `every=False`, to one rank; other signals to the program.
    """
    expected, seconds = reference(trial.work, name, *settings, ranks=ranks)
    # the interval of checkpoints doesn't affect the training, so references don't set it
    settings = (*settings, f"callbacks.last.every_n_train_steps={trial.random.choice((1, 2, 5, 'null'))}")
    run = trial.folder / "run"
    for _ in range(trial.random.choice((1, 1, 2, 3))):
        program = start_for(trial.random.uniform(0.02, 1.0) * seconds, trial.folder, *settings, ranks=ranks)
        number = trial.random.choice(numbers)
        victims = [program.pid]
        if number == signal.SIGKILL and program.poll() is None:
            started = [pid for pid in program.processes() if pid != program.pid]
            victims = [*victims, *started] if every or not started else [trial.random.choice(started)]
        for pid in victims if program.poll() is None else ():
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        status = program.wait_for_all()
        recorded = read_results(run).get("status")
        if number != signal.SIGKILL and status:
            outcome = signals.SIGNALS[number]
            assert status in (signals.STATUS[outcome], -number), f"ended with {status}\n{program.text()[-2000:]}"
            assert number == signal.SIGINT or status < 0 or recorded == outcome, f"results.json says {recorded}"
        for file in (run / "checkpoints").glob("*.ckpt"):
            assert safe_load.corruption(file) is None, f"{file.name} is damaged"
        if status == 0 or recorded == "finished":
            break
    assert_same_run(expected, finish(trial.folder, *settings, ranks=ranks))


def by_clock(
    name: str, times: int, numbers: tuple[int, ...], reference: str, ranks: int = 1, every: bool = True
) -> None:
    """Add a kind of `stop_at_random`."""

    def kind(trial: Trial) -> None:
        settings = images(trial.work) if reference.startswith("images") else DIGITS
        stop_at_random(trial, numbers, reference, *settings, ranks=ranks, every=every)

    fault(name, times)(kind)


KILL, STOP = (signal.SIGKILL,), (signal.SIGTERM, signal.SIGUSR1)
by_clock("SIGKILL, one process, with all random operations", 24, KILL, "digits")
by_clock("SIGKILL, image folder, two loading processes", 8, KILL, "images")
by_clock("SIGKILL, two gloo ranks", 6, KILL, "digits-2", ranks=2)
by_clock("SIGKILL, two gloo ranks, image folder, two loading processes each", 3, KILL, "images-2", ranks=2)
by_clock("SIGKILL of one of two gloo ranks: the other must end too", 4, KILL, "digits-2", ranks=2, every=False)
by_clock("SIGTERM or SIGUSR1: preempted, requeued", 12, STOP, "digits")
by_clock("SIGTERM or SIGUSR1, two gloo ranks", 4, STOP, "digits-2", ranks=2)
by_clock("Ctrl-C", 6, (signal.SIGINT,), "digits")


@fault("a second signal: ends immediately", 4)
def signalled_twice(trial: Trial) -> None:
    settings = [*DIGITS, "callbacks.last.every_n_train_steps=5"]
    expected, seconds = reference(trial.work, "digits", *DIGITS)
    program = start_for(trial.random.uniform(0.3, 0.9) * seconds, trial.folder, *settings)
    if program.poll() is None:
        program.send_signal(signal.SIGSTOP)  # so that the step doesn't end before the second signal
        program.send_signal(signal.SIGTERM)
        time.sleep(signals.ECHO + 0.2)
        program.send_signal(signal.SIGINT)
        program.send_signal(signal.SIGCONT)
        program.wait(20)
    assert_same_run(expected, finish(trial.folder, *settings))


@fault("Ctrl-C or SIGTERM while train.py starts: ends without a traceback, and the run can be made (real processes)", 4)
def stopped_at_start(trial: Trial) -> None:
    line, number = (str(SRC / "train.py"), *DIGITS, "resume=auto"), trial.random.choice((signal.SIGINT, *STOP))
    with real_process(trial.folder, *line) as process:
        time.sleep(trial.random.uniform(0.2, 6.0))
        process.send_signal(number)
        status = process.wait(60)
    output, outcome = text(trial.folder), signals.SIGNALS[number]
    assert status in (-number, signals.STATUS[outcome], 0), f"ended with {status}\n{output[-2000:]}"
    assert "Traceback" not in output, output[-2000:]
    run_command(trial.folder, "train", *DIGITS, "resume=auto")
    assert_same_run(reference(trial.work, "digits", *DIGITS)[0], finished_run(trial.folder))


@fault("two processes in one run folder: the second refused", 3)
def occupied(trial: Trial) -> None:
    expected, _ = reference(trial.work, "digits", *DIGITS)
    run = trial.folder / "run"
    first = start(trial.folder, *DIGITS)
    while not (run / RESULTS).exists():
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)  # so that it doesn't end before
    second = start(trial.folder, *DIGITS)
    status = second.wait()
    first.send_signal(signal.SIGCONT)
    assert status == 2, second.text()[-2000:]
    assert "is being trained in by process" in second.text(), second.text()[-2000:]
    assert first.wait() == 0, first.text()[-2000:]
    assert_same_run(expected, run)


# ------------------------------------------------------------------------------------------- at a file operation

OFTEN = ["callbacks.last.every_n_train_steps=4", "callbacks.last.keep_every_n_train_steps=10", "callbacks.best.keep=2"]


def kill_at_operation(trial: Trial, *, within: bool) -> None:
    """Kill `train.py` at a random operation on a random file, and resume=auto."""
    expected = once(trial.work, "often", "train", *DIGITS, *OFTEN)
    line = [*DIGITS, *OFTEN, "resume=auto"]
    writes = ("write", "save")
    disturb(trial, "train", *line, like=expected, only=lambda op: not within or op[0] in writes, within=within)
    assert_same_run(finished_run(expected), finished_run(trial.folder))


BETWEEN, WITHIN = "killed between two file operations", "killed within a write"
fault(f"train.py {BETWEEN}, then resume=auto", 40)(lambda trial: kill_at_operation(trial, within=False))
fault(f"train.py {WITHIN}, then resume=auto", 16)(lambda trial: kill_at_operation(trial, within=True))


# ------------------------------------------------------------------------------------ the command line and launchers


@fault("train.py stopped at random, then resume=auto or resume=RUN", 14)
def command_line(trial: Trial) -> None:
    settings = [*DIGITS, "callbacks.last.every_n_train_steps=3"]
    expected, seconds = reference(trial.work, "digits", *DIGITS)
    number = trial.random.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    program = start_command(trial.folder, "train", *settings)
    time.sleep(trial.random.uniform(0.1, 1.0) * seconds)
    program.send_signal(number)
    status = program.wait()
    runs = list(trial.folder.glob("runs/*/*/checkpoints/last.ckpt"))
    if status:
        outcome = signals.SIGNALS.get(number)
        assert status in (-number, signals.STATUS[outcome] if outcome else -number), program.text()[-2000:]
        resume = f"resume={runs[0].parents[1].relative_to(trial.folder)}" if runs else "resume=auto"
        resume = trial.random.choice((resume, "resume=auto"))
        line = [resume] if resume != "resume=auto" else [*settings, resume]
        run_command(trial.folder, "train", *line)
    assert_same_run(expected, finished_run(trial.folder))


@fault("a killed run, resumed with another setting by resume=RUN", 6)
def changed_setting(trial: Trial) -> None:
    """The message names the change, and the run trains as if it had been interrupted at the checkpoint."""
    settings = [*DIGITS, "callbacks.last.every_n_train_steps=3"]
    _, seconds = reference(trial.work, "digits", *DIGITS)
    program = start_command(trial.folder, "train", *settings)
    while not (runs := list(trial.folder.glob("runs/*/*/checkpoints/previous.ckpt"))) and program.poll() is None:
        time.sleep(0.005)
    time.sleep(trial.random.uniform(0, 0.3) * seconds)
    program.kill()
    if program.wait() == 0:
        return
    key, value = trial.random.choice((("optimizer.weight_decay", "0.2"), ("trainer.max_epochs", "5"), ("seed", "3")))
    run = runs[0].parents[1]
    output = run_command(trial.folder, "train", f"resume={run}", f"{key}={value}")
    assert f"resume with another setting: {key}:" in output, output[-2000:]
    results = read_results(run)
    assert (results["status"], results["epochs"]) == ("finished", 5 if key == "trainer.max_epochs" else 4)


@fault("one of two ranks killed under max_restarts=1: restarted", 3)
def restarted(trial: Trial) -> None:
    expected, _ = reference(trial.work, "digits-2", *DIGITS, ranks=2)
    run = trial.folder / "run"
    program = start(trial.folder, *DIGITS, "max_restarts=1", "callbacks.last.every_n_train_steps=1", ranks=2)
    while not (run / "checkpoints" / "previous.ckpt").exists() and program.poll() is None:
        time.sleep(0.005)
    first = read_results(run)["process"]
    os.kill(trial.random.choice([pid for pid in program.processes() if pid != program.pid]), signal.SIGKILL)
    assert program.wait_for_all() == 0, program.text()[-3000:]
    assert read_results(run)["process"] != first, "it was restarted"
    assert_same_run(expected, run)


@fault("one of two ranks killed under torchrun --max-restarts=1 (real processes)", 2)
def restarted_by_torchrun(trial: Trial) -> None:
    expected, _ = reference(trial.work, "digits-2", *DIGITS, ranks=2)
    run = trial.folder / "run"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1")
    settings = [*DIGITS, "trainer.devices=2", "hydra.run.dir=run", "callbacks.last.every_n_train_steps=1"]
    with real_process(trial.folder, *torchrun, str(SRC / "train.py"), *settings) as process:
        while not (run / "checkpoints" / "previous.ckpt").exists() and process.poll() is None:
            time.sleep(0.005)
        first = read_results(run)["process"]
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(trial.random.choice(ranks)), signal.SIGKILL)
        assert process.wait(300) == 0, text(trial.folder)[-2000:]
    assert read_results(run)["process"] != first, "it was restarted"
    assert_same_run(expected, run)


@fault("train.py killed, then resume=auto (real processes)", 2)
def real_command_line(trial: Trial) -> None:
    settings = [*DIGITS, "callbacks.last.every_n_train_steps=3", "resume=auto"]
    expected, _ = reference(trial.work, "digits", *DIGITS)
    line = (str(SRC / "train.py"), *settings)
    with real_process(trial.folder, *line) as process:
        while not list(trial.folder.glob("runs/*/*/checkpoints/previous.ckpt")) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(trial.random.uniform(0, 0.5))
    with real_process(trial.folder, *line) as process:
        assert process.wait(300) == 0, text(trial.folder)[-2000:]
    assert_same_run(expected, finished_run(trial.folder))
