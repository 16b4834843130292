"""`RUN/report/index.html`: the curves, scores and errors of a run, one page that needs no network."""

import csv
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from vitlab.config.schema import Node
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import EvalBatch
from vitlab.evaluation import judgement
from vitlab.evaluation.judgement_pictures import CAPTIONS, dataset_images, draw_attention
from vitlab.runs import wandb
from vitlab.runs.folder import read_config
from vitlab.runs.html_page import Page

SCORES = {"acc": "accuracy", "acc5": "top-5 accuracy", "macro_f1": "mean F1", "loss": "loss", "brier": "Brier score"}
SCORES |= {"ece": "ECE", "adaptive_ece": "adaptive ECE"}
ATTENTION = "Attention of what the head reads, in the last block, mean over heads"
METHOD = (
    "Intervals: {level:.0%} {interval} bootstrap, {resamples:,} resamples of the images (seed {seed}); another seed of "
    "training isn't in them. Probabilities are the softmax of the logits, the loss is their cross-entropy. ECE has 15 "
    "bins of equal width, adaptive ECE 15 of equal numbers of images. Mean F1 is over the classes that have images."
)

log = logging.getLogger(__name__)


def write_report(folder: Path, judgements: list[Path], title: str = "") -> Path:
    """Write the page of a run, or of another folder, with the judgements in some folders."""
    page = Page(title or folder.resolve().name, "vitlab report")
    for caption, name in (("Curves", "curves"), (ATTENTION, "attention")):
        if (picture := folder.parent / "figures" / f"{name}.png").is_file():
            page.add_picture(picture, caption)
    for inner in judgements:
        add_judgement(page, inner, json.loads((inner / "judgement.json").read_text()))
    page.write(folder / "index.html")
    return folder / "index.html"


def write_run_report(run_dir: Path) -> Path:
    """Write the page of a run, with all its judgements."""
    folders = [file.parent for file in sorted((run_dir / "evaluation").glob("*/judgement.json"))]
    return write_report(run_dir / "report", folders, f"{read_config(run_dir)['name']}   {run_dir.resolve().name}")


@contextmanager
def warn_of_errors() -> Iterator[None]:
    """A report that fails is no failure of the run."""
    try:
        yield
    except Exception as error:
        log.warning("report: %s: %s; report=false leaves it out", type(error).__name__, error, exc_info=error)


def test(
    run: Trainer, module: Any, datamodule: DataModule, run_dir: Path, *, report: bool, **options: Any
) -> Tensor | None:
    """Test a trained network; returns the rows for its report, on the first rank, and draws its attention."""
    if not report:
        run.test(module, datamodule, verbose=False, **options)
        return None
    rows = judgement.collect_rows(run, module, datamodule, run_dir, **options)
    if rows is not None and not any(isinstance(p, DTensor) for p in module.network.parameters()):
        with warn_of_errors():
            (run_dir / "figures").mkdir(exist_ok=True)
            draw_validation_attention(module.network, datamodule, run_dir / "figures" / "attention.png")
    return rows


def draw_validation_attention(network: torch.nn.Module, datamodule: DataModule, file: Path) -> None:
    """Draw the attention to a few validation images, of networks that have such maps."""
    from vitlab.evaluation import attention

    split = datamodule.split("val" if datamodule.samples["val"] else "test")
    images = dataset_images(datamodule, "val" if datamodule.samples["val"] else "test", range(min(6, len(split))))
    device = next(network.parameters()).device
    batch = datamodule.on_after_batch_transfer(EvalBatch(images.to(device), split.labels[:6]), 0).images
    network.eval()
    with torch.no_grad():
        try:
            trace = attention.trace(network, batch)
        except ValueError as error:
            log.info("report: no attention: %s", error)
            return
    draw_attention(file, images, attention.head_attention(trace)[:, -1].mean(dim=1).cpu())


def write_training_report(run: Trainer, run_dir: Path, rows: Tensor, datamodule: DataModule) -> None:
    """Judge the test of a training, write the run's page, and log its pictures and classes."""
    with warn_of_errors():
        folder = run_dir / "evaluation" / "best-test"
        datamodule.tested = "test"
        judgement.write_judgement(folder, rows, datamodule, about={"split": "test", "checkpoint": "best"})
        log.info("report: %s", write_run_report(run_dir))
        for file in (*sorted(folder.glob("*.png")), run_dir / "figures" / "attention.png"):
            if file.is_file():
                wandb.log_image(run.loggers, file.stem, file)
        wandb.log_table(run.loggers, "classes", *read_classes(folder))


def add_judgement(page: Page, folder: Path, judgement: Node) -> None:
    page.add_section(folder.name)
    page.add_text(f"{judgement['images']:,} images of the split {judgement['split']}.")
    page.add_table(["score", *columns(judgement)], score_rows(judgement))
    page.add_text(METHOD.format(**judgement["bootstrap"]))
    for name, caption in CAPTIONS.items():
        if (folder / f"{name}.png").is_file():
            page.add_picture(folder / f"{name}.png", caption)
    if judgement["confused"]:
        page.add_table(["label", "prediction", "images"], [list(pair.values())[:3] for pair in judgement["confused"]])
    page.add_table(*read_classes(folder))


def read_classes(folder: Path) -> tuple[list[str], list[list[Any]]]:
    with (folder / "classes.csv").open(newline="") as lines:
        header, *rows = csv.reader(lines)
    return header, [[name, *(float(cell) if cell else None for cell in cells)] for name, *cells in rows]


def columns(judgement: Node) -> dict[str, Node]:
    """The variants of a judgement by name: its predictions, those of raw weights, and with a temperature."""
    names = {"raw": "raw weights", "tempered": f"T = {judgement.get('temperature') or 1:.4g}"}
    return {"value": judgement, **{text: judgement[key] for key, text in names.items() if key in judgement}}


def score_rows(judgement: Node) -> list[list[Any]]:
    rows = []
    for name, text in SCORES.items():
        variants = [({**own, **own["scores"]}, own["intervals"].get(name)) for own in columns(judgement).values()]
        if name in variants[0][0]:
            rows.append([text, *(format_interval(own[name], bounds, name) for own, bounds in variants)])
    return rows


def format_interval(value: float | None, bounds: list[float] | None, name: str) -> str | None:
    """`98.33 % [96.94, 99.44]`"""
    percent = name.startswith("acc")
    if value is None or (bounds and None in bounds):
        return None
    inside = [f"{100 * number:.2f}" if percent else f"{number:.4f}" for number in (value, *(bounds or ()))]
    return inside[0] + (" %" if percent else "") + (f"   [{inside[1]}, {inside[2]}]" if bounds else "")
