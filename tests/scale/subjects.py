"""What grows with the data, the runs and the sweeps, and the bounds of its cost.

A contender is a function of what `prepare` returns. The first is vitlab's; the others are its bounds: the least that
any program has to do, or another library's way to the same.
"""

import csv
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from benchmark.case import OURS
from scale import made_up
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.file_list import FileList
from vitlab.data.scan import find_bad_files
from vitlab.data.sets import fake, image_folder
from vitlab.data.sets.shards import shards
from vitlab.data.source import Source, Split
from vitlab.data.splitting import stratified_split
from vitlab.jobs.resume import resume_auto
from vitlab.runs import plots
from vitlab.runs.folder import RESULTS
from vitlab.runs.metrics_file import MetricsFile
from vitlab.sweeps import ledger
from vitlab.sweeps.report.page import write_report
from vitlab.sweeps.search.study import open_study
from vitlab.training.checkpoint_files import AtomicFiles

IMAGENET = {"ImageNet-1k": 1_281_167, "ImageNet-21k": 14_197_122}
JOBS = {"1,000 jobs": 1000, "10,000 jobs": 10_000}
TRIALS = {"1,000 trials": 1000, "10,000 trials": 10_000}
CHECKPOINTS = {"ViT-B/16 with AdamW": 1039}  # MB: three times 86.6 million numbers of four bytes
ROWS = {"300 epochs of ImageNet": 300 * 1_281_167 // 1024 // 10, "a million rows": 1_000_000}


class Subject(NamedTuple):
    """What is measured at `sizes`, each four times the one before, and extrapolated to `real` ones."""

    unit: str
    sizes: tuple[int, int, int]
    prepare: Callable[[Path, int], Any]
    contenders: Mapping[str, Callable[[Any], object]]
    real: Mapping[str, int]


def walk(folder: Path) -> list[str]:
    """Paths by `os.scandir` alone."""
    files, folders = list[str](), [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                (folders if entry.is_dir() else files).append(entry.path)
    return files


def list_by_vitlab(folder: Path) -> Any:
    return image_folder.list_images(folder, None)


def list_by_torchvision(folder: Path) -> Any:
    return make_dataset(str(folder), find_classes(str(folder))[1], IMG_EXTENSIONS)


def read_starts(source: Source) -> None:
    """Open each file, and read its first bytes."""
    for file in source.train.files or ():
        with open(file, "rb", buffering=0) as opened:  # noqa: PTH123 (as fast as it gets)
            opened.read(512)


def open_by_pillow(source: Source) -> None:
    for file in source.train.files or ():
        with Image.open(file) as image:
            _ = image.size


def split_labels(labels: Tensor) -> Any:
    return stratified_split(labels, 0.1, seed=0, knob="share")


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
    source = partial(fake.fake, samples=size, test_samples=10, size=32)
    data = DataModule(source=source, augment=Augment(), image_size=32, batch_size=64, seed=0)
    data.setup()
    return data


def open_shards(folder: Path) -> Source:
    return shards(data_dir=str(folder))


def open_tar(folder: Path) -> object:
    """Without timm's own index, which it keeps for archives above 10 MB."""
    return ReaderImageInTar(str(next(folder.glob("*.tar"))), cache_tarinfo=False)  # type: ignore[no-untyped-call]


def read_trials(folder: Path) -> object:
    """What each new trial of a search does first."""
    with open_study(f"sqlite:///{folder}/study.db", "scale") as study:
        return study.get_trials(deepcopy=False)


def read_database(folder: Path) -> object:
    with sqlite3.connect(folder / "study.db") as database:
        tables = ("trials", "trial_params", "trial_values")
        return [database.execute(f"select * from {table}").fetchall() for table in tables]


def save_checkpoint(tensors: dict[str, Any]) -> None:
    AtomicFiles().save_checkpoint(tensors, tensors["folder"] / "last.ckpt")


def save_by_torch(tensors: dict[str, Any]) -> None:
    torch.save(tensors, tensors["folder"] / "torch.ckpt")


def read_json_files(folder: Path) -> object:
    return [json.loads(file.read_text()) for file in folder.glob(f"*/{RESULTS}")]


def read_rows(file: Path) -> int:
    with file.open(newline="") as lines:
        return sum(1 for _ in csv.reader(lines))


def draw_curves(file: Path) -> None:
    plots.plot_curves(file, file.with_name("curves.png"), "")


def rewind(file: Path) -> object:
    metrics = MetricsFile(folder=str(file.parent))
    metrics.rewind(10**9)
    return metrics


def write_sweep_report(folder: Path) -> object:
    return write_report(ledger.read_sweep(folder), folder / "report")


LISTINGS = {"os.scandir": walk, "torchvision": list_by_torchvision, "timm": find_images_and_targets}
HEADERS = {"read 512 bytes": read_starts, "PIL": open_by_pillow}
IMAGES = {"the images": lambda size: torch.ones(size, 3, 32, 32, dtype=torch.uint8)}
JSON, CSV = {"json.loads": read_json_files}, {"csv.reader": read_rows}
# unit, smallest size, real sizes; made-up data; vitlab's function, and the bounds
TABLE: dict[str, tuple[str, int, dict[str, int], Any, Any, dict[str, Any]]] = {
    "listing": ("files", 2000, IMAGENET, made_up.write_tree, list_by_vitlab, LISTINGS),
    "headers": ("files", 500, IMAGENET, made_up.write_images, partial(find_bad_files, scan="headers"), HEADERS),
    "paths": ("files", 50_000, IMAGENET, made_up.named_split, read_paths, {}),
    "split": ("labels", 100_000, IMAGENET, made_up.random_labels, split_labels, {"torch.argsort": sort_labels}),
    "digest": ("files", 50_000, IMAGENET, made_up.named_split, Split.digest, {"blake2b": hash_paths}),
    "shards": ("images", 2000, IMAGENET, made_up.write_shard, open_shards, {"timm": open_tar}),
    "memory": ("images", 5000, {}, lambda folder, size: size, load_images, IMAGES),
    "status": ("jobs", 50, JOBS, made_up.write_jobs, ledger.read_sweep, JSON),
    "resume": ("runs", 50, JOBS, made_up.write_runs, partial(resume_auto, made_up.job_config(-1)), JSON),
    "report": ("jobs", 50, JOBS, made_up.write_jobs, write_sweep_report, {}),
    "study": ("trials", 20, TRIALS, made_up.write_study, read_trials, {"sqlite3": read_database}),
    "checkpoint": ("MB", 8, CHECKPOINTS, made_up.checkpoint, save_checkpoint, {"torch.save": save_by_torch}),
    "curves": ("rows", 2000, ROWS, made_up.write_rows, draw_curves, CSV),
    "rewind": ("rows", 2000, ROWS, made_up.write_rows, rewind, CSV),
}
SUBJECTS = {
    name: Subject(unit, (size, 4 * size, 16 * size), prepare, {OURS: ours, **bounds}, real)
    for name, (unit, size, real, prepare, ours, bounds) in TABLE.items()
}
