"""Several jobs on one machine: each on its own devices, each ends alone, none is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus
from omegaconf import DictConfig

from sweep_jobs import batch
from vitlab.jobs import compose
from vitlab.sweeps.launchers import devices, local
from vitlab.sweeps.launchers.local import Job

CORES = len(devices.available_cores())
Batch = Callable[..., list[Job]]


# ------------------------------------------------------------------------------------------------------------ jobs


def write_given(cfg: DictConfig) -> float:
    """A job that writes its environment to its folder, and fails depending on its seed."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    given: dict[str, Any] = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    given |= {"cores": sorted(os.sched_getaffinity(0)), "process": os.getpid(), "group": os.getpgid(0)}
    (folder / "given.json").write_text(json.dumps(given))
    os.environ["LEFT_BY_A_JOB"] = "1"
    subprocess.run([sys.executable, "-c", "print('from a process of the job')"], check=True)
    if cfg.seed == 1:
        raise ValueError("seed 1 is\nnot liked")
    if cfg.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.seed == 3:
        raise type("Local", (Exception,), {})("can't be sent")
    if cfg.seed == 4:
        sys.exit(75)
    return float(cfg.seed)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Seven jobs of which four end badly, two at once."""
    folder = tmp_path_factory.mktemp("jobs")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    jobs = batch(write_given, folder, *([f"seed={seed}", "trainer.devices=1"] for seed in range(7)))
    results = local.launch(jobs, at_once=2, total=7)
    monkeypatch.undo()
    return folder, jobs, results


def given(folder: Path, number: int) -> Any:
    return json.loads((folder / str(number) / "given.json").read_text())


def test_a_job_that_fails_ends_alone_and_its_reason_comes_back(ended: Any) -> None:
    _, _, results = ended
    assert [r.status == JobStatus.COMPLETED for r in results] == [True, False, False, False, False, True, True]
    assert [results[number].return_value for number in (0, 5, 6)] == [0.0, 5.0, 6.0]
    reasons = [str(results[number]._return_value) for number in (1, 2, 3, 4)]
    assert reasons[0] == "seed 1 is\nnot liked"
    assert reasons[1].startswith("its process ended with status -9; ")
    assert reasons[2] == "Local: can't be sent"
    assert reasons[3].startswith("preempted; ")
    with pytest.raises(ValueError, match="not liked"):
        _ = results[1].return_value


def test_each_job_has_its_share_of_the_cores_and_a_process_group_of_its_own(ended: Any) -> None:
    folder, _, _ = ended
    share = max(1, CORES // 2)
    for number in range(7):
        was = given(folder, number)
        assert len(was["cores"]) == share
        assert was["OMP_NUM_THREADS"] == str(share)
        assert was["group"] == was["process"]
    assert len({given(folder, number)["process"] for number in range(7)}) == 7
    if CORES > 1:
        assert not set(given(folder, 0)["cores"]) & set(given(folder, 1)["cores"])


def test_what_a_job_prints_is_in_its_folder_and_nothing_of_it_stays_behind(ended: Any) -> None:
    folder, _, _ = ended
    for number in range(7):
        assert "from a process of the job" in (folder / str(number) / local.CONSOLE).read_text()
    assert "LEFT_BY_A_JOB" not in os.environ
    assert len(devices.available_cores()) == CORES


def test_the_label_of_a_job_leaves_out_what_all_jobs_share(ended: Any) -> None:
    _, jobs, _ = ended
    assert [job.label for job in jobs] == [f"seed={seed}" for seed in range(7)]


def test_the_end_of_a_job_is_logged_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (job,) = batch(write_given, tmp_path, ["seed=1"])
    with caplog.at_level("INFO", "vitlab.sweeps.launchers.local"):
        job.log_end(job.failure("rank 1 of 2\nwas killed"))
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "\n" not in record.getMessage()
    assert "#0 failed (trainer.accelerator=cpu seed=1): rank 1 of 2 was killed; " in record.getMessage()


def test_jobs_on_gpus_are_pinned_to_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: list("4567"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    gpu = ["trainer.accelerator=gpu", "seed=0"]
    jobs = batch(
        write_given, tmp_path, [*gpu, "trainer.devices=2"], [*gpu, "trainer.devices=2"], [*gpu, "trainer.devices=[1,3]"]
    )
    assert [job.count for job in jobs] == [2, 2, 2]
    local.launch(jobs, at_once=None, total=3)
    assert [given(tmp_path, number)["CUDA_VISIBLE_DEVICES"] for number in (0, 1)] == ["4,5", "6,7"]
    assert given(tmp_path, 2)["CUDA_VISIBLE_DEVICES"] == os.environ.get("CUDA_VISIBLE_DEVICES"), (
        "numbers count among all"
    )
    assert given(tmp_path, 0)["OMP_NUM_THREADS"] == str(max(1, CORES * 2 // 4 // 2))


# --------------------------------------------------------------------------------------------------------- signals

RANK = """
import os, signal, sys, time
from pathlib import Path
from vitlab.distributed import launch
launch.exit_with_parent(int(os.environ['VITLAB_PARENT']))
folder, rank = Path(os.environ['VITLAB_RUN']), os.environ['RANK']
seen = []
def note(number, frame):
    seen.append(number)
    time.sleep(0.5)  # the time that writing a checkpoint takes
    (folder / f'signals{rank}').write_text(repr([int(n) for n in seen]))
    sys.exit(130 if number == signal.SIGINT else 75)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, note)
(folder / f'.{rank}').write_text(str(os.getpid()))
(folder / f'.{rank}').rename(folder / rank)
time.sleep(600)
"""

PARENT = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {source!r}]
import hydra
from hydra.core.hydra_config import HydraConfig
from vitlab.distributed import launch, signals
from vitlab.sweeps.launchers import local
from vitlab.cli import command, register
from sweep_jobs import batch
register.register()
folder = Path({folder!r})
def task(cfg):
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        launch.run_ranks(folder / 'rank.py', run_dir, 2)
    except signals.StopRequested as stop:
        sys.exit(signals.STATUS[stop.outcome])
local.launch(batch(task, folder, ['seed=0'], ['seed=1'], ['seed=2']), at_once=2, total=3)
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Any]:
    """A program that runs three jobs of two ranks each, two at once, and the ranks of the first two, when these run."""
    (tmp_path / "rank.py").write_text(RANK)
    source = compose.CONF.parent / "src"
    program = PARENT.format(folder=str(tmp_path), tests=str(compose.CONF.parent / "tests"), source=str(source))
    environment = {**os.environ, "PYTHONPATH": str(source)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, start_new_session=True)
    files = [tmp_path / str(job) / str(rank) for job in range(2) for rank in range(2)]
    try:
        end = time.monotonic() + 120
        while not all(file.exists() for file in files):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process, files
    finally:
        process.kill()
        process.wait()


def tree(session: int) -> list[int]:
    """The processes that are left of a program and all that it started, except zombies."""
    left = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of) == session and state != "Z":
            left.append(int(stat.parent.name))
    return left


def test_a_signal_reaches_each_rank_once_and_no_process_is_left(sweep: Any) -> None:
    process, files = sweep
    assert len(tree(process.pid)) == 1 + 2 + 4
    os.killpg(process.pid, signal.SIGUSR1)  # to the process group, as a terminal sends Ctrl-C
    assert process.wait(timeout=60) == 75
    assert tree(process.pid) == []
    for file in files:
        assert (file.parent / f"signals{file.name}").read_text() == f"[{int(signal.SIGUSR1)}]", "once, not twice"
    assert not (files[0].parents[1] / "2").exists(), "what waited was not started"


def test_the_jobs_of_a_killed_sweep_save_and_end(sweep: Any) -> None:
    process, files = sweep
    process.kill()
    process.wait()
    end = time.monotonic() + 30
    while tree(process.pid):
        assert time.monotonic() < end, "a job runs without its sweep"
        time.sleep(0.05)
    for file in files:
        assert (file.parent / f"signals{file.name}").read_text() == f"[{int(signal.SIGTERM)}]"


def test_a_sweep_restores_the_signal_handlers(tmp_path: Path) -> None:
    former = signal.getsignal(signal.SIGTERM)
    local.launch(batch(write_given, tmp_path, ["seed=0"]), at_once=None, total=1)
    assert signal.getsignal(signal.SIGTERM) is former
    assert "VITLAB_RUN" not in os.environ
