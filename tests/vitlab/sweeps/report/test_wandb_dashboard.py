"""Panels of dashboards, made from sweeps that are made up; tests/test_sweep.py has a real one."""

from pathlib import Path
from typing import Any

import pytest

from vitlab.config.schema import Node
from vitlab.sweeps.ledger import Job, Sweep
from vitlab.sweeps.report import wandb_dashboard
from vitlab.sweeps.report.wandb_dashboard import WandbProject


def sweep(jobs: list[Job], **objectives: Any) -> Sweep:
    return Sweep(Path("s"), "s", "c", objectives, jobs)


def job(**choices: str) -> Job:
    return Job("-".join(choices.values()), Path("s"), choices, "waiting", 0, {}, {})


def test_runs_are_where_their_configuration_says() -> None:
    assert wandb_dashboard.wandb_project([{"logger": {"wandb": {"project": "p", "entity": "e"}}}]) == WandbProject(
        "p", "e"
    )
    assert wandb_dashboard.wandb_project([{"logger": {"wandb": {}, "csv": None}}]) == WandbProject("vitlab", None)
    untracked: list[list[Node]] = [[], [{"logger": {"csv": None}}], [{"logger": None}]]
    untracked.append([{"logger": {"wandb": {}}}, {"logger": {}}])
    for configs in untracked:
        with pytest.raises(ValueError, match="isn't tracked by wandb"):
            wandb_dashboard.wandb_project(configs)


def test_a_setting_over_decades_has_a_log_axis_and_no_other() -> None:
    jobs = [job(lr="1e-4", width="64", model="a"), job(lr="0.01", width="128", model="b")]
    found = wandb_dashboard.specification(
        wandb_dashboard.sweep_dashboard(sweep(jobs, seconds="min"), WandbProject("p", None))
    )
    first, scores, *_ = found["spec"]["section"]["panelBankConfig"]["sections"]
    columns = {column["displayName"]: column for column in first["panels"][0]["config"]["columns"]}
    assert list(columns) == ["lr", "width", "model", "_runtime", "best/val/acc", "test/acc"]
    assert [columns[name].get("log") for name in ("lr", "width", "model")] == [True, None, None]
    assert scores["panels"][0]["config"]["metrics"] == ["_runtime"], "seconds are wandb's own"


def test_a_sweep_that_has_not_begun_has_a_dashboard_and_it_is_the_same_again(tmp_path: Path) -> None:
    dashboard = wandb_dashboard.sweep_dashboard(sweep([], **{"val/loss": "min"}), WandbProject("p", "me"))
    wandb_dashboard.write_specification(dashboard, tmp_path / "dashboard.json")
    assert '"displayName": "sweep s"' in (tmp_path / "dashboard.json").read_text()
    (runset,) = wandb_dashboard.specification(dashboard)["spec"]["section"]["runSets"]
    assert runset["sort"]["keys"] == [{"key": {"section": "summary", "name": "best/val/loss"}, "ascending": True}]
    assert wandb_dashboard.specification(dashboard) == wandb_dashboard.specification(dashboard)


def test_a_run_without_a_wandb_run_has_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no wandb run"):
        wandb_dashboard.run_dashboard(tmp_path, {"name": "x"}, WandbProject("p", None))


def test_without_a_login_nothing_is_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(wandb.errors.UsageError, match="API key"):
        wandb_dashboard.save_dashboard(
            wandb_dashboard.sweep_dashboard(sweep([job(lr="1")], **{"val/acc": "max"}), WandbProject("p", "me"))
        )
