"""Write the model card: README.md in Hugging Face's format, from the records of a run.

Scores are shown only if they were measured with the exported weights.
"""

import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from vitlab.config.printable import one_line, printable
from vitlab.config.schema import Node
from vitlab.evaluation.checkpoint import CheckpointWeights
from vitlab.export.checkpoint import ExportModel
from vitlab.runs import folder

METRICS = {"acc": ("accuracy", "Accuracy"), "acc5": ("accuracy", "Top-5 accuracy"), "loss": ("loss", "Cross-entropy")}


def scores(weights: CheckpointWeights) -> list[EvalResult]:
    """The scores at the end of training, which are of the best checkpoint, averaged if it has averages."""
    results, data_set = folder.read_results(weights.run), weights.content["vitlab"]["data"]["data set"]
    tested = Path(results.get("checkpoint") or "").name.startswith("best") and results.get("status") == "finished"
    if not tested or weights.file.stem != "best" or weights.chosen == "raw":
        return []
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=data_set,
            dataset_name=data_set,
            dataset_split=split,
            metric_type=kind,
            metric_name=name,
            metric_value=results[f"{split}/{metric}"],
        )
        for split in ("test", "val", "train")
        for metric, (kind, name) in METRICS.items()
        if f"{split}/{metric}" in results and f"{split}/count" in results
    ]


def card_text(trained: ExportModel, record: Node, *, library: str, license: str | None) -> str:
    """The card, by the template `model_card.md`."""
    weights, measured = trained.weights, scores(trained.weights)
    title = str(weights.config.get("name") or weights.run.name)
    header = ModelCardData(
        library_name=library,
        license=license,
        pipeline_tag="image-classification",
        tags=["image-classification", "vision-transformer", "vitlab"],
        model_name=title if measured else None,
        eval_results=measured or None,
    )
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"plain": plain_markdown, "number": "{:.4g}".format, "shared": without_local_paths}
    text = environment.from_string(Path(__file__).with_suffix(".md").read_text(encoding="utf-8")).render(
        header=header.to_yaml(),
        title=title,
        trained=trained,
        parameters=sum(p.numel() for p in trained.network.parameters()),
        height=trained.image_size[0],
        width=trained.image_size[1],
        record=record,
        scores=measured,
        results=folder.read_results(weights.run),
        run=weights.run.resolve().name,
    )
    return printable(text)


def plain_markdown(name: str) -> str:
    """A name in one line, in which Markdown and HTML show every character as it is."""
    return re.sub(r"([\\`<>\[\]|])", r"\\\1", one_line(name))


def without_local_paths(line: str) -> str:
    """A command in one line; absolute paths, which are private, are shortened to their last part: `.../photos`."""
    return re.sub(r"(?<![\w./])/(?:[^\s'\"/=,\]]+/)+", ".../", one_line(line))
