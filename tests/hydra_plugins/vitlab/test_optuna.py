"""A search as a user starts it: killed while a trial trains on two devices, and resumed by the same command."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from conftest import Program, Start, Tracked
from vitlab.jobs.compose import CONF
from vitlab.runs import lock
from vitlab.sweeps import ledger
from vitlab.sweeps.search.study import open_study

ARGUMENTS = [
    *("sweep=killed", "hydra/sweeper=optuna", "hydra/sweeper/pruner=none", "hydra.sweeper.n_trials=1"),
    *("trainer.devices=2", "trainer.max_epochs=14", "optimizer.lr=tag(log,interval(1e-3,1e-2))"),
    # ends every trial at validation 12: ten epochs after the kill, so that a busy machine kills it in time
    "++hydra.sweeper.pruner={_target_:optuna.pruners.ThresholdPruner,lower:2.0,n_warmup_steps:12}",
]


def kill_all(process: "subprocess.Popen[str]") -> None:
    """SIGKILL a search and the ranks of its trial: none can save, nor record how another one ended."""
    process.send_signal(signal.SIGSTOP)
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)
    process.kill()
    process.communicate()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds a process's children in /proc")
@pytest.mark.long
def test_a_killed_search_resumes_its_trial_which_both_ranks_end_together(
    start: Start, program: Program, tracked: Tracked, small: list[str], tmp_path: Path
) -> None:
    sweep = tmp_path / "runs" / "sweeps" / "killed"
    url = f"sqlite:///{sweep}/study.db"
    process = start("train", "-m", *small, *ARGUMENTS, cwd=tmp_path)
    deadline = time.monotonic() + 400
    while not list(sweep.glob("*/checkpoints/previous.ckpt")):  # the second epoch is trained, and not the twelfth
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    kill_all(process)
    with open_study(url, "killed") as study:
        (before,) = study.get_trials()
    assert before.state.name == "RUNNING"

    output = program("train", "-m", *small, *ARGUMENTS, cwd=tmp_path)
    assert "trial 0 is not finished, and is resumed" in output
    assert "trials:\n  pruned: 1\n" in output
    with open_study(url, "killed") as study:
        (trial,) = study.get_trials()
    assert trial.state.name == "PRUNED"
    assert trial.params == before.params
    assert list(trial.intermediate_values) == list(range(1, 13)), "each validation once"
    reported_before = before.intermediate_values
    assert {k: trial.intermediate_values[k] for k in reported_before} == reported_before

    (job,) = ledger.read_sweep(sweep).jobs
    assert (job.status, job.attempts, job.results["devices"], job.results["epochs"]) == ("pruned", 2, 2, 12)
    assert "test/acc" not in job.results
    assert (job.folder / "checkpoints" / "last.ckpt").is_file()
    assert not lock.is_held(job.folder), "no rank is left"
    *_, (summary, _) = tracked(job.folder)
    assert summary["summary"]["status"] == "pruned"


def test_the_plugin_is_light() -> None:
    """Hydra imports it whenever any of its programs starts."""
    code = (
        "import sys, hydra_plugins.vitlab.optuna; "
        "print([name for name in ('optuna', 'torch', 'lightning', 'sqlalchemy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=CONF.parent / "src", capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr
