"""Write the model card: README.md in Hugging Face's format, from the records of a run.

Scores are shown only if they were measured with the exported weights: those at the end of training, of the best
checkpoint, and those of `evaluate.py` since the checkpoint was written.
"""

import re
from pathlib import Path
from typing import NamedTuple

import yaml

from vitlab.config.printable import one_line, printable
from vitlab.config.schema import Node
from vitlab.export.checkpoint import CheckpointWeights, ExportModel
from vitlab.runs import folder

SHOWN = ("image_size", "batch_size", "seed", "model", "data", "classifier", "optimizer", "schedule", "trainer")
METRICS = {"acc": ("accuracy", "Accuracy"), "acc5": ("accuracy", "Top-5 accuracy"), "loss": ("loss", "Cross-entropy")}
SPLITS = {"train": "training, not augmented", "val": "validation", "test": "test"}


class Score(NamedTuple):
    split: str
    metric: str
    value: float
    correct: int
    images: int


def scores(weights: CheckpointWeights) -> list[Score]:
    """Scores of these weights, the test split first. Of a checkpoint with averages, only those were tested."""
    if weights.chosen == "raw":
        return []
    measured: list[Score] = []
    results = folder.read_results(weights.run)
    best = Path(results.get("checkpoint") or "").name.startswith("best")
    if weights.file.stem == "best" and best and results.get("status") == "finished":
        measured += result_scores(results)
    for file in sorted((weights.run / "evaluation").glob(f"{weights.file.stem}-*/{folder.RESULTS}")):
        evaluated = folder.read_results(file.parent)
        newer = file.stat().st_mtime >= weights.file.stat().st_mtime
        if newer and evaluated.get("status") == "finished":
            known = {score.split for score in measured}
            measured += [score for score in result_scores(evaluated) if score.split not in known]
    return sorted(measured, key=lambda score: -list(SPLITS).index(score.split))


def result_scores(results: Node) -> list[Score]:
    return [
        Score(split, metric, results[f"{split}/{metric}"], results[f"{split}/correct"], results[f"{split}/count"])
        for split in SPLITS
        for metric in METRICS
        if f"{split}/{metric}" in results and f"{split}/count" in results
    ]


def card_text(trained: ExportModel, record: Node, *, usage: str, library: str, license: str | None, fold: bool) -> str:
    measured, title = scores(trained.weights), str(trained.weights.config.get("name") or trained.weights.run.name)
    header = front_matter(trained, measured, title=title, library=library, license=license)
    parts = (
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {plain_markdown(title)}",
        card_summary(trained, record),
        "## How to load it",
        f"```python\n{usage}\n```",
        preprocessing_section(trained, fold),
        "## Scores",
        score_table(measured, trained.weights),
        "## Data",
        data_section(trained),
        "## Provenance",
        provenance_section(trained, record),
        "## Configuration",
        f"```yaml\n{configuration_section(trained.weights.config)}```",
    )
    return printable("\n\n".join(parts)) + "\n"


def front_matter(trained: ExportModel, measured: list[Score], *, title: str, library: str, license: str | None) -> Node:
    """The header that Hugging Face's hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    name = str(trained.data["data set"]) if "data set" in trained.data else "unknown"
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=name,
            dataset_name=name,
            dataset_split=score.split,
            metric_type=METRICS[score.metric][0],
            metric_name=METRICS[score.metric][1],
            metric_value=score.value,
        )
        for score in measured
    ]
    known = ModelCardData(
        library_name=library,
        license=license,
        pipeline_tag="image-classification",
        tags=["image-classification", "vision-transformer", "vitlab"],
        model_name=title if results else None,
        eval_results=results or None,
    )
    return dict(known.to_dict())  # type: ignore[no-untyped-call]


def card_summary(trained: ExportModel, record: Node) -> str:
    """The network, the checkpoint and the comparison, in a paragraph."""
    parameters = sum(p.numel() for p in trained.network.parameters())
    height, width = trained.image_size
    kinds = {"ema": ", averaged over steps", "raw": ", not averaged", None: ""}
    compared = "It was not compared with the trained network."
    if record["compared_with"]:
        difference = f"{record['largest_difference']:.2g}"
        compared = f"Loaded with {record['compared_with']}, its outputs differ from the trained network's by at most "
        compared += f"{difference} for equal pixels."
    if through := record.get("through_preprocessing"):
        compared += f" Through the preprocessing of this folder, on {through['images']} images of odd sizes, they "
        compared += f"differ by at most {through['largest_difference']:.2g}, relative to the largest output"
        if through["other_pixels"]:
            compared += ": the library crops other pixels than were evaluated of images of "
            compared += ", ".join(through["other_pixels"])
        compared += "."
    return (
        f"An image classifier of {parameters:,} parameters, {len(trained.classes)} classes and images of {height} x "
        f"{width} pixels, trained with vitlab. The weights are those of {record['checkpoint']} (step "
        f"{record['step']}){kinds[record['weights']]}. {compared}"
    )


def preprocessing_section(trained: ExportModel, fold: bool) -> str:
    height, width = trained.image_size
    how = f"resized to {height} x {width}, without keeping the aspect ratio"
    if trained.crop_fraction is not None:
        share = f"{100 * trained.crop_fraction:g} %"
        how = f"resized so that a center crop of {height} x {width} is {share} of the short side, and cropped to it"
    channels = {1: "one gray channel", 3: "RGB"}.get(trained.channels, f"{trained.channels} channels")
    function = "softmax" if trained.loss == "softmax" else "sigmoid"
    if fold:
        end = f"The input is uint8 (0..255): normalization and {function} are part of the file."
    else:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (trained.mean, trained.std))
        end = f"It is scaled to 0..1 and normalized by mean {mean} and std {std}. The outputs are logits: {function} "
        end += "turns them into probabilities."
    return f"An image has {channels}, and is {how} ({trained.interpolation}, antialiased). {end}"


def score_table(measured: list[Score], weights: CheckpointWeights) -> str:
    if not measured:
        part = f", {weights.chosen}" if weights.chosen else ""
        return f"None were measured with these weights ({weights.file.name}{part})."
    rows = ["| split | metric | value | images |", "|---|---|---|---|"]
    for score in measured:
        value = f"{score.value:.4f}" if score.metric == "loss" else f"{100 * score.value:.2f} %"
        images = f"{score.correct:,} of {score.images:,}" if score.metric == "acc" else f"{score.images:,}"
        rows.append(f"| {SPLITS[score.split]} | {METRICS[score.metric][1]} | {value} | {images} |")
    return "\n".join(rows)


def data_section(trained: ExportModel) -> str:
    known = {split: trained.data[f"{split} images"] for split in SPLITS if f"{split} images" in trained.data}
    counts = [f"{count:,} images ({SPLITS[split].partition(',')[0]})" for split, count in known.items()]
    sentence = f"{trained.data.get('data set', 'Not recorded')}{': ' if counts else ''}{', '.join(counts)}."
    names = ", ".join(
        f"{i} {plain_markdown(name)}" if str(i) != name else name for i, name in enumerate(trained.classes)
    )
    fraction = (trained.weights.config.get("data") or {}).get("val_fraction")
    chosen = " The best checkpoint is chosen on the validation images, which are held out of the training split"
    chosen += f" ({100 * fraction:g} %)." if isinstance(fraction, float) else "."
    return f"{sentence}{chosen}\n\nClasses, in the order of the outputs: {names}."


def provenance_section(trained: ExportModel, record: Node) -> str:
    results = trained.results
    rows = {
        "run": plain_markdown(trained.weights.run.resolve().name),
        "command": f"`{one_line(without_local_paths(str(results['command'])))}`" if results.get("command") else None,
        "started": results.get("started"),
        "commit of the training": results.get("commit"),
        "commit of the export": record["commit"],
        "versions": ", ".join(f"{name} {version}" for name, version in (results.get("versions") or {}).items()),
        "device": results.get("device"),
        "precision": results.get("precision"),
        "W&B run": (trained.weights.content.get("vitlab") or {}).get("wandb"),
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value]
    files = [f"| {name} | SHA-256 `{digest}` |" for name, digest in record["sha256"].items()]
    return "\n".join(["| | |", "|---|---|", *lines, *files])


def configuration_section(config: Node) -> str:
    """The settings that affect the weights, as YAML."""
    chosen = {key: config[key] for key in SHOWN if key in config}
    if averaging := [k for k, v in (config.get("callbacks") or {}).items() if "WeightAveraging" in str(v)]:
        chosen["callbacks"] = {key: config["callbacks"][key] for key in averaging}
    return without_local_paths(yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True))


def plain_markdown(name: str) -> str:
    """A name in one line, in which Markdown and HTML show every character as it is."""
    return re.sub(r"([\\`<>\[\]|])", r"\\\1", one_line(name))


def without_local_paths(line: str) -> str:
    """Shorten absolute paths, which are private, to their last part: `.../photos`."""
    return re.sub(r"(?<![\w./])/(?:[^\s'\"/=,\]]+/)+", ".../", line)
