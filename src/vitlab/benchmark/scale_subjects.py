"""What grows with the data, the runs and the sweeps, and the bounds of its cost.

A contender is a function of what `prepare` returns. The first is vitlab's; the others are its bounds: the least that
any program has to do, or another library's way to the same.
"""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from vitlab.benchmark import scale_data
from vitlab.benchmark.case import OURS
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.file_list import FileList
from vitlab.data.scan import find_bad_files
from vitlab.data.sets import fake, image_folder
from vitlab.data.source import Source, Split
from vitlab.data.splitting import stratified_split
from vitlab.jobs.resume import resume_auto
from vitlab.runs import plots
from vitlab.runs.folder import RESULTS
from vitlab.runs.metrics_file import MetricsFile
from vitlab.sweeps import ledger
from vitlab.sweeps.report.page import write_report

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


def sort_labels(labels: Tensor) -> object:
    return torch.argsort(labels + torch.rand(len(labels), dtype=torch.float64))


def hash_paths(split: Split) -> object:
    assert isinstance(split.files, FileList)
    return hashlib.blake2b(split.files.buffer).digest()


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


def read_json_files(folder: Path) -> object:
    return [json.loads(file.read_text()) for file in folder.glob(f"*/{RESULTS}")]


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
        prepare=scale_data.write_tree,
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
        prepare=scale_data.write_images,
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
        prepare=scale_data.named_split,
        contenders={OURS: read_paths},
        real=IMAGENET,
    ),
    "split": Subject(
        unit="labels",
        sizes=(100_000, 400_000, 1_600_000),
        prepare=scale_data.random_labels,
        contenders={
            OURS: lambda labels: stratified_split(labels, 0.1, seed=0, knob="share"),
            "torch.argsort": sort_labels,
        },
        real=IMAGENET,
    ),
    "digest": Subject(
        unit="files",
        sizes=(50_000, 200_000, 800_000),
        prepare=scale_data.named_split,
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
        prepare=scale_data.write_jobs,
        contenders={OURS: ledger.read_sweep, "json.loads": read_json_files},
        real=JOBS,
    ),
    "resume": Subject(
        unit="runs",
        sizes=(50, 200, 800),
        prepare=scale_data.write_runs,
        contenders={OURS: lambda folder: resume_auto(scale_data.job_config(-1), folder), "json.loads": read_json_files},
        real=JOBS,
    ),
    "report": Subject(
        unit="jobs",
        sizes=(50, 200, 800),
        prepare=scale_data.write_jobs,
        contenders={OURS: lambda folder: write_report(ledger.read_sweep(folder), folder / "report")},
        real=JOBS,
    ),
    "curves": Subject(
        unit="rows",
        sizes=(2000, 8000, 32_000),
        prepare=scale_data.write_rows,
        contenders={
            OURS: lambda file: plots.plot_curves(file, file.with_name("curves.png"), ""),
            "csv.reader": read_rows,
        },
        real=ROWS,
    ),
    "rewind": Subject(
        unit="rows",
        sizes=(2000, 8000, 32_000),
        prepare=scale_data.write_rows,
        contenders={OURS: rewind, "csv.reader": read_rows},
        real=ROWS,
    ),
}
