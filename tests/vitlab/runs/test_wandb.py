"""`metrics.csv` loses and repeats nothing; wandb runs are read back with wandb's own reader, without a network."""

import csv
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from PIL import Image

from conftest import Tracked
from vitlab.runs import folder
from vitlab.runs import wandb as runs_wandb
from vitlab.runs.metrics_file import MetricsFile
from vitlab.runs.wandb import (
    finish_wandb_run,
    is_logged_in,
    log_image,
    log_results,
    resend_rows,
    resume_logger,
    run_id,
    wandb_logger,
)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


# ------------------------------------------------------------------------------------------------------- logged in


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user who never logged in anywhere."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.mark.usefixtures("nobody")
def test_nobody_is_not_logged_in() -> None:
    assert not is_logged_in()


@pytest.mark.usefixtures("nobody")
def test_a_key_in_the_environment_is_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert is_logged_in()


@pytest.mark.parametrize("place", [".netrc", "elsewhere"])
def test_the_netrc_file_is_a_login_for_the_server_it_names(
    place: str, nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nobody / place).write_text("machine api.wandb.ai\n  login user\n  password " + "0" * 40 + "\n")
    if place == "elsewhere":
        assert not is_logged_in()
        monkeypatch.setenv("NETRC", str(nobody / place))
    assert is_logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not is_logged_in(), "that is another server"
    (nobody / place).write_text("machine wandb.example.org\n  login user\n  password " + "0" * 40 + "\n")
    assert is_logged_in()


def test_a_netrc_file_that_cannot_be_read_is_no_login(nobody: Path) -> None:
    (nobody / ".netrc").write_text("machine api.wandb.ai login\n\nthis is no netrc file")
    assert not is_logged_in()


# ----------------------------------------------------------------------------------------------------------- wandb


@pytest.fixture
def apart(nobody: Path) -> Iterator[Path]:
    """A place for wandb runs in this process; ends what a test left open."""
    yield nobody
    wandb.teardown()


def test_a_run_is_tracked_offline_with_all_that_was_logged(twins: list[Path], tracked: Tracked) -> None:
    [(summary, history)] = tracked(twins[0])
    assert (summary["state"], summary["exit_code"]) == ("finished", 0)
    assert summary["run_id"] == run_id(twins[0])
    assert summary["config"]["model"]["dim"] == 16
    assert summary["config"]["optimizer"]["_target_"] == "torch.optim.AdamW"
    assert summary["config"]["seed"] == 0
    assert "${" not in str(summary["config"])

    written = [{k: float(v) for k, v in row.items() if v} for row in rows(twins[0])]
    sent = [row for row in history if "trainer/global_step" in row and "curves.count" not in row]
    assert len(sent) == len(written)
    for one, two in zip(sent, written, strict=True):
        two["trainer/global_step"] = two.pop("step")
        assert {k: v for k, v in one.items() if not k.startswith("_")} == pytest.approx(two)
    names = {name for row in sent for name in row}
    assert {"lr/decay", "lr/no_decay", "train/gradient_norm", "train/loss", "train/images_per_second"} <= names
    assert {"val/acc", "val/acc5", "val/loss", "test/acc", "images", "epoch"} <= names
    validated = [row for row in sent if "val/acc" in row]
    assert all({"images", "trainer/global_step"} <= row.keys() for row in validated)
    assert len(validated) == 6


def test_the_picture_of_the_curves_is_tracked(twins: list[Path], tracked: Tracked) -> None:
    [(summary, _)] = tracked(twins[0])
    assert summary["summary"]["curves"]["count"] == 1
    [file] = (twins[0] / "wandb").glob("offline-run-*/files/media/images/curves*.png")
    assert file.read_bytes() == (twins[0] / "figures" / "curves.png").read_bytes()


@pytest.mark.long
def test_runs_one_after_the_other_in_one_process_are_two_each_with_its_true_end(apart: Path, tracked: Tracked) -> None:
    def run(name: str, value: float) -> None:
        with finish_wandb_run():
            logger = wandb_logger(run_dir=str(apart / name), name=name, tags=["x"], group="g")
            logger.log_metrics({"value": value}, step=1)
            assert value > 0, "a crash"

    run("one", 1.0)
    with pytest.raises(AssertionError, match="a crash"):
        run("two", -1.0)
    run("three", 3.0)
    ended = {name: tracked(apart / name) for name in ("one", "two", "three")}
    assert all(len(parts) == 1 for parts in ended.values())
    found = {name: parts[0][0] for name, parts in ended.items()}
    assert len({summary["run_id"] for summary in found.values()}) == 3
    assert {name: summary["exit_code"] for name, summary in found.items()} == {"one": 0, "two": 1, "three": 0}
    assert found["two"]["state"] != found["one"]["state"] == "finished"
    assert {name: summary["summary"]["value"] for name, summary in found.items()} == {"one": 1, "two": -1, "three": 3}
    assert {name: summary["name"] for name, summary in found.items()} == {name: name for name in found}


def test_a_sweeps_job_is_tagged_and_configured_with_its_choices(apart: Path, tracked: Tracked) -> None:
    choices = {"optimizer.lr": "1e-3", "seed": "0", "data.source.data_dir": "x" * 100}
    with finish_wandb_run():
        logger = wandb_logger(run_dir=str(apart), tags=["mine"], choices=choices, group="g")
        log_results([logger], {"val/acc": 0.5, "parameters": 9, "checkpoint": "x", "status": "pruned"})
    [(summary, _)] = tracked(apart)
    assert summary["tags"][-1] == summary["summary"]["status"] == "pruned"
    assert summary["tags"][:3] == ["mine", "optimizer.lr=1e-3", "seed=0"]
    assert len(summary["tags"][3]) == 64, "wandb takes no longer one"
    assert summary["config"]["choices"]["optimizer/lr"] == 0.001
    assert summary["config"]["choices"]["seed"] == 0
    assert summary["config"]["configuration"].startswith("optimizer.lr=1e-3 data.source.data_dir=xxx")
    assert (summary["summary"]["best/val/acc"], summary["summary"]["parameters"]) == (0.5, 9)


def test_a_run_that_is_resumed_has_its_id_and_its_earlier_numbers(apart: Path, tracked: Tracked) -> None:
    file = MetricsFile(folder=str(apart))
    for start in (1, 3):
        with finish_wandb_run():
            logger = wandb_logger(run_dir=str(apart))
            resend_rows(file.read_rows(), [file, logger])
            for step in (start, start + 1):
                file.log_metrics({"a": step / 2}, step=step)
                logger.log_metrics({"a": step / 2}, step=step)
    first, second = tracked(apart)
    assert first[0]["run_id"] == second[0]["run_id"] == run_id(apart)
    assert [(row["trainer/global_step"], row["a"]) for row in second[1]] == [(1, 0.5), (2, 1), (3, 1.5), (4, 2)]
    assert [row["trainer/global_step"] for row in first[1]] == [1, 2]


@pytest.mark.parametrize("why", ["running", "disabled", "csv", "no id"])
def test_a_run_that_runs_or_is_not_tracked_has_no_logger_to_resume(why: str, tmp_path: Path) -> None:
    node = {"_target_": "vitlab.runs.wandb.wandb_logger", "mode": "disabled" if why == "disabled" else "offline"}
    folder.write_config(tmp_path, {"logger": {"csv": None} if why == "csv" else {"csv": None, "wandb": node}})
    (tmp_path / "results.json").write_text(json.dumps({"status": "running" if why == "running" else "finished"}))
    if why != "no id":
        run_id(tmp_path)
    assert resume_logger(tmp_path) is None
    assert not [*tmp_path.glob("wandb/*run-*")]


def test_offline_it_says_so_in_one_line_and_how_to_send_the_run(
    apart: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO), finish_wandb_run():
        wandb_logger(run_dir=str(apart))
    reported = [record.getMessage() for record in caplog.records if record.name == "vitlab.runs.wandb"]
    assert reported == [
        f"wandb: offline; after `wandb login`, send this run with: wandb sync {apart}/wandb/offline-run-*"
    ]
    assert capfd.readouterr().err == "", "wandb itself is silent, and asks nothing"


def test_mode_disabled_tracks_nothing(apart: Path) -> None:
    with finish_wandb_run():
        wandb_logger(run_dir=str(apart), mode="disabled").log_metrics({"a": 1.0}, step=1)
    assert not list((apart / "wandb").glob("*run-*"))


@pytest.mark.long
def test_without_a_network_a_user_who_is_logged_in_trains_on_offline(
    apart: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tracked: Tracked
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(runs_wandb, "INIT_TIMEOUT", 2)
    with finish_wandb_run():
        wandb_logger(run_dir=str(apart)).log_metrics({"a": 1.0}, step=1)
    assert "wandb can't be reached" in caplog.text
    [(summary, _)] = tracked(apart)
    assert (summary["state"], summary["summary"]["a"], summary["run_id"]) == ("finished", 1, run_id(apart))


def test_pictures_go_to_the_loggers_that_can_show_them(apart: Path, tracked: Tracked) -> None:
    Image.new("RGB", (8, 4), "red").save(apart / "red.png")
    with finish_wandb_run():
        logger = wandb_logger(run_dir=str(apart))
        log_image([MetricsFile(folder=str(apart)), logger], "red", apart / "red.png")
    [(summary, _)] = tracked(apart)
    assert (summary["summary"]["red"]["width"], summary["summary"]["red"]["height"]) == (8, 4)


def test_a_block_without_a_run_ends_as_it_would_anyway() -> None:
    with finish_wandb_run():
        pass
    with pytest.raises(ZeroDivisionError), finish_wandb_run():
        _ = 1 / 0
