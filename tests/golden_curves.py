"""The losses of 200 steps of three small recipes, which a refactor must reproduce.

    python tests/golden_curves.py        train them and write golden_curves.json; its diff is part of the review

On the machine and with the versions that wrote the file, losses are equal to the bit. Elsewhere sums are rounded in
another order, and 200 steps enlarge that: there the first losses agree closely and the mean of the last ones roughly.
"""

import hashlib
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything

from vitlab.cli.register import register, register_resolvers
from vitlab.config.schema import Node
from vitlab.jobs.compose import CONF, compose, resolve_config
from vitlab.training import build

FILE = Path(__file__).with_suffix(".json")
STEPS = 200
LIBRARIES = ("torch", "torchvision", "lightning", "timm", "numpy")
AUGMENT = (
    "crop=inception",
    "auto_augment=timm_randaugment",
    "randaugment_std=0.5",
    "erasing=0.25",
    "erasing_mode=pixel",
)
RECIPES = {
    "digits": ["experiment=digits"],
    "deit3-like": [
        *("data=fake", "model=vit_mini", "optimizer=lamb", "schedule=timm_cosine", "callbacks=ema", "batch_size=16"),
        *("schedule.warmup_epochs=1", "model.init=deit", "model.layer_scale=1e-4", "model.drop_path_schedule=constant"),
        *("classifier.loss=bce", "classifier.target_threshold=0.0", "data.repeats=3", "data.augment.mixup=0.8"),
        *("data.augment.cutmix=1.0", *(f"data.augment.{setting}" for setting in AUGMENT)),
    ],
    "muon": [
        *("data=digits", "optimizer=muon", "schedule=warmup_stable_decay", "trainer.accumulate_grad_batches=2"),
        *("model.num_registers=2", "model.init=mae", "model.patch_dropout=0.25", "classifier.label_smoothing=0.1"),
        *("data.augment.auto_augment=trivialaugment", "data.augment.color_jitter=0.3"),
    ],
}
ALL = (
    "trainer.accelerator=cpu",
    f"trainer.max_steps={STEPS}",
    "trainer.max_epochs=-1",
    "logger=csv",
    "data.num_workers=0",
)


class Losses(Callback):
    """The loss of each micro-batch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


def environment() -> Node:
    """What the last bits of a sum depend on."""
    file = Path("/proc/cpuinfo")
    lines = (
        {line for line in file.read_text().splitlines() if line.startswith(("model name", "flags"))}
        if file.is_file()
        else set()
    )
    cpu = hashlib.blake2b("\n".join(sorted(lines)).encode(), digest_size=6).hexdigest()
    return {"cpu": cpu, "threads": torch.get_num_threads(), **{name: version(name) for name in LIBRARIES}}


def losses(name: str, folder: Path) -> list[float]:
    """Train a recipe."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        line = [*RECIPES[name], *ALL, "trainer.enable_progress_bar=false", "++trainer.limit_val_batches=0"]
        config = resolve_config(compose("train", line), str(folder))
    assert isinstance(config, dict), config
    seed_everything(0, verbose=False)
    data = build.build_data(config["data"])
    parts = {key: config[key] for key in ("weights", "optimizer", "schedule")}
    module = build.build_classifier(config["model"], data, config["classifier"], **parts)
    callbacks = {name: node for name, node in config["callbacks"].items() if name not in ("best", "last")}
    run = build.build_trainer(config["trainer"], run_dir=folder, logger=config["logger"], callbacks=callbacks)
    run.callbacks.append(recorder := Losses())  # type: ignore[attr-defined]
    run.fit(module, data)
    return recorder.values


def main() -> int:
    register()
    register_resolvers()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    curves = {}
    for name in RECIPES:
        with TemporaryDirectory() as folder:
            curves[name] = losses(name, Path(folder))
        print(name, curves[name][0], curves[name][-1])
    FILE.write_text(json.dumps({"environment": environment(), "losses": curves}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
