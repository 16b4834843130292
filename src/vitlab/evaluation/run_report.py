"""`RUN/report/index.html`: the curves, scores, errors and attention of a run, one page that needs no network."""

import json
import logging
from contextlib import suppress
from pathlib import Path

import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from vitlab.config.schema import Node
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import EvalBatch
from vitlab.data.scan import SplitName
from vitlab.evaluation import judgement_pictures
from vitlab.evaluation.judgement import write_judgement
from vitlab.evaluation.trained_model import TEMPERATURE
from vitlab.runs import wandb
from vitlab.runs.folder import read_config
from vitlab.runs.html_page import Page

FIGURES = {"curves": "Curves", "attention": "Attention of what the head reads, in the last block, mean over heads"}
METHOD = (
    "Intervals: {}, without the variance between training seeds. Probabilities are the softmax of the logits, the loss "
    "is their cross-entropy. ECE has 15 bins of equal width, adaptive ECE 15 of equal numbers of images. Mean F1 is "
    "over the classes that have images."
)

log = logging.getLogger(__name__)


def write_report(folder: Path, judgements: list[Path], title: str = "") -> Path:
    """Write the page of a run, or of another folder, with the judgements in some folders."""
    page = Page(title or folder.resolve().name, "vitlab report")
    for name, caption in FIGURES.items():
        if (picture := folder.parent / "figures" / f"{name}.png").is_file():
            page.add_picture(picture, caption)
    for inner in judgements:
        judgement = json.loads((inner / "judgement.json").read_text())
        page.add_section(inner.name)
        page.add_text(f"{judgement['images']:,} images of the split {judgement['split']}.")
        scores = judgement["scores"]
        rows = [[key, *(format_score(key, own[key]) for own in scores.values())] for key in scores["predictions"]]
        page.add_table(["score", *scores], rows)
        page.add_text(METHOD.format(judgement["bootstrap"]))
        for name, caption in judgement_pictures.CAPTIONS.items():
            if (inner / f"{name}.png").is_file():
                page.add_picture(inner / f"{name}.png", caption)
        if judgement.get("why"):
            page.add_text(f"Explain the most confident errors: {judgement['why']}")
        if judgement["confused"]:
            page.add_table(["label", "prediction", "images"], [pair[:3] for pair in judgement["confused"]])
        page.add_table(judgement["classes"][0], judgement["classes"][1:])
    page.write(folder / "index.html")
    return folder / "index.html"


def write_run_report(run_dir: Path) -> Path:
    """Write the page of a run, with all its judgements."""
    folders = [file.parent for file in sorted((run_dir / "evaluation").glob("*/judgement.json"))]
    return write_report(run_dir / "report", folders, f"{read_config(run_dir).get('name')}   {run_dir.resolve().name}")


def format_score(name: str, values: list[float]) -> str | None:
    """`98.33 % [96.94, 99.44]`, of a value and the ends of its interval; None if a number is missing."""
    if None in values:
        return None
    value, *ends = [f"{100 * number:.2f}" if name.startswith("acc") else f"{number:.4f}" for number in values]
    return value + " %" * name.startswith("acc") + (f"   [{', '.join(ends)}]" if ends else "")


def forget_former_best(run_dir: Path) -> None:
    """Remove the temperature and the judgements of a checkpoint that was the best before the run was resumed."""
    stale = (file for name in ("judgement.json", "corruptions.*") for file in run_dir.glob(f"evaluation/best-*/{name}"))
    for file in (run_dir / TEMPERATURE, *stale):
        file.unlink(missing_ok=True)


def write_training_report(run: Trainer, run_dir: Path, rows: Tensor, network: nn.Module, data: DataModule) -> None:
    """Judge the test of a training, write the run's page, and log its pictures and classes.

    An error is a warning: the run has its results.
    """
    folder, attention = run_dir / "evaluation" / "best-test", run_dir / "figures" / "attention.png"
    try:
        about = {"run": str(run_dir), "split": "test", "checkpoint": "best"}
        judgement = write_judgement(folder, rows, data, about=about, network=network)
        sharded = any(isinstance(p, DTensor) for p in network.parameters())  # which all ranks compute together
        with suppress(ValueError):  # of a network without attention maps
            if not sharded and not any(m._compiled_call_impl for m in network.modules()):
                draw_attention(network, data, attention)
        log.info("report: %s", write_run_report(run_dir))
        for file in filter(Path.is_file, (*sorted(folder.glob("*.png")), attention)):
            wandb.log_image(run.loggers, file.stem, file)
        wandb.log_table(run.loggers, "classes", judgement["classes"])
    except Exception as error:
        log.warning("report: %s: %s; report=false leaves it out", type(error).__name__, error, exc_info=error)


def log_evaluation(run_dir: Path, folder: Path, judgement: Node, more: dict[str, float]) -> None:
    """Log an evaluation to the run's wandb run, if it has one, as `evaluate/NAME/...`. An error is a warning."""
    prefix = f"evaluate/{folder.name.removeprefix('best-')}"
    scores = {key: values[0] for key, values in judgement["scores"]["predictions"].items()} | more
    try:
        with wandb.finish_wandb_run():
            if logger := wandb.resume_logger(run_dir):
                logger.experiment.summary.update({f"{prefix}/{key}": value for key, value in scores.items()})
                for file in sorted(folder.glob("*.png")):
                    wandb.log_image([logger], f"{prefix}/{file.stem}", file)
                wandb.log_table([logger], f"{prefix}/classes", judgement["classes"])
    except Exception as error:
        log.warning("wandb: %s: %s; wandb=false leaves it out", type(error).__name__, error)


def draw_attention(network: nn.Module, datamodule: DataModule, file: Path) -> None:
    """Draw a few validation images, and below each how much attention its patches get."""
    from vitlab.evaluation import attention

    split: SplitName = "val" if datamodule.samples["val"] else "test"
    images = judgement_pictures.dataset_images(datamodule, split, range(min(6, datamodule.samples[split])))
    batch = EvalBatch(images.to(next(network.parameters()).device), torch.empty(0))
    network.eval()
    with torch.no_grad():
        trace = attention.trace(network, datamodule.on_after_batch_transfer(batch, 0).images)
    maps = attention.head_attention(trace)[:, -1].float().mean(dim=1, keepdim=True).cpu()
    peaks = maps.amax(dim=(1, 2, 3))
    lit = images * (0.15 + 0.85 * F.interpolate(maps / peaks.view(-1, 1, 1, 1), images.shape[2:]))
    titles = ["image"] * len(images) + [f"maximum {peak:.1%}" for peak in peaks]
    judgement_pictures.draw_gallery(file, torch.cat([images, lit.byte()]), titles)
