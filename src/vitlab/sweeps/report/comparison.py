"""The comparison of runs: a sweep's report of them, with paired tests, classes, and images on which they disagree."""

import csv
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config import paths
from vitlab.config.schema import direction
from vitlab.evaluation.judgement import bootstrap
from vitlab.evaluation.judgement_pictures import dataset_images, draw_gallery, short
from vitlab.jobs.identity import flatten, setting_effect
from vitlab.runs.folder import data_without_scan, read_config, read_overrides
from vitlab.runs.html_page import Page
from vitlab.storage.atomic import write_csv
from vitlab.sweeps.ledger import Job, Sweep, read_state
from vitlab.sweeps.report.page import write_report
from vitlab.sweeps.report.table import SEED
from vitlab.training.build import build_data

MOST = {"settings": 20, "disagreements": 24}  # lines of a table on the page, else 100; images of the gallery
NOTES = {
    "settings": "The settings that differ; first those that change the training and that each run has.",
    "scores": "Low and high: 95 % bootstrap intervals over the images; another seed of training isn't in them.",
    "paired": "Differences to the first run on the same images, with 95 % intervals; p: McNemar's exact test.",
    "classes": "Recall of each class, the largest differences first.",
    "disagreements": "Images with different predictions, the most confident first, of runs with the first's images.",
}

log = logging.getLogger(__name__)


def write_comparison(runs: list[Path], evaluation: str, out: Path) -> Sweep:
    """Write the page and the tables of runs; `evaluation` is a folder of each run's evaluations, if it has that."""
    names = [os.path.relpath(run, os.path.commonpath(runs)) for run in runs]
    configs = [{key: str(value) for key, value in flatten(read_config(run)).items()} for run in runs]
    varies, jobs = varying_settings(configs), list[Job]()
    shown = varies[:6]
    counts = [len({tuple(own.get(key) for key in keys if key != SEED) for own in configs}) for keys in (varies, shown)]
    for run, name, own in zip(runs, names, configs, strict=True):
        status, results, starts = read_state(run)
        choices = {"run": name} if counts[0] == len(runs) or counts[1] < counts[0] else {}  # else seeds are averaged
        choices |= {key: own[key] for key in shown if key in own}
        jobs.append(Job(name, run, choices, status, len(starts) or 1, results))
    objective, command = configs[0]["objective"], paths.command_line(read_overrides(out))
    sweep = Sweep(out, f"{len(runs)} runs", command, {objective: direction(objective)}, jobs)
    folders = {name: run / "evaluation" / evaluation for name, run in zip(names, runs, strict=True)}
    judged = {name: own for name, own in folders.items() if (own / "judgement.json").is_file()}
    page = Page("")
    out.mkdir(parents=True, exist_ok=True)
    settings: list[Any] = [["setting", *names], *([key, *(own.get(key) for own in configs)] for key in varies)]
    for name, lines in {"settings": settings, **(comparison_tables(judged) if judged else {})}.items():
        write_csv(out / f"{name}.csv", lines)
        page.add_section(name.capitalize() + f" of {evaluation}" * (name != "settings"))
        count, most = len(lines) - 1, MOST.get(name, 100)
        page.add_text(f"{NOTES[name]} {min(most, count)} of {count:,} lines of {name}.csv.")
        if name == "disagreements" and count:
            try:
                first, picture = next(iter(judged.values())), out / f"{name}.png"
                page.add_picture(picture, draw_disagreements(picture, first, lines[: most + 1]))
            except Exception as error:  # of data that is no longer there
                log.warning("no pictures of disagreements: %s: %s", type(error).__name__, error)
        page.add_table(lines[0], lines[1 : most + 1])
    write_report(sweep, out, page.parts)
    return sweep


def varying_settings(configs: list[dict[str, str]]) -> list[str]:
    """The settings that differ: those that change the training and that each run has first, in the order of files."""
    places = {key: place for own in reversed(configs) for place, key in enumerate(own)}
    of_root = re.compile(r"(data|model)\.(seed|image_size|batch_size)")  # and set there
    varies = [key for key in places if len({own.get(key) for own in configs}) > 1 and not of_root.fullmatch(key)]
    lacks = {key: any(key not in own for own in configs) for key in varies}  # with another class
    order = {key: (setting_effect(key), lacks[key], not key.startswith("model."), places[key]) for key in varies}
    return sorted((key for key in varies if order[key][0] < 2), key=lambda key: order[key])


def draw_disagreements(file: Path, evaluation: Path, lines: list[list[Any]]) -> str:
    """Draw the images of the first lines of the table, from the data of an evaluation; returns the caption."""
    about, run, rows = json.loads((evaluation / "judgement.json").read_text()), evaluation.parent.parent, lines[1:]
    if "test_dir" in about:
        raise ValueError("those of a test_dir are not the run's")
    data = build_data(data_without_scan(read_config(run)["data"], run))
    images = dataset_images(data, about["split"], [int(row[0]) for row in rows])
    titles, runs = [], range(3, (len(lines[0]) + 3) // 2)
    for row in rows:
        answers = (f"{k - 2} → {short(row[k], 10)}  {row[k + len(runs)]:.1%}" for k in runs)
        titles.append("\n".join([f"{short(row[2], 12)}   #{row[0]}", *answers]))
    draw_gallery(file, images, titles)
    return "Label, index, and predictions of " + ", ".join(f"{k - 2}: {lines[0][k]}" for k in runs)


def comparison_tables(folders: dict[str, Path]) -> dict[str, list[list[Any]]]:
    """Each table with a first line of names."""
    judged = {name: json.loads((folder / "judgement.json").read_text()) for name, folder in folders.items()}
    first = next(iter(judged))
    scores = {name: own["scores"]["predictions"] for name, own in judged.items()}
    rows = [[key, name, *(own.get(key, []) + [None] * 3)[:3]] for key in scores[first] for name, own in scores.items()]
    same = [name for name in judged if judged[name]["digest"] == judged[first]["digest"]]
    images = {name: [*csv.DictReader((folders[name] / "images.csv").read_text().splitlines())] for name in same}
    correct = {name: np.array([line["correct"] == "True" for line in lines], float) for name, lines in images.items()}
    paired = [[name, *paired_test(correct[first], correct[name])] for name in same[1:]]
    recalls = [{line[0]: line[2] for line in own["classes"][1:]} for own in judged.values()]
    classes = [[name, *(recall.get(name) for recall in recalls)] for name in recalls[0]]
    differ = [group for group in zip(*images.values(), strict=True) if len({line["prediction"] for line in group}) > 1]
    disagreements = [[*list(group[0].values())[:3], *(line["prediction"] for line in group)] for group in differ]
    for row, group in zip(disagreements, differ, strict=True):
        row += [float(line["probability"]) for line in group]
    disagreements.sort(key=lambda row: -min(row[3 + len(same) :]))
    columns = ["index", "path", "label", *same, *(f"probability, {name}" for name in same)]
    return {
        "scores": [["score", "run", "value", "low", "high"], *rows],
        "paired": [["run", "difference", "low", "high", "right only in the first", "right only here", "p"], *paired],
        "classes": [["class", *judged], *sorted(classes, key=lambda line: -np.ptp([r or 0.0 for r in line[1:]]))],
        "disagreements": [columns, *disagreements],
    }


def paired_test(one: Any, two: Any) -> list[float]:
    """Difference of accuracy with its interval, images that only one classifies right, p of McNemar's exact test."""
    from scipy.stats import binomtest

    gain = two - one
    interval = bootstrap(lambda index: {"acc": float(gain[index].mean())}, len(gain))["acc"]
    lost, gained = int((gain < 0).sum()), int((gain > 0).sum())
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return [float(gain.mean()), *interval, lost, gained, p]
