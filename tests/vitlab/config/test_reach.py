"""An allowed part calls no address and overwrites no file that somebody else's configuration names."""

from typing import Any

import pytest

from vitlab.config import allowlist, reach

LOGGERS = "lightning.pytorch.loggers"
CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"
CHOSEN = [
    *(f"{LOGGERS}.{kind}Logger" for kind in ("Wandb", "Comet", "MLFlow")),
    *(f"{LOGGERS}.wandb.WandbLogger", "vitlab.runs.wandb.WandbLogger"),
    "lightning.pytorch.strategies.DeepSpeedStrategy",
    "lightning.pytorch.callbacks.SpikeDetection",
    "lightning.pytorch.cli.SaveConfigCallback",
    "lightning.pytorch.demos.mnist_datamodule.MNISTDataModule",
    "lightning.pytorch.serve.ServableModuleValidator",
    "lightning.pytorch.profilers.XLAProfiler",
    "hydra.experimental.callbacks.PickleJobInfoCallback",
]


@pytest.fixture(autouse=True)
def _unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowlist, "ALLOWED", ())
    monkeypatch.setenv(allowlist.VARIABLE, "")


@pytest.mark.parametrize("target", CHOSEN)
def test_a_part_that_calls_a_server_or_writes_any_file_is_the_user_s_choice(target: str) -> None:
    (line,) = allowlist.problems({"logger": {"x": {"_target_": target, "settings": {"base_url": "http://there"}}}})
    assert line.startswith(f"logger.x._target_={target} is refused: ")
    assert "choose it on the command line; if you trust it, and who wrote this configuration, start with " in line


def test_a_command_line_chooses_such_a_part_and_no_other() -> None:
    allowlist.trust_named_packages([f"+logger.x._target_={LOGGERS}.WandbLogger"], None)
    assert (f"{LOGGERS}.WandbLogger",) == allowlist.ALLOWED
    assert allowlist.refusal(f"{LOGGERS}.WandbLogger") is None
    assert allowlist.refusal(f"{LOGGERS}.MLFlowLogger")


def test_every_part_that_is_listed_is_there() -> None:
    from vitlab.config import definitions

    for part in reach.CHOSEN_BY_NAME:
        assert definitions.is_module(part) or definitions.find(part), part


@pytest.mark.parametrize(
    ("target", "setting"),
    [
        (f"{LOGGERS}.TensorBoardLogger", "save_dir"),
        (f"{LOGGERS}.CSVLogger", "save_dir"),
        (CHECKPOINT, "dirpath"),
        ("vitlab.training.build.ModelCheckpoint", "dirpath"),
        ("lightning.pytorch.profilers.SimpleProfiler", "dirpath"),
        ("lightning.Trainer", "default_root_dir"),
    ],
)
@pytest.mark.parametrize("url", ["s3://theirs/x", "ftp://there/x", "simplecache::s3://theirs"])
def test_files_are_written_to_no_url(target: str, setting: str, url: str) -> None:
    (line,) = allowlist.problems({"a": {"_target_": target, setting: url}})
    assert line == f"a.{setting}={url} is refused: it is a URL; name a folder or file"
    assert allowlist.problems({"a": {"_target_": target, setting: "some/folder"}}) == []


def test_data_is_read_from_urls() -> None:
    assert allowlist.problems({"_target_": "vitlab.data.sets.shards.shards", "data_dir": "s3://a/b"}) == []


@pytest.mark.parametrize(
    ("node", "path"),
    [
        ({"launcher": {"address": "ray://there:10001"}}, "launcher.address"),
        ({"sweeper": {"storage": "postgresql://there/x"}}, "sweeper.storage"),
        ({"launcher": {"partition": "gpu\ntouch trap"}}, "launcher.partition"),
        ({"job": {"name": "x\ny"}}, "job.name"),
        (
            {"job_logging": {"handlers": {"file": {"filename": "/home/me/.profile"}}}},
            "job_logging.handlers.file.filename",
        ),
        ({"searchpath": ["pkg://antigravity"]}, "searchpath.0"),
    ],
)
def test_hydra_calls_no_server_and_writes_no_file_of_a_configuration_s_choice(node: Any, path: str) -> None:
    (line,) = allowlist.hydra_problems(node)
    assert line.startswith(f"hydra.{path} is refused: ")


@pytest.mark.parametrize(
    "node",
    [
        {"launcher": {"address": "local"}, "sweeper": {"storage": "sqlite:///a.db"}, "searchpath": ["file://conf"]},
        {"launcher": {"address": None}, "sweeper": {"storage": None}, "help": {"template": "a\nb"}},
        {"job_logging": {"handlers": {"file": {"filename": reach.LOG_FILES[0]}}}},
    ],
)
def test_what_stays_on_this_machine_passes(node: Any) -> None:
    assert allowlist.hydra_problems(node) == []


def test_a_command_line_chooses_an_address() -> None:
    lines = ["hydra.launcher.address=ray://mine:10001", "+hydra.sweeper.storage=postgresql://mine/x", "name=x"]
    allowlist.trust_named_packages(lines, None)
    node = {"launcher": {"address": "ray://mine:10001"}, "sweeper": {"storage": "postgresql://mine/x"}}
    assert allowlist.hydra_problems(node) == []


@pytest.mark.parametrize("target", ["vitlab.sweeps.search.pruning.Pruning", "vitlab.sweeps.search.optimize.Pruning"])
def test_no_callback_connects_to_a_database_that_a_configuration_names(target: str) -> None:
    node = {"callbacks": {"x": {"_target_": target, "storage": "postgresql://there/x"}}}
    (line,) = allowlist.database_problems(node)
    assert line.startswith("callbacks.x.storage is refused: it names a server")
    node["callbacks"]["x"]["storage"] = "sqlite:///runs/study.db"
    assert allowlist.database_problems(node) == []
