"""The formats, and an export from beginning to end: what can't be is refused, what is written is compared, then named.

write into a folder that isn't there yet -> load it as the other library does -> compare with the live network
-> model card, export.json -> rename
"""

import logging
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vitlab.config.allowlist import NotTrusted
from vitlab.config.schema import Node
from vitlab.export import graph, model_card, safetensors, timm, transformers
from vitlab.export.checkpoint import CheckpointWeights, ExportModel, Kind, comparison_images, load_weights
from vitlab.export.folder import RECORD, atomic_folder, folder_problem, write_json, write_text
from vitlab.runs.folder import write_problem
from vitlab.runs.record import git_commit
from vitlab.storage.atomic import file_sha256

COMPARED = (1, 2, 5)  # images at once, that an export is compared on

log = logging.getLogger(__name__)


class OutputsDiffer(ArithmeticError):
    """What was written gives other outputs than the network that it was made of."""


class Format(NamedTuple):
    """A format.

    `checked_by`: the package that loads it, to be compared. `needs`: packages without which it can't be written.
    `unsupported`: what of a Vision Transformer it can't express.
    """

    library: str
    write: Callable[..., None]
    load: Callable[[Path, ExportModel], Callable[[Tensor], Tensor]]
    usage: Callable[[ExportModel, bool], str]
    checked_by: str
    kinds: tuple[Kind, ...]
    unsupported: Callable[[Node], list[str]] = lambda _: []
    needs: tuple[str, ...] = ("safetensors",)
    folds: bool = False


ANY: tuple[Kind, ...] = ("vit", "timm", "other")
ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS = {
    "safetensors": Format(
        "pytorch", safetensors.write_safetensors, safetensors.load_safetensors, safetensors.usage, "safetensors", ANY
    ),
    "timm": Format("timm", timm.write_timm, timm.load_timm, timm.usage, "timm", ("vit", "timm"), timm.unsupported),
    "hf": Format(
        "transformers",
        transformers.write_transformers,
        transformers.load_transformers,
        transformers.usage,
        "transformers",
        ("vit",),
        transformers.unsupported,
    ),
    "onnx": Format(
        "onnx", graph.write_onnx, graph.load_onnx, graph.usage_onnx, "onnxruntime", ANY, needs=ONNX, folds=True
    ),
    "torch_export": Format(
        "pytorch", graph.write_torch, graph.load_torch, graph.usage_torch, "torch", ANY, needs=(), folds=True
    ),
}


# ------------------------------------------------------------------------------------------------- what can't be


def problems(
    *, run: Path, checkpoint: str, part: str | None, name: str, fold: bool, out: Path, overwrite: bool
) -> Iterator[str]:
    """Why an export can't be made, a line each, as far as names and shapes tell."""
    format_ = FORMATS[name]
    if missing := [package for package in format_.needs if find_spec(package) is None]:
        yield f"format={name} needs {' and '.join(missing)}: python -m pip install {' '.join(missing)}"
    if fold and not format_.folds:
        able = " and ".join(other for other, known in FORMATS.items() if known.folds)
        yield f"fold=true: format={name} holds weights and no preprocessing code; {able} can fold it in"
    if problem := folder_problem(out, overwrite) or write_problem("out", out):
        yield problem
    try:
        weights = load_weights(run, checkpoint, part)
    except (OSError, ValueError, NotTrusted) as error:
        yield str(error)
        return
    if refused := unsupported(weights, name):
        able = ", ".join(other for other in FORMATS if not unsupported(weights, other))
        yield from (f"format={name} can't express {reason}; formats that can: {able}" for reason in refused)


def unsupported(weights: CheckpointWeights, name: str) -> list[str]:
    """What a format can't express of a network, and why."""
    format_ = FORMATS[name]
    if weights.kind not in format_.kinds:
        target = weights.config["model"]["_target_"]
        what = f"timm's {weights.arguments.get('model_name')}" if weights.kind == "timm" else target
        return [f"{what}: it is for plain Vision Transformers"]
    return format_.unsupported(weights.arguments) if weights.kind == "vit" else []


# ---------------------------------------------------------------------------------------------------- what is made


def export_network(
    trained: ExportModel, name: str, out: Path, *, fold: bool, tolerance: float, license: str | None, overwrite: bool
) -> Node:
    """Writes a network in a format to the folder `out`; what is known of it then, for `results.json`.

    Raises:
        Differs: what was written gives outputs that differ by more than `tolerance`; nothing is left of it.
        FileExistsError: there is something in `out` that isn't to be overwritten.
    """
    format_ = FORMATS[name]
    if problem := folder_problem(out, overwrite):
        raise FileExistsError(problem)
    with atomic_folder(out, overwrite=overwrite) as folder:
        format_.write(trained, folder, fold=fold)
        difference = largest_difference(format_, trained, folder, fold)
        if difference is None:
            log.warning("not compared with the live network: %s isn't installed here", format_.checked_by)
        else:
            kind = "probabilities" if fold else "logits"
            log.info(
                "%s loads it: batches of %s images give %s that differ by %.2g at most (tolerance %g)",
                format_.checked_by,
                ", ".join(map(str, COMPARED)),
                kind,
                difference,
                tolerance,
            )
            if not difference <= tolerance:  # nor if it is no number
                raise OutputsDiffer(
                    f"what {format_.checked_by} loads gives {kind} that differ by {difference:.2g} from the live "
                    f"network's, more than tolerance={tolerance:g}; nothing was written. Raise tolerance if that is "
                    "near enough"
                )
        record = export_record(trained, name, folder, fold=fold, difference=difference)
        usage = format_.usage(trained, fold)
        text = model_card.card_text(trained, record, usage=usage, library=format_.library, license=license, fold=fold)
        write_text(folder / "README.md", text)
        write_json(folder / RECORD, record)
    log.info("%s: %s", out, ", ".join(sorted(file.name for file in out.iterdir())))
    return {"out": str(out), **record}


def largest_difference(format_: Format, trained: ExportModel, folder: Path, fold: bool) -> float | None:
    """How far the outputs of what was written lie from the live network's, at most, in batches of several sizes.

    In units of the largest output where that is above 1. None: what would load it isn't installed.
    """
    if find_spec(format_.checked_by) is None:
        return None
    theirs, ours = format_.load(folder, trained), graph.graph_module(trained, fold)
    largest = torch.zeros(())
    with torch.no_grad():
        for seed, count in enumerate(COMPARED):
            batch = comparison_images(trained, count, seed=seed)
            batch = batch if fold else trained.prepare()(batch)
            expected, found = ours(batch), theirs(batch)
            if found.shape != expected.shape:
                raise OutputsDiffer(
                    f"{format_.checked_by} gives outputs of shape {tuple(found.shape)}, the live network "
                    f"{tuple(expected.shape)}"
                )
            scale = expected.abs().max().clamp(min=1)
            largest = torch.maximum(largest, (found - expected).abs().max() / scale)  # which keeps what is no number
    return float(largest)


def export_record(trained: ExportModel, name: str, folder: Path, *, fold: bool, difference: float | None) -> Node:
    """export.json: what a program has to know of the folder."""
    by = FORMATS[name].checked_by
    version = metadata.version(by) if difference is not None else None
    return {
        "format": name,
        "fold": fold,
        "checkpoint": trained.weights.file.name,
        "weights": trained.weights.chosen,
        "step": trained.weights.content.get("global_step"),
        "compared_with": f"{by} {version}" if version else None,
        "largest_difference": difference,
        "classes": list(trained.classes),
        "preprocessing": {
            "channels": trained.channels,
            "image_size": list(trained.image_size),
            **trained.preprocessing,
        },
        "output": "probabilities" if fold else "logits",
        "loss": trained.loss,
        "commit": git_commit(),
        "sha256": {file.name: file_sha256(file) for file in sorted(folder.iterdir())},
    }
