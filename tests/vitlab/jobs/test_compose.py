"""Composing a program's configuration outside a job, and resolving it to plain data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from conftest import Configure
from vitlab.cli import arguments
from vitlab.jobs import compose


def test_settings_that_others_refer_to_are_named_if_they_are_missing() -> None:
    cfg = OmegaConf.create({"run": "???", "format": "???", "out": "${run}/export/${format}", "run_dir": "???"})
    assert compose.resolve_config(cfg, "log") == "run and format not set, and without a default: add KEY=VALUE"


def test_composing_a_configuration_imports_nothing_heavy() -> None:
    program = f"""
import json, sys, hydra
from vitlab.cli import command, register
from vitlab.jobs.compose import resolve_config
register.register()
with hydra.initialize_config_dir({str(compose.CONF)!r}, version_base="1.3"):
    config = resolve_config(hydra.compose("train", ["model=vit_b16"]), "run")
    assert config["model"]["qkv_bias"] is True
print(json.dumps(sorted(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": str(compose.CONF.parent / "src")}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    loaded = set(json.loads(ended.stdout))
    assert "vitlab.cli.command" in loaded
    assert not loaded & {"torch", "torchvision", "lightning", "torchmetrics", "timm", "wandb", "sklearn", "matplotlib"}


def test_the_same_overrides_are_composed_once_within_a_check(tmp_path: Path) -> None:
    flags, _ = arguments.parse_arguments([])
    with compose.initialize_hydra(flags):
        once = compose.compose("train", ["seed=3"])
        assert compose.compose("train", ["seed=3"]) is once
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "mine.yaml").write_text("defaults: [vit_mini]")
        compose.add_searchpath([f"file://{tmp_path}"])
        assert compose.compose("train", ["model=mine"]).model.dim == once.model.dim


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"a": "${b}"}, "Interpolation key 'b' not found"),
        ({"a": {"b": "${a}"}}, "Interpolation to parent node detected"),
    ],
)
def test_what_cant_be_resolved_is_a_message(node: dict[str, object], message: str) -> None:
    found = compose.resolve_config(OmegaConf.create(node), "run")
    assert isinstance(found, str)
    assert message in found


def test_folders_are_taken_from_where_the_command_was_called_and_urls_are_left(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert configure("data_dir=x")["data_dir"] == str(tmp_path / "x")
    assert configure("data_dir=s3://x/y")["data_dir"] == "s3://x/y"


def test_a_composer_outside_of_a_command_looks_into_conf() -> None:
    with compose.ensure_hydra(), compose.ensure_hydra():
        assert compose.compose("train", []).seed == 0


def test_a_runs_configuration_makes_it_again_in_another_folder(tmp_path: Path) -> None:
    before, now = str(tmp_path / "before"), str(tmp_path / "now")
    config = {
        "run_dir": before,
        "data_dir": before + "-data",
        "callbacks": {"best": {"dirpath": f"{before}/checkpoints"}},
    }
    again = compose.resolve_config(OmegaConf.create(config), now)
    assert isinstance(again, dict)
    assert again["run_dir"] == now
    assert again["callbacks"]["best"]["dirpath"] == f"{now}/checkpoints"
    assert again["data_dir"] == before + "-data"
