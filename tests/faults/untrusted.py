"""Files from somebody else that would run code, call a server or write files."""

import os
import select
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from faults.damage import copied_run, killed_run
from faults.programs import run_command, text
from faults.runs import SMALL, assert_same_run, finish
from faults.trials import Trial, fault
from vitlab.config.schema import Node
from vitlab.runs.folder import CONFIG, OVERRIDES, write_config


@fault("a checkpoint that would run code: refused", 3)
def code(trial: Trial) -> None:
    expected, run, settings = killed_run(trial)
    flag = trial.folder / "executed"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(flag),))

    torch.save({"global_step": 10**6, "state_dict": Evil()}, run / "checkpoints" / "last.ckpt")
    assert_same_run(expected, finish(trial.folder, *settings))
    assert not flag.exists(), "it was executed"
    assert "last.ckpt is damaged" in text(trial.folder)


def set_value(config: Node, path: str, value: Any) -> None:
    """Set a value of nested dictionaries by its dotted path."""
    *outer, key = path.split(".")
    for part in outer:
        config = config.setdefault(part, {})
    config[key] = value


LOGGERS = "lightning.pytorch.loggers"
CALLBACKS = "lightning.pytorch.callbacks"


def hostile_settings(url: str, file: Path) -> list[tuple[str, Any]]:
    """Settings of allowed classes, and of Hydra's own, that would call `url`, write `file`, or reveal a key."""
    return [
        ("optimizer", {"_target_": "os.system", "command": f"touch {file}"}),
        ("callbacks.x", {"_target_": "subprocess.call", "args": f"touch {file}"}),
        ("data.augment", {"_target_": "torch.hub.load", "repo_or_dir": "x/y"}),
        ("model", {"_target_": "hydra.utils.get_method", "path": "os.system"}),
        ("logger.x", {"_target_": f"{LOGGERS}.WandbLogger", "settings": {"base_url": url}}),
        ("logger.x", {"_target_": "vitlab.runs.wandb.WandbLogger", "settings": {"base_url": url}}),
        ("logger.x", {"_target_": f"{LOGGERS}.MLFlowLogger", "tracking_uri": url}),
        ("logger.x", {"_target_": f"{LOGGERS}.CometLogger", "api_key": "k", "experiment_key": url}),
        ("logger.x", {"_target_": f"{LOGGERS}.TensorBoardLogger", "save_dir": f"{url}/x"}),
        ("logger.x", {"_target_": f"{LOGGERS}.CSVLogger", "save_dir": f"simplecache::{url}/x"}),
        ("callbacks.x", {"_target_": f"{CALLBACKS}.ModelCheckpoint", "dirpath": f"{url}/x"}),
        ("callbacks.best.dirpath", f"{url}/x"),
        ("callbacks.last.dirpath", f"{url}/x"),
        ("callbacks.x", {"_target_": f"{CALLBACKS}.SpikeDetection", "exclude_batches_path": str(file)}),
        ("callbacks.x", {"_target_": "vitlab.sweeps.search.pruning.Pruning", "storage": f"postgresql://{url[7:]}/x"}),
        ("trainer.profiler", {"_target_": "lightning.pytorch.profilers.XLAProfiler", "port": int(url[-5:].strip(":"))}),
        ("trainer.profiler", {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "dirpath": f"{url}/x"}),
        ("trainer.strategy", {"_target_": "lightning.pytorch.strategies.DeepSpeedStrategy", "config": str(file)}),
        ("trainer.default_root_dir", f"{url}/x"),
        ("hydra.searchpath", ["pkg://antigravity"]),
        ("hydra.job_logging.handlers.x", {"class": "logging.FileHandler", "filename": str(file)}),
        ("hydra.callbacks.x", {"_target_": "hydra.experimental.callbacks.PickleJobInfoCallback"}),
        ("hydra.sweeper.storage", f"postgresql://{url[7:]}/x"),
        ("hydra.run.dir", str(file)),
        ("name", "${oc.env:WANDB_API_KEY}"),
        ("logger.x", {"_target_": f"{LOGGERS}.CSVLogger", "save_dir": "${oc.env:AWS_SECRET_ACCESS_KEY}"}),
    ]


@fault("hostile settings, also of allowed classes, in overrides.yaml of a resumed run: refused", 28)
def hostile_overrides(trial: Trial) -> None:
    run = copied_run(trial, finished=False)

    def write(key: str, value: Any) -> list[str]:
        lines = yaml.safe_load((run / OVERRIDES).read_text())
        (run / OVERRIDES).write_text(yaml.safe_dump([*lines, f"++{key}={flow(value)}"]))
        return ["train", f"resume={run}"]

    assert_refused(trial, write)


@fault("hostile settings, also of allowed classes, in config.yaml of an evaluated run: refused or unused", 20)
def hostile_config(trial: Trial) -> None:
    run = copied_run(trial, finished=True)

    def write(key: str, value: Any) -> list[str]:
        config = yaml.safe_load((run / CONFIG).read_text())
        set_value(config, key, value)
        write_config(run, config)
        return ["evaluate", f"run={run}", "trainer.accelerator=cpu"]

    assert_refused(trial, write, unused=True)


@fault("hostile settings, also of allowed classes, in an experiment of a --config-dir: refused", 12)
def hostile_experiment(trial: Trial) -> None:
    def write(key: str, value: Any) -> list[str]:
        config: Node = {}
        set_value(config, key, value)
        file = trial.folder / "theirs" / "experiment" / "x.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(f"# @package _global_\n{yaml.safe_dump(config)}")
        return ["train", f"--config-dir={trial.folder / 'theirs'}", "experiment=x", *SMALL, "trainer.max_epochs=1"]

    assert_refused(trial, write)


def flow(value: Any) -> str:
    """A value as Hydra's grammar has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return str(value) if isinstance(value, int) or "${" in value else f"'{value}'"


def assert_refused(trial: Trial, write: Callable[[str, Any], list[str]], *, unused: bool = False) -> None:
    """A program that reads a hostile setting calls no server, writes no file, and reveals no key.

    It ends with status 2 before anything starts, or doesn't use the setting.
    """
    file = trial.folder / "written"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        settings = hostile_settings(f"http://127.0.0.1:{port}", file)
        key, value = settings[trial.number % len(settings)]
        line = write(key, value)
        before = {path for path in trial.folder.rglob("*") if path.is_file()}
        secrets = {"WANDB_API_KEY": "k" * 40, "AWS_SECRET_ACCESS_KEY": "s" * 40}
        output = run_command(trial.folder, *line, expect=None, **secrets)
        assert not select.select([server], [], [], 0.2)[0], f"{key}={value}: it called the server\n{output[-2000:]}"
    assert not file.exists(), f"{key}={value}: it was written\n{output[-2000:]}"
    assert "k" * 40 not in output, f"{key}={value}: a key is shown"
    assert "s" * 40 not in output, f"{key}={value}: a key is shown"
    if unused and output.endswith("status 0"):
        return
    assert output.endswith("status 2"), f"{key}={value}: not refused\n{output[-2000:]}"
    after = {path for path in trial.folder.rglob("*") if path.is_file()} - {trial.folder / "output.txt"}
    assert after <= before, f"{key}={value}: new files {after - before}"
