"""The ledger is read from its folders, and several processes may write it at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vitlab.runs import lock
from vitlab.runs.folder import CONFIG, RESULTS, write_config
from vitlab.storage import atomic
from vitlab.sweeps import ledger

SOURCE = Path(ledger.__file__).parents[2]


def entry(**settings: str) -> dict[str, object]:
    return {"folder": "-".join(f"{key}_{value}" for key, value in settings.items()), "settings": settings}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three jobs of a sweep over seeds, none of them begun."""
    folder = tmp_path / "mine"
    ledger.write_sweep(folder, command="python train.py -m seed=0,1,2", varies=["seed"], objectives={"val/loss": "min"})
    ledger.add_jobs(folder, {f"id{seed}": entry(lr="0.1", seed=str(seed)) for seed in range(3)})
    return folder


def record(folder: Path, **results: object) -> None:
    folder.mkdir(exist_ok=True)
    failed = {"error": results["error"]} if "error" in results else {}
    (folder / ledger.JOB).write_text(json.dumps({"attempts": [{"started": "now", **failed}]}))
    if results:
        atomic.atomic_write(folder / RESULTS, json.dumps(results))


def test_a_planned_job_waits_until_it_is_begun(sweep: Path) -> None:
    found = ledger.read_sweep(sweep)
    assert (found.folder, found.name, found.objectives) == (sweep, "mine", {"val/loss": "min"})
    assert found.command == "python train.py -m seed=0,1,2"
    assert [(job.id, job.choices, job.status, job.attempts, job.results) for job in found.jobs] == [
        (f"id{seed}", {"seed": str(seed)}, "waiting", 0, {}) for seed in range(3)
    ]
    assert found.jobs[1].folder == sweep / "lr_0.1-seed_1"


@pytest.mark.parametrize(
    "status", ["finished", "pruned", "stopped", "preempted", "interrupted", "crashed", "cancelled"]
)
def test_a_jobs_status_is_what_its_run_says(sweep: Path, status: str) -> None:
    record(sweep / "lr_0.1-seed_1", status=status, error="why")
    job = ledger.read_sweep(sweep).jobs[1]
    assert (job.status, job.attempts, job.results["error"]) == (status, 1, "why")


def test_a_job_that_was_killed_was_interrupted(sweep: Path) -> None:
    record(sweep / "lr_0.1-seed_0", status="running", host="gone")
    record(sweep / "lr_0.1-seed_1")
    record(sweep / "lr_0.1-seed_2", status="crashed")  # a rank without its launcher, which would have noted it
    assert [job.status for job in ledger.read_sweep(sweep).jobs] == ["interrupted"] * 3


@pytest.mark.parametrize("role", lock.LOCKS)
def test_a_job_is_running_while_somebody_holds_it_whatever_was_written(sweep: Path, role: str) -> None:
    record(sweep / "lr_0.1-seed_1", status="crashed", error="why")
    with lock.run_lock(sweep / "lr_0.1-seed_1", role):
        assert ledger.read_sweep(sweep).jobs[1].status == "running"
    assert ledger.read_sweep(sweep).jobs[1].status == "crashed"


def test_a_half_written_or_foreign_file_in_a_job_is_no_end_of_the_table(sweep: Path) -> None:
    record(sweep / "lr_0.1-seed_1")
    for content in (b"{", b"\xff\x00", b"[1]", b'{"attempts": [7]'):
        for name in (RESULTS, ledger.JOB, CONFIG):
            (sweep / "lr_0.1-seed_1" / name).write_bytes(content)
        job = ledger.read_sweep(sweep).jobs[1]
        assert (job.status, job.attempts) == ("unreadable", 0)
        assert job.results["error"].startswith("results.json is damaged (")


def test_another_command_of_the_same_name_adds_what_it_varies_and_what_differs(sweep: Path) -> None:
    ledger.write_sweep(sweep, command="again", varies=["depth"], objectives={"val/acc": "max"})
    ledger.add_jobs(sweep, {"new": entry(lr="0.2", seed="0", depth="2")})
    found = ledger.read_sweep(sweep)
    assert (found.command, found.objectives) == ("again", {"val/acc": "max"})
    assert [job.choices for job in found.jobs] == [
        *({"seed": str(seed), "lr": "0.1"} for seed in range(3)),
        {"seed": "0", "depth": "2", "lr": "0.2"},
    ]


def test_a_job_whose_defaults_have_changed_takes_the_place_of_the_former(
    sweep: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.add_jobs(sweep, {"other": {**entry(lr="0.1", seed="1"), "folder": "new"}})
    assert [job.id for job in ledger.read_sweep(sweep).jobs] == ["id0", "id2", "other"]
    assert "lr_0.1-seed_1 was made with other defaults, and leaves the sweep" in caplog.text


def test_jobs_entered_by_several_processes_at_once_are_all_there(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from vitlab.sweeps import ledger\n"
    code += "for n in range(20): name = f'{sys.argv[2]}-{n}'; "
    code += "ledger.add_jobs(Path(sys.argv[1]), {name: {'folder': name, 'settings': {'n': name}}})"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    ledger.write_sweep(tmp_path, command="", varies=["n"], objectives={})
    line = [sys.executable, "-c", code, str(tmp_path)]
    started = [subprocess.Popen([*line, name], env=environment) for name in "abc"]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert {job.id for job in ledger.read_sweep(tmp_path).jobs} == {f"{a}-{n}" for a in "abc" for n in range(20)}


def test_a_job_keeps_the_folder_that_it_has(tmp_path: Path) -> None:
    ledger.write_sweep(tmp_path, command="", varies=["seed"], objectives={})
    config = {"seed": 1, "optimizer": {"lr": 0.1}}
    name, line = ledger.ledger_entry(tmp_path, config, ["seed=1", "logger=csv"])
    assert line == {"folder": f"seed_1-{name}", "settings": {"seed": "1"}}
    (tmp_path / f"otherwise-{name}").mkdir()
    (tmp_path / f"otherwise-{name}" / ledger.JOB).touch()
    assert ledger.ledger_entry(tmp_path, config, ["seed=1"])[1]["folder"] == f"otherwise-{name}", (
        "begun under another name"
    )
    ledger.add_jobs(tmp_path, {name: {"folder": "listed", "settings": {}}})
    assert ledger.ledger_entry(tmp_path, config, ["seed=1"]) == (name, {"folder": "listed", "settings": {"seed": "1"}})


def test_a_configuration_that_cant_be_resolved_has_a_folder_of_its_own(tmp_path: Path) -> None:
    one, two = (ledger.ledger_entry(tmp_path, "message", [f"seed={seed}"]) for seed in (1, 2))
    assert one[0] != two[0]
    assert one[1]["folder"] == one[0]


def test_a_sweep_is_found_by_its_name_or_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ledger.SWEEPS / "digits-lr"
    ledger.write_sweep(folder, command="", varies=[], objectives={})
    for given in ("digits-lr", str(folder), ledger.SWEEPS / "digits-lr"):
        assert ledger.find_sweep(given) == folder
    with pytest.raises(ledger.NoSweep, match=r"sweep=digits-rl is no sweep: .* did you mean 'digits-lr'\?"):
        ledger.find_sweep("digits-rl")
    with pytest.raises(ledger.NoSweep, match=r"there are digits-lr$"):
        ledger.read_sweep(tmp_path)


def test_a_cancelled_sweep_is_marked_by_whom_and_counts_what_it_stops(sweep: Path) -> None:
    assert ledger.cancelled_problem(sweep) is None
    with lock.run_lock(sweep / "lr_0.1-seed_1", "job"):
        assert ledger.cancel_sweep(ledger.read_sweep(sweep)) == 1
    problem = ledger.cancelled_problem(sweep)
    assert problem is not None
    assert problem.startswith("sweep=mine was cancelled (")
    assert problem.endswith("); the same command resumes it")


def test_a_command_reopens_a_cancelled_sweep_once_no_job_runs_and_unless_a_cluster_repeats_it(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ledger.reopen_problem(sweep) is None
    ledger.cancel_sweep(ledger.read_sweep(sweep))
    with lock.run_lock(sweep / "lr_0.1-seed_1", "job"):
        assert str(ledger.reopen_problem(sweep)).endswith("the same command resumes it once lr_0.1-seed_1 has ended")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert str(ledger.reopen_problem(sweep)).endswith("the same command resumes it, if a user gives it")
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert ledger.reopen_problem(sweep) is None
    hydra = {"sweep": {"dir": str(sweep)}, "sweeper": {}, "overrides": {"task": ["lr=0.1,0.2"]}}
    ledger.RecordSweep().on_multirun_start(OmegaConf.create({"objective": "val/loss", "hydra": hydra}))
    line = capsys.readouterr().err
    assert line.startswith("sweep=mine was cancelled (")
    assert line.endswith("): it is resumed\n")
    assert ledger.cancelled_problem(sweep) is None


@pytest.mark.parametrize("damage", [b"", b"\xff\x00", b"[]", b"{}", b'{"jobs": {"id0": {"fold', b'{"jobs": {"a": 1}}'])
def test_a_damaged_ledger_is_rebuilt_from_the_jobs_and_never_taken_for_an_empty_one(
    sweep: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in (0, 1):
        folder = sweep / f"lr_0.1-seed_{seed}"
        record(folder, status="finished", **{"val/loss": 0.5})
        write_config(folder, {"objective": "val/loss"})
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text(f"[lr=0.1, seed={seed}, sweep=mine]\n")
    (sweep / ledger.SWEEP).write_bytes(damage)
    found = ledger.read_sweep(sweep)
    assert [(job.choices, job.status) for job in found.jobs] == [({"seed": s}, "finished") for s in ("0", "1")]
    assert found.objectives == {"val/loss": "min"}
    assert "sweep.json is damaged: its 2 jobs were read from their folders" in caplog.text
    assert (sweep / ledger.SWEEP).read_bytes() == damage, "who only looks writes nothing"
    new = {"new": entry(lr="0.1", seed="2")}
    ledger.add_jobs(sweep, new)
    assert list(json.loads((sweep / ledger.SWEEP).read_text())["jobs"].values()) == [
        *(entry(lr="0.1", seed=seed) for seed in ("0", "1")),
        new["new"],
    ]
    (sweep / ledger.SWEEP).write_bytes(damage)
    ledger.write_sweep(sweep, command="again", varies=["seed"], objectives={"val/loss": "min"})
    found = ledger.read_sweep(sweep)
    assert (found.command, [job.status for job in found.jobs]) == ("again", ["finished"] * 2)


def test_hydras_callback_writes_down_what_varies_whatever_the_sweeper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["src/train.py", "-m", "seed=0,1"])
    hydra = {"sweeper": {"params": {"optimizer.lr": "1,2"}}, "sweep": {"dir": str(tmp_path / "a")}}
    config = {"objective": "val/loss", "hydra": {**hydra, "overrides": {"task": ["seed=0,1", "batch_size=8"]}}}
    ledger.RecordSweep().on_multirun_start(OmegaConf.create(config))
    head = json.loads((tmp_path / "a" / ledger.SWEEP).read_text())
    assert head["varies"] == ["optimizer.lr", "seed"]
    assert head["objectives"] == {"val/loss": "min"}
    assert head["command"] == "python src/train.py -m seed=0,1"
