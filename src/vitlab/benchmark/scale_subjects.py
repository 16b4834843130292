"""What grows with the data, the runs and the sweeps: made-up data of a size, and what is measured on it.

A contender is a function of what `prepare` returns. The first is vitlab's; the others are its bounds: the least that
any program has to do, or another library's way to the same.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from vitlab.benchmark.case import OURS
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.scan import find_bad_files
from vitlab.data.sets import fake, image_folder
from vitlab.data.source import IMAGENET_MEAN, IMAGENET_STD, Source, Split
from vitlab.data.splitting import stratified_split
from vitlab.jobs.resume import resume_auto
from vitlab.runs import plots
from vitlab.runs.folder import CONFIG, RESULTS
from vitlab.runs.metrics_file import MetricsFile
from vitlab.sweeps import ledger
from vitlab.sweeps.report.page import write_report

CLASSES = 100  # folders of a tree
IMAGENET = {"ImageNet-1k": 1_281_167, "ImageNet-21k": 14_197_122}
JOBS = {"1,000 jobs": 1000, "10,000 jobs": 10_000}
ROWS = {"300 epochs of ImageNet": 300 * 1_281_167 // 1024 // 10, "a million rows": 1_000_000}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """real: the sizes to extrapolate to."""

    unit: str
    sizes: tuple[int, int, int]
    prepare: Callable[[Path, int], Any]
    contenders: Mapping[str, Callable[[Any], object]]
    real: Mapping[str, int] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------------- files


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


def walk(folder: Path) -> list[str]:
    """Paths by `os.scandir` alone."""
    files, folders = list[str](), [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                (folders if entry.is_dir() else files).append(entry.path)
    return files


def list_by_torchvision(folder: Path) -> Any:
    return make_dataset(str(folder), find_classes(str(folder))[1], IMG_EXTENSIONS)


def list_by_timm(folder: Path) -> Any:
    return find_images_and_targets(str(folder))


def read_starts(source: Source) -> None:
    """Open each file, and read its first bytes."""
    for file in source.train.files or ():
        with open(file, "rb", buffering=0) as opened:  # noqa: PTH123 (as fast as it gets)
            opened.read(512)


def open_by_pillow(source: Source) -> None:
    for file in source.train.files or ():
        with Image.open(file) as image:
            _ = image.size


# ------------------------------------------------------------------------------------------------------------ labels


def random_labels(folder: Path, size: int) -> Tensor:
    return torch.randint(CLASSES, (size,), generator=torch.Generator().manual_seed(0))


def named_split(folder: Path, size: int) -> Split:
    labels = random_labels(folder, size)
    return Split(
        None, labels, [f"/data/train/n{label:08}/n{label:08}_{i}.JPEG" for i, label in enumerate(labels.tolist())]
    )


def sort_labels(labels: Tensor) -> object:
    return torch.argsort(labels + torch.rand(len(labels), dtype=torch.float64))


def hash_paths(split: Split) -> object:
    return hashlib.blake2b("\0".join(split.files or ()).encode()).digest()


def read_paths(split: Split) -> object:
    """Look at each path, as a loading process does in an epoch."""
    files = split.files or ()
    return sum(len(files[index]) for index in range(len(files)))


def load_images(size: int) -> object:
    data = DataModule(
        source=lambda: fake.fake(samples=size, test_samples=10, size=32),
        augment=Augment(),
        image_size=32,
        batch_size=64,
        seed=0,
    )
    data.setup()
    return data


# -------------------------------------------------------------------------------------------------------- runs, jobs


def job_config(number: int) -> dict[str, Any]:
    """A configuration as long as that of a run."""
    config: dict[str, Any] = {"name": "scale", "seed": number, "objective": "val/loss", "resume": None}
    for group in ("data", "model", "trainer", "optimizer", "schedule", "callbacks"):
        config[group] = {"_target_": "vitlab.training.schedules.constant", **{f"key_{i}": i for i in range(20)}}
    return config


def write_run(folder: Path, number: int, **results: Any) -> None:
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(yaml.safe_dump(job_config(number)))
    record = {
        "status": "finished",
        "seconds": 60.0,
        "val/loss": 1 / (1 + number),
        "val/acc": 0.5,
        "steps": 100,
        **results,
    }
    (folder / RESULTS).write_text(json.dumps(record))


def write_runs(folder: Path, size: int) -> Path:
    for number in range(size):
        write_run(folder / f"run_{number}", number)
    return folder


def write_jobs(folder: Path, size: int) -> Path:
    """A sweep of finished jobs, over two settings and ten seeds, each with a curve of fifty points."""
    ledger.write_sweep(
        folder, command="", varies=["optimizer.lr", "model.depth", "seed"], objectives={"val/loss": "min"}
    )
    rows = "".join(f"{10 * i},{i},{640 * i},{1 / (i + 1)},{1 / (i + 2)}\n" for i in range(50))
    entries: dict[str, Any] = {}
    for number in range(size):
        settings = {"optimizer.lr": f"{10 ** -(1 + number // 10 % 10 / 2):.3g}", "model.depth": str(2 + number // 100)}
        entries[f"{number:012}"] = {"folder": f"job_{number}", "settings": settings | {"seed": str(number % 10)}}
        write_run(folder / f"job_{number}", number)
        (folder / f"job_{number}" / "metrics.csv").write_text(f"step,epoch,images,train/loss,val/loss\n{rows}")
    ledger.add_jobs(folder, entries)
    return folder


def read_json_files(folder: Path) -> object:
    return [json.loads(file.read_text()) for file in folder.glob(f"*/{RESULTS}")]


def write_rows(folder: Path, size: int) -> Path:
    """A `metrics.csv` with a row for each tenth step."""
    names = ["step", "epoch", "images", "train/loss", "train/images_per_second", "lr/decay", "lr/no_decay", "val/loss"]
    with (folder / "metrics.csv").open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(names)
        writer.writerows([10 * i, i // 100, 640 * i, 1 / (i + 1), 1000.0, 1e-3, 1e-3, ""] for i in range(size))
    return folder / "metrics.csv"


def read_rows(file: Path) -> int:
    with file.open(newline="") as lines:
        return sum(1 for _ in csv.reader(lines))


def rewind(file: Path) -> object:
    metrics = MetricsFile(folder=str(file.parent))
    metrics.rewind(10**9)
    return metrics


SUBJECTS: dict[str, Subject] = {
    "listing": Subject(
        unit="files",
        sizes=(2000, 8000, 32_000),
        prepare=write_tree,
        contenders={
            OURS: lambda folder: image_folder.list_images(folder, None),
            "os.scandir": walk,
            "torchvision": list_by_torchvision,
            "timm": list_by_timm,
        },
        real=IMAGENET,
    ),
    "headers": Subject(
        unit="files",
        sizes=(500, 2000, 8000),
        prepare=write_images,
        contenders={
            OURS: lambda source: find_bad_files(source, "headers"),
            "read 512 bytes": read_starts,
            "PIL": open_by_pillow,
        },
        real=IMAGENET,
    ),
    "paths": Subject(
        unit="files",
        sizes=(50_000, 200_000, 800_000),
        prepare=named_split,
        contenders={OURS: read_paths},
        real=IMAGENET,
    ),
    "split": Subject(
        unit="labels",
        sizes=(100_000, 400_000, 1_600_000),
        prepare=random_labels,
        contenders={
            OURS: lambda labels: stratified_split(labels, 0.1, seed=0, knob="share"),
            "torch.argsort": sort_labels,
        },
        real=IMAGENET,
    ),
    "digest": Subject(
        unit="files",
        sizes=(50_000, 200_000, 800_000),
        prepare=named_split,
        contenders={OURS: lambda split: split.digest(), "blake2b": hash_paths},
        real=IMAGENET,
    ),
    "memory": Subject(
        unit="images",
        sizes=(5000, 20_000, 80_000),
        prepare=lambda folder, size: size,
        contenders={
            OURS: load_images,
            "the images": lambda size: torch.ones(size, 3, 32, 32, dtype=torch.uint8),
        },
    ),
    "status": Subject(
        unit="jobs",
        sizes=(50, 200, 800),
        prepare=write_jobs,
        contenders={OURS: ledger.read_sweep, "json.loads": read_json_files},
        real=JOBS,
    ),
    "resume": Subject(
        unit="runs",
        sizes=(50, 200, 800),
        prepare=write_runs,
        contenders={OURS: lambda folder: resume_auto(job_config(-1), folder), "json.loads": read_json_files},
        real=JOBS,
    ),
    "report": Subject(
        unit="jobs",
        sizes=(50, 200, 800),
        prepare=write_jobs,
        contenders={OURS: lambda folder: write_report(ledger.read_sweep(folder), folder / "report")},
        real=JOBS,
    ),
    "curves": Subject(
        unit="rows",
        sizes=(2000, 8000, 32_000),
        prepare=write_rows,
        contenders={
            OURS: lambda file: plots.plot_curves(file, file.with_name("curves.png"), ""),
            "csv.reader": read_rows,
        },
        real=ROWS,
    ),
    "rewind": Subject(
        unit="rows",
        sizes=(2000, 8000, 32_000),
        prepare=write_rows,
        contenders={OURS: rewind, "csv.reader": read_rows},
        real=ROWS,
    ),
}
