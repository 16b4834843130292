"""The comparison of runs: a sweep's report of them, with paired tests, classes, and images on which they disagree."""

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config import paths
from vitlab.config.schema import direction
from vitlab.evaluation.judgement import bootstrap
from vitlab.jobs.identity import WITHOUT_EFFECT, flatten
from vitlab.runs.folder import read_config, read_overrides
from vitlab.runs.html_page import Page
from vitlab.storage.csv_files import write_csv
from vitlab.sweeps.ledger import Job, Sweep, read_state
from vitlab.sweeps.report.page import write_report

MOST = 100  # lines of a table on the page
NOTES = {
    "scores": "Low and high: 95 % bootstrap intervals over the images; another seed of training isn't in them.",
    "paired": "Differences to the first run on the same images, with 95 % intervals; p: McNemar's exact test.",
    "classes": "Recall of each class, the largest differences first.",
    "disagreements": "Images with different predictions, of the runs that have the images of the first.",
}


def write_comparison(runs: list[Path], evaluation: str, out: Path) -> Sweep:
    """Write the page and the tables of runs; `evaluation` is a folder of each run's evaluations, if it has that."""
    names = [os.path.relpath(run, os.path.commonpath(runs)) for run in runs]
    configs = [{key: str(value) for key, value in flatten(read_config(run)).items()} for run in runs]
    keys = {key: {own.get(key) for own in configs} for own in configs for key in own}
    left_out = "|".join((*WITHOUT_EFFECT, r"(data|model)\.(seed|image_size|batch_size)"))  # which root keys set
    varies = [key for key in keys if len(keys[key]) > 1 and not re.fullmatch(left_out, key)]
    jobs = []
    for run, name, own in zip(runs, names, configs, strict=True):
        status, results, starts = read_state(run)
        jobs.append(Job(name, run, {key: own[key] for key in varies if key in own}, status, len(starts) or 1, results))
    objective, command = configs[0]["objective"], paths.command_line(read_overrides(out))
    sweep = Sweep(out, f"{len(runs)} runs", command, {objective: direction(objective)}, jobs)
    folders = {name: run / "evaluation" / evaluation for name, run in zip(names, runs, strict=True)}
    judged = {name: own for name, own in folders.items() if (own / "judgement.json").is_file()}
    page = Page("")
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in comparison_tables(judged).items() if judged else ():
        write_csv(out / f"{name}.csv", lines)
        page.add_section(f"{name.capitalize()} of {evaluation}")
        page.add_text(f"{NOTES[name]} {len(lines) - 1:,} lines in {name}.csv.")
        page.add_table(lines[0], lines[1 : MOST + 1])
    write_report(sweep, out, page.parts)
    return sweep


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
    return {
        "scores": [["score", "run", "value", "low", "high"], *rows],
        "paired": [["run", "difference", "low", "high", "right only in the first", "right only here", "p"], *paired],
        "classes": [["class", *judged], *sorted(classes, key=lambda line: -np.ptp([r or 0.0 for r in line[1:]]))],
        "disagreements": [["index", "path", "label", *images], *disagreements],
    }


def paired_test(one: Any, two: Any) -> list[float]:
    """Difference of accuracy with its interval, images that only one classifies right, p of McNemar's exact test."""
    from scipy.stats import binomtest

    gain = two - one
    interval = bootstrap(lambda index: {"acc": float(gain[index].mean())}, len(gain))["acc"]
    lost, gained = int((gain < 0).sum()), int((gain > 0).sum())
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return [float(gain.mean()), *interval, lost, gained, p]
