"""Memory as plan.py counts it next to what torch's CPU allocator hands out in a real training: docs/plan.md's table.

    OMP_NUM_THREADS=1 PYTHONPATH=src:tests python tests/plan_accuracy.py

The real training is Lightning's, of three steps, under torch's profiler.
"""

import gc
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from vitlab.cli import register
from vitlab.config.instantiate import build_object
from vitlab.config.schema import Node
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.fake import fake
from vitlab.diagnostics import plan
from vitlab.diagnostics.memory import count_step
from vitlab.jobs.compose import CONF, resolve_config
from vitlab.training import build

MODELS = {
    "digits' default, 64 images": ["batch_size=64"],
    "Ti/16, 8 images": ["model=vit_ti16", "data=fake", "batch_size=8"],
    "Ti/16, bf16-mixed, 16 images": ["model=vit_ti16", "data=fake", "batch_size=16", "trainer.precision=bf16-mixed"],
    "S/32, recomputed, 8 images": ["model=vit_s32", "data=fake", "batch_size=8", "model.activation_checkpointing=true"],
    "S/16, all but the head frozen, 4 images": [
        *("model=vit_s16", "data=fake", "batch_size=4", "classifier.freeze=all-but-head")
    ],
    "timm's ResNet-18, SGD, 8 images": [
        *("model=timm", "model.model_name=resnet18", "data=fake", "image_size=224", "batch_size=8", "optimizer=sgd")
    ],
}


def planned_configuration(overrides: list[str], folder: Path) -> Node:
    """The resolved configuration of train.py."""
    register.register_resolvers()
    register.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolve_config(compose("train", ["trainer.accelerator=cpu", "logger=csv", *overrides]), str(folder))
    assert isinstance(config, dict)
    return config


def profile_peak(run: Callable[[], object]) -> int:
    """Peak of the bytes that torch's CPU allocator hands out during a call."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would print to the console
    gc.collect()  # what is freed during the call would count
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    live = peak = 0
    results: Any = profiler.profiler
    for event in results.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def compare(overrides: list[str], folder: Path) -> tuple[int, int]:
    """Bytes of a device's step: counted, and measured in a training on made-up images."""
    config = planned_configuration(overrides, folder)
    data, _ = plan.planned_data(config, images=4 * config["batch_size"], classes=10)
    options: Any = {"precision": str(config["trainer"]["precision"]), "on_cpu": True}
    options["checkpointing"] = bool(config["model"].get("activation_checkpointing"))
    shape = (data.channels, *data.image_size)
    counted, _ = count_step(plan.planned_classifier(config, data), data.batch_size, shape, **options)

    size, images = config["image_size"], data.batch_size
    source = partial(fake, samples=8 * images, test_samples=10, size=size, channels=data.channels)
    sizes: Any = {"image_size": size, "batch_size": images, "seed": 0, "val_fraction": 0.5}  # steps of `images`
    real = DataModule(source=source, augment=build_object(config["data"]["augment"]), **sizes)
    real.setup()

    def train() -> None:
        module = plan.planned_classifier(config, data, "cpu")
        quiet = {"max_steps": 3, "limit_val_batches": 0, "enable_progress_bar": False, "enable_checkpointing": False}
        trainer = build.build_trainer({**config["trainer"], **quiet}, run_dir=folder)
        trainer.fit(module, real)

    return sum(counted.values()), profile_peak(train)


def main() -> None:
    print("| model | planned | measured | difference |\n|---|---|---|---|", file=sys.stdout)
    for name, overrides in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            counted, measured = compare(overrides, Path(folder))
        line = f"| {name} | {counted / 1e6:.1f} MB | {measured / 1e6:.1f} MB | {counted / measured - 1:+.1%} |"
        print(line, file=sys.stdout, flush=True)


if __name__ == "__main__":
    main()
