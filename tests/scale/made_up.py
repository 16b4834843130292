"""Make up data of a size for the scale benchmark: trees of files, labels, runs, sweeps and logs."""

import csv
import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import create_trial
from PIL import Image
from torch import Tensor

from vitlab.data.packing import manifest
from vitlab.data.sets import image_folder
from vitlab.data.source import IMAGENET_MEAN, IMAGENET_STD, Source, Split
from vitlab.runs.folder import CONFIG, RESULTS
from vitlab.storage.atomic import file_sha256
from vitlab.sweeps import ledger
from vitlab.sweeps.search.study import open_study

CLASSES = 100  # folders of a tree


def write_tree(folder: Path, size: int, content: bytes = b"") -> Path:
    """Write `size` files in a folder per class."""
    for number in range(size):
        file = folder / f"class_{number % CLASSES:03}" / f"{number:08}.jpg"
        if number < CLASSES:
            file.parent.mkdir()
        file.write_bytes(content)
    return folder


def write_images(folder: Path, size: int) -> Source:
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(image := io.BytesIO(), "jpeg")
    _, files, labels, *_ = image_folder.list_images(write_tree(folder, size, image.getvalue()), None)
    split = Split(None, labels, files)
    names = tuple(str(number) for number in range(CLASSES))
    return Source("scale", names, 3, IMAGENET_MEAN, IMAGENET_STD, None, split, split.subset(torch.arange(1)))


def random_labels(folder: Path, size: int) -> Tensor:
    return torch.randint(CLASSES, (size,), generator=torch.Generator().manual_seed(0))


def named_split(folder: Path, size: int) -> Split:
    labels = random_labels(folder, size)
    names = [f"/data/train/n{label:08}/n{label:08}_{i}.JPEG" for i, label in enumerate(labels.tolist())]
    return Split(None, labels, names)


def write_shard(folder: Path, size: int) -> Path:
    """Write a packed set of one shard."""
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(image := io.BytesIO(), "jpeg")
    content, table = image.getvalue(), np.zeros(size, manifest.ENTRY)
    with tarfile.open(file := folder / "train-000.tar", "w") as tar:
        for number in range(size):
            info = tarfile.TarInfo(f"{number % CLASSES:03}/{number:08}.jpg")
            info.size = len(content)
            offset = tar.offset + tarfile.BLOCKSIZE
            tar.addfile(info, io.BytesIO(content))
            table[number] = (0, offset, info.size, zlib.crc32(content), number % CLASSES, number, 0)
    entry = {"file": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)}
    facts: dict[str, Any] = {"name": "scale", "broken": 0, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    names = [str(number) for number in range(CLASSES)]
    splits = {"train": [(table, entry)], "test": [(table[:1], entry)]}
    manifest.write_manifest(folder, splits, classes=names, **facts)
    return folder


def write_study(folder: Path, size: int) -> Path:
    """Write a study of finished trials of four parameters."""
    distributions: dict[str, BaseDistribution] = {f"parameter_{i}": FloatDistribution(0.0, 1.0) for i in range(4)}
    with open_study(f"sqlite:///{folder}/study.db", "scale", ["min"]) as study:
        study.add_trials(
            create_trial(params=dict.fromkeys(distributions, n / size), distributions=distributions, value=n / size)
            for n in range(size)
        )
    return folder


def checkpoint(folder: Path, size: int) -> dict[str, Any]:
    """Tensors of `size` megabytes, and the folder to write to."""
    return {"folder": folder, **{f"tensor_{i}": torch.rand(250_000) for i in range(size)}}


def job_config(number: int) -> dict[str, Any]:
    """A configuration as long as that of a run."""
    config: dict[str, Any] = {"name": "scale", "seed": number, "objective": "val/loss", "resume": None}
    for group in ("data", "model", "trainer", "optimizer", "schedule", "callbacks"):
        config[group] = {"_target_": "vitlab.training.schedules.constant", **{f"key_{i}": i for i in range(20)}}
    return config


def write_run(folder: Path, number: int) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / CONFIG).write_text(yaml.safe_dump(job_config(number)))
    record = {"status": "finished", "seconds": 60.0, "val/loss": 1 / (1 + number), "val/acc": 0.5, "steps": 100}
    (folder / RESULTS).write_text(json.dumps(record))


def write_runs(folder: Path, size: int) -> Path:
    for number in range(size):
        write_run(folder / f"run_{number}", number)
    return folder


def write_jobs(folder: Path, size: int) -> Path:
    """A sweep of finished jobs, over two settings and ten seeds, each with a curve of fifty points."""
    varies = ["optimizer.lr", "model.depth", "seed"]
    ledger.write_sweep(folder, command="", varies=varies, objectives={"val/loss": "min"})
    rows = "".join(f"{10 * i},{i},{640 * i},{1 / (i + 1)},{1 / (i + 2)}\n" for i in range(50))
    entries: dict[str, Any] = {}
    for number in range(size):
        settings = {"optimizer.lr": f"{10 ** -(1 + number // 10 % 10 / 2):.3g}", "model.depth": str(2 + number // 100)}
        entries[f"{number:012}"] = {"folder": f"job_{number}", "settings": settings | {"seed": str(number % 10)}}
        write_run(folder / f"job_{number}", number)
        (folder / f"job_{number}" / "metrics.csv").write_text(f"step,epoch,images,train/loss,val/loss\n{rows}")
    ledger.add_jobs(folder, entries)
    return folder


def write_rows(folder: Path, size: int) -> Path:
    """A `metrics.csv` with a row for each tenth step."""
    names = ["step", "epoch", "images", "train/loss", "train/images_per_second", "lr/decay", "lr/no_decay", "val/loss"]
    with (folder / "metrics.csv").open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(names)
        writer.writerows([10 * i, i // 100, 640 * i, 1 / (i + 1), 1000.0, 1e-3, 1e-3, ""] for i in range(size))
    return folder / "metrics.csv"
