"""Write the model card: README.md in Hugging Face's format, from the records of a run.

Scores are shown only if they were measured with the exported weights.
"""

import re
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from vitlab.config.printable import one_line, printable
from vitlab.config.schema import Node
from vitlab.evaluation.checkpoint import CheckpointWeights
from vitlab.export.checkpoint import ExportModel
from vitlab.runs import folder

SHOWN = ("image_size", "batch_size", "seed", "model", "data", "classifier", "optimizer", "schedule", "trainer")
METRICS = {"acc": ("accuracy", "Accuracy"), "acc5": ("accuracy", "Top-5 accuracy"), "loss": ("loss", "Cross-entropy")}
SPLITS = {"test": "test", "val": "validation", "train": "training, not augmented"}


class Score(NamedTuple):
    split: str
    metric: str
    value: float
    correct: int
    images: int


def scores(weights: CheckpointWeights) -> list[Score]:
    """The scores at the end of training, which are of the best checkpoint, averaged if it has averages."""
    results = folder.read_results(weights.run)
    tested = Path(results.get("checkpoint") or "").name.startswith("best") and results.get("status") == "finished"
    if not tested or weights.file.stem != "best" or weights.chosen == "raw":
        return []
    return [
        Score(split, metric, results[f"{split}/{metric}"], results[f"{split}/correct"], results[f"{split}/count"])
        for split in SPLITS
        for metric in METRICS
        if f"{split}/{metric}" in results and f"{split}/count" in results
    ]


def card_text(trained: ExportModel, record: Node, *, library: str, license: str | None) -> str:
    """The card, by the template `model_card.md`."""
    measured, title = scores(trained.weights), str(trained.weights.config.get("name") or trained.weights.run.name)
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"plain": plain_markdown, "number": "{:.4g}".format}
    text = environment.from_string(Path(__file__).with_suffix(".md").read_text(encoding="utf-8")).render(
        header=front_matter(trained, measured, title=title, library=library, license=license).to_yaml(),
        title=title,
        trained=trained,
        parameters=sum(p.numel() for p in trained.network.parameters()),
        height=trained.image_size[0],
        width=trained.image_size[1],
        record=record,
        scores=measured,
        splits=SPLITS,
        metrics=METRICS,
        provenance=provenance(trained, record),
        configuration=configuration_section(trained.weights.config),
    )
    return printable(text)


def front_matter(
    trained: ExportModel, measured: list[Score], *, title: str, library: str, license: str | None
) -> ModelCardData:
    """The header that Hugging Face's hub reads."""
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=trained.data["data set"],
            dataset_name=trained.data["data set"],
            dataset_split=score.split,
            metric_type=METRICS[score.metric][0],
            metric_name=METRICS[score.metric][1],
            metric_value=score.value,
        )
        for score in measured
    ]
    return ModelCardData(
        library_name=library,
        license=license,
        pipeline_tag="image-classification",
        tags=["image-classification", "vision-transformer", "vitlab"],
        model_name=title if results else None,
        eval_results=results or None,
    )


def provenance(trained: ExportModel, record: Node) -> Node:
    results = folder.read_results(trained.weights.run)
    command = one_line(without_local_paths(str(results.get("command"))))
    return {
        "run": plain_markdown(trained.weights.run.resolve().name),
        "command": f"`{command}`" if results.get("command") else None,
        "started": results.get("started"),
        "commit of the training": results.get("commit"),
        "commit of the export": record["commit"],
        "versions": ", ".join(f"{name} {version}" for name, version in (results.get("versions") or {}).items()),
        "device": results.get("device"),
        "precision": results.get("precision"),
        "W&B run": trained.weights.content["vitlab"].get("wandb"),
    }


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
