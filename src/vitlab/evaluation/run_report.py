"""`RUN/report/index.html`: the curves, scores and errors of a run, one page that needs no network."""

import csv
import json
from pathlib import Path
from typing import Any

from vitlab.config.schema import Node
from vitlab.evaluation.judgement_pictures import CAPTIONS
from vitlab.runs.folder import read_results
from vitlab.runs.html_page import Page

SCORES = {"acc": "accuracy", "acc5": "top-5 accuracy", "macro_f1": "mean F1", "loss": "loss", "brier": "Brier score"}
SCORES |= {"ece": "ECE", "adaptive_ece": "adaptive ECE"}
METHOD = """Intervals: {level:.0%} {interval} bootstrap, {resamples:,} resamples of the images (seed {seed}); they leave out
the seed of training. Probabilities are the softmax of the logits, and the loss is their cross-entropy. ECE has 15 bins of
equal width, the adaptive one 15 bins of equal numbers of images. Mean F1 is over the classes that have images."""


def write_report(file: Path, title: str, folders: list[Path], pictures: dict[str, Path]) -> Path:
    """Write the page of the judgements in `folders`, after pictures by their captions."""
    page = Page(title, "vitlab report")
    for caption, picture in pictures.items():
        if picture.is_file():
            page.add_picture(picture, caption)
    for folder in folders:
        add_judgement(page, folder, json.loads((folder / "judgement.json").read_text()))
    page.write(file)
    return file


def write_run_report(run_dir: Path) -> Path:
    """Write the page of a run, with all its judgements."""
    title = str(read_results(run_dir).get("name") or run_dir.resolve().name)
    folders = [file.parent for file in sorted((run_dir / "evaluation").glob("*/judgement.json"))]
    pictures = {"Curves": run_dir / "figures" / "curves.png"}
    pictures["Attention of the head's query in the last block, mean over heads"] = run_dir / "figures" / "attention.png"
    return write_report(run_dir / "report" / "index.html", title, folders, pictures)


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
    header, *rows = csv.reader((folder / "classes.csv").open(newline=""))
    page.add_table(header, [[name, *(float(cell) if cell else None for cell in cells)] for name, *cells in rows])


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
