"""Panels of dashboards, made from sweeps that are made up; tests/test_sweep.py has a real one."""

import json
from pathlib import Path
from typing import Any

import pytest

from vitlab.config.schema import Node
from vitlab.runs.folder import CONFIG, write_config
from vitlab.sweeps.ledger import Job, Sweep
from vitlab.sweeps.report import wandb_dashboard

PROJECT = {"project": "p", "entity": "me"}


def sweep(jobs: list[Job], **objectives: Any) -> Sweep:
    return Sweep(Path("s"), "s", "c", objectives, jobs)


def job(**choices: str) -> Job:
    return Job("-".join(choices.values()), Path("s"), choices, "waiting", 0, {})


@pytest.mark.parametrize("place", ["", "job"])
def test_a_run_or_the_jobs_of_a_sweep_are_where_their_configuration_says(tmp_path: Path, place: str) -> None:
    (tmp_path / "report").mkdir()
    write_config(tmp_path / place, {"logger": {"wandb": {"project": "p", "entity": "e"}, "csv": None}})
    assert wandb_dashboard.wandb_project(tmp_path) == {"project": "p", "entity": "e"}
    write_config(tmp_path / place, {"logger": {"wandb": {}}})
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / CONFIG).write_bytes(b"\xff\x00")
    assert wandb_dashboard.wandb_project(tmp_path) == {"project": "vitlab", "entity": ""}


@pytest.mark.parametrize("logger", [{"csv": None}, None, {}])
def test_what_wandb_does_not_track_has_no_project(tmp_path: Path, logger: Node | None) -> None:
    with pytest.raises(ValueError, match="isn't tracked by wandb"):
        wandb_dashboard.wandb_project(tmp_path)
    write_config(tmp_path / "a", {"logger": {"wandb": {}}})
    write_config(tmp_path / "b", {"logger": logger})
    with pytest.raises(ValueError, match="isn't tracked by wandb"):
        wandb_dashboard.wandb_project(tmp_path)


def specification(dashboard: Any, folder: Path) -> Any:
    """A dashboard as its file has it."""
    wandb_dashboard.write_specification(dashboard, folder / wandb_dashboard.FILE)
    return json.loads((folder / wandb_dashboard.FILE).read_text())


def test_parallel_coordinates_have_settings_and_scores_by_the_names_of_wandb(tmp_path: Path) -> None:
    jobs = [job(lr="1e-4", model="a"), job(lr="0.01", model="b")]
    dashboard = wandb_dashboard.sweep_dashboard(sweep(jobs, seconds="min"), PROJECT)
    first, scores, *_ = specification(dashboard, tmp_path)["spec"]["section"]["panelBankConfig"]["sections"]
    columns = [column["displayName"] for column in first["panels"][0]["config"]["columns"]]
    assert columns == ["lr", "model", "_runtime", "best/val/acc", "test/acc"]
    assert scores["panels"][0]["config"]["metrics"] == ["_runtime"], "seconds are wandb's own"


def test_a_sweep_that_has_not_begun_has_a_dashboard_and_it_is_the_same_again(tmp_path: Path) -> None:
    dashboard = wandb_dashboard.sweep_dashboard(sweep([], **{"val/loss": "min"}), PROJECT)
    found = specification(dashboard, tmp_path)
    assert found["displayName"] == "sweep s"
    (runset,) = found["spec"]["section"]["runSets"]
    assert runset["sort"]["keys"] == [{"key": {"section": "summary", "name": "best/val/loss"}, "ascending": True}]
    assert specification(dashboard, tmp_path) == found


def test_a_run_without_a_wandb_run_has_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no wandb run"):
        wandb_dashboard.run_dashboard(tmp_path, PROJECT)


def test_without_a_login_nothing_is_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(wandb.errors.UsageError, match="API key"):
        wandb_dashboard.save_dashboard(
            wandb_dashboard.sweep_dashboard(sweep([job(lr="1")], **{"val/acc": "max"}), PROJECT)
        )
