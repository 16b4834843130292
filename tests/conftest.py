"""What several tests need: configurations composed as the programs compose them, a Trainer, finished runs."""

import functools
import http.server
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from lightning import Trainer

import train
from vitlab.cli import checks, register
from vitlab.config.schema import Node
from vitlab.jobs.compose import CONF, compose, resolve_config

Configure = Callable[..., Node]


# Files whose tests take minutes together: begun first, so that no core waits for one of them at the end.
LONGEST_FILES = ("test_train.py", "test_checkpoints.py", "test_faults.py", "test_vit.py", "test_evaluate.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST_FILES)


@pytest.fixture(scope="session", autouse=True)
def _registered() -> None:
    register.register()


@pytest.fixture(scope="session", autouse=True)
def _no_hub() -> Iterator[None]:
    """No test, and no program that one starts, asks the network for weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that tests list is kept in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Undo the logging setup that Hydra makes for the process."""
    root = logging.getLogger()

    def handlers() -> list[logging.Handler]:  # but for pytest's own, which come and go by themselves
        return [handler for handler in root.handlers if "pytest" not in type(handler).__module__]

    before, level = handlers(), root.level
    yield
    root.setLevel(level)
    for handler in handlers():
        if handler not in before:
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def train_function() -> Callable[..., Node]:
    """The function that `python src/train.py` runs, with its signature."""
    return train.main.function


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """Overrides -> the resolved configuration of `conf/train.yaml` as plain data, unchecked."""
    return functools.partial(compose_train, tmp_path / "run")


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Configure:
    """The same for a module."""
    return functools.partial(compose_train, tmp_path_factory.mktemp("configured") / "run")


def compose_train(run: Path, *overrides: str) -> Any:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve_config(compose("train", list(overrides)), str(run))


@pytest.fixture
def found(configure: Configure) -> Callable[..., list[str]]:
    """Overrides -> the problems of what they compose."""
    return lambda *overrides: checks.problems(train.main, configure(*overrides))


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """A quiet Trainer on one CPU process, as `conf/trainer` sets it up; settings can be given."""

    def make(**knobs: Any) -> Trainer:
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False}
        quiet |= {"accelerator": "cpu", "devices": 1, "default_root_dir": str(tmp_path)}
        return Trainer(**{**quiet, **knobs})

    return make


@pytest.fixture
def slurm_programs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with programs of SLURM's names that do nothing, the only ones of these names in PATH."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("sbatch", "srun"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    others = [path for path in os.environ["PATH"].split(os.pathsep) if not Path(path, "srun").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), *others]))
    return folder


# ------------------------------------------------------------------------------------- the programs, as users run them

SRC = CONF.parent / "src"
Start = Callable[..., "subprocess.Popen[str]"]
Program = Callable[..., str]
Tracked = Callable[[Path], list[tuple[Any, list[Any]]]]
SMALL = [  # a ViT so small that loading torch takes longer than training it
    "model.dim=16",
    "model.depth=1",
    "model.heads=2",
    "data.val_fraction=0.1005",  # 145 images: a size that neither 2 nor 3 ranks divide
    "objective=val/acc",
    "schedule.warmup_steps=5",
    "trainer.max_epochs=6",
    "trainer.log_every_n_steps=5",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
]


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Overrides of `train.py`: digits, real but quick. 1,292 images to train on in 21 steps an epoch."""
    return SMALL


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts `python src/NAME.py ARGUMENTS` in a folder elsewhere, as a user without a wandb account would."""
    home = tmp_path_factory.mktemp("home")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "VITLAB_", "NETRC"))}
    environment = {**inherited, "HOME": str(home), "OMP_NUM_THREADS": "1"}

    def run(name: str, *arguments: str, cwd: Path) -> "subprocess.Popen[str]":
        line = [sys.executable, str(SRC / f"{name}.py"), *arguments]
        return subprocess.Popen(
            line,
            cwd=cwd,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return run


@pytest.fixture(scope="session")
def program(start: Start) -> Program:
    """Runs a program to its end and returns what it printed; `status` is the exit status that it must have."""

    def run(name: str, *arguments: str, cwd: Path, status: int = 0) -> str:
        output, _ = (process := start(name, *arguments, cwd=cwd)).communicate(timeout=400)
        assert process.returncode == status, output
        return output

    return run


@pytest.fixture(scope="session")
def twins(start: Start, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of two finished runs of the same command and seed, `a` and `b` in one folder."""
    folder = tmp_path_factory.mktemp("twins")
    processes = {name: start("train", *SMALL, f"hydra.run.dir={name}", cwd=folder) for name in "ab"}
    outputs = {name: process.communicate(timeout=400)[0] for name, process in processes.items()}
    for name, output in outputs.items():
        assert processes[name].returncode == 0, output
        (folder / f"{name}.txt").write_text(output)
    return [folder / name for name in processes]


@pytest.fixture(scope="session")
def tracked() -> Tracked:
    """Reads the parts of a folder's offline wandb run with wandb's own reader: (summary, rows), the oldest first."""

    def read(run: Path) -> list[tuple[Any, list[Any]]]:
        wandb = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
        parts = []
        for part in sorted((run / "wandb").glob("offline-run-*"), key=lambda part: part.stat().st_ctime):
            found = subprocess.run([*wandb, "--summary", str(part)], capture_output=True, text=True, check=True)
            records = subprocess.run([*wandb, str(part)], capture_output=True, text=True, check=True)
            lines = [json.loads(line) for line in records.stdout.splitlines()]
            history = [line["history"]["item"] for line in lines if line["type"] == "history"]
            parts.append((json.loads(found.stdout), history))
        return parts

    return read


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that keeps the messages of its console and of its network."""
    from selenium import webdriver

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no browser: pages are tested with Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


# ------------------------------------------------------------------------------------------- what is downloaded


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An address on this machine and the folder behind it."""
    folder = tmp_path / "server"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as it:
        threading.Thread(target=functools.partial(it.serve_forever, 0.02), daemon=True).start()
        yield f"http://127.0.0.1:{it.server_port}/", folder
        it.shutdown()


# ------------------------------------------------------------------------------------- data sets of the Hub's formats


@pytest.fixture(scope="session")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the Hub has them: digits as PNG in parquet files, 600 to train on in 3 files of 4 row groups, and
    200 to test on, with class labels.
    """
    import io

    import datasets
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    def png(image: Any) -> bytes:
        Image.fromarray((image * 15).astype(np.uint8)).save(buffer := io.BytesIO(), "PNG")
        return buffer.getvalue()

    digits = load_digits()
    label = datasets.ClassLabel(names=[f"digit {i}" for i in range(10)])
    features = datasets.Features({"image": datasets.Image(), "label": label, "id": datasets.Value("int32")})
    folder = tmp_path_factory.mktemp("hub") / "digits"
    (folder / "data").mkdir(parents=True)
    for name, start in (("train-0", 0), ("train-1", 200), ("train-2", 400), ("test-0", 600)):
        rows = range(start, start + 200)
        columns = {
            "image": [{"bytes": png(digits.images[i]), "path": f"{i}.png"} for i in rows],
            "label": [int(digits.target[i]) for i in rows],
            "id": list(rows),
        }
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(folder / "data" / f"{name}.parquet", batch_size=50)
    return folder


# ------------------------------------------------------------------------------------------------------ packed data


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real pictures by class (`image_fixtures.draw`)."""
    import image_fixtures

    return image_fixtures.draw(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="session")
def packed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Settings -> the folder that `drawn` was packed into, once for all tests: not to be changed."""
    import image_fixtures

    made: dict[str, Path] = {}

    def pack(**others: Any) -> Path:
        key = str(others)
        if key not in made:
            made[key] = image_fixtures.pack(drawn, tmp_path_factory.mktemp("shards") / "packed", **others)
        return made[key]

    return pack


# ------------------------------------------------------------------------------------------- networks to be exported

Exportable = Callable[..., Any]


@pytest.fixture
def exportable(tmp_path: Path) -> Exportable:
    """Arguments of `VisionTransformer` -> a tiny network, with random weights of ordinary size, as a run keeps it.

    `keep` is the checkpoint's name; with `network`, that one is kept instead of a new one; `averaged`: the checkpoint
    has weights that were averaged, and those that weren't (a tenth of them).
    """
    import torch
    import yaml

    from parity import fill
    from vitlab.evaluation.checkpoint import load_weights
    from vitlab.export.checkpoint import load_export_model
    from vitlab.models.vit import VisionTransformer

    def make(
        *,
        keep: str = "best",
        network: Any = None,
        averaged: bool = False,
        crop_fraction: float | None = None,
        loss: str = "softmax",
        **arguments: Any,
    ) -> Any:
        shape = {"image_size": 16, "patch_size": 4, "num_classes": 7, "dim": 32, "depth": 2, "heads": 2}
        arguments = shape | arguments if network is None else arguments
        if network is None:
            fill(network := VisionTransformer(**arguments))
        classes, channels = [f"kind {i}" for i in range(arguments["num_classes"])], arguments.get("in_channels", 3)
        node = {"_target_": "vitlab.models.vit.VisionTransformer", **arguments}
        data = {"_target_": "vitlab.data.datamodule.DataModule", "val_fraction": 0.1}
        config = {"name": "tiny", "image_size": arguments["image_size"], "model": node, "data": data}
        config = json.loads(json.dumps(config | {"classifier": {"loss": loss}}))
        numbers = {"train images": 90, "val images": 10, "test images": 20}
        state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
        checkpoint = {"state_dict": state, "global_step": 12, "epoch": 3}
        if averaged:
            checkpoint["current_model_state"] = {name: tensor / 10 for name, tensor in state.items()}
        checkpoint["vitlab"] = {
            "config": config,
            "data": {"data set": "shapes", "classes": classes, **numbers},
            "preprocessing": {
                "mean": [0.5, 0.4, 0.3, 0.2][:channels],
                "std": [0.2, 0.25, 0.3, 0.35][:channels],
                "interpolation": "bicubic",
                "crop_fraction": crop_fraction,
            },
        }
        run = tmp_path / "run"
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        torch.save(checkpoint, run / "checkpoints" / f"{keep}.ckpt")
        return load_export_model(load_weights(run, keep, None))

    return make
