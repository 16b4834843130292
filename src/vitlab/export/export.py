"""Export a network: write it in a format, compare it with the live network, add a model card.

temporary folder -> loaded by the other library -> compared with the live network -> README.md, export.json -> renamed
"""

import logging
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from vitlab.config.allowlist import NotTrusted
from vitlab.config.schema import Node
from vitlab.evaluation.checkpoint import CheckpointWeights, Kind, load_weights
from vitlab.export import folder as files
from vitlab.export import graph, model_card, timm, transformers
from vitlab.export.checkpoint import ExportModel
from vitlab.runs.folder import write_problem
from vitlab.runs.record import git_commit
from vitlab.storage.atomic import file_sha256

BATCH_SIZES = (1, 2, 5)  # of the comparison with the live network
SIZES = (  # odd ones, of images through a preprocessing
    *((101, 67), (67, 101), (83, 83), (129, 201), (200, 131), (57, 240), (241, 99), (75, 100), (150, 151)),
    *((333, 500), (375, 500), (500, 333)),  # of photos
)
ROUNDING = 2.0  # of 255: mean differences above it aren't those of rounding
CHANNELS = (1, 3)  # of images that the preprocessing of other libraries takes

log = logging.getLogger(__name__)


class OutputsDiffer(ArithmeticError):
    """The exported network's outputs differ from those of the live network."""


class Format(NamedTuple):
    """An export format."""

    library: str  # for the model card
    write: Callable[..., None]
    load: Callable[[Path, ExportModel], Callable[[Tensor], Tensor]]
    checked_by: str  # package that loads the export for the comparison
    kinds: tuple[Kind, ...] = ("vit", "timm", "other")
    unsupported: Callable[[Node], list[str]] = lambda _: []  # parts of a Vision Transformer
    needs: tuple[str, ...] = ("safetensors",)  # packages that write it
    process: Callable[[Path], Callable[[Any], Tensor]] | None = None  # its preprocessing of a Pillow image
    folds: bool = False  # can include preprocessing and softmax


FORMATS = {
    "safetensors": Format("pytorch", files.write_safetensors, files.load_safetensors, "safetensors"),
    "timm": Format(
        "timm",
        timm.write_timm,
        timm.load_timm,
        "timm",
        kinds=("vit", "timm"),
        unsupported=timm.unsupported_parts,
        process=timm.load_transform,
    ),
    "hf": Format(
        "transformers",
        transformers.write_transformers,
        transformers.load_transformers,
        "transformers",
        kinds=("vit",),
        unsupported=transformers.unsupported_parts,
        process=transformers.load_processor,
    ),
    "onnx": Format(
        "onnx",
        graph.write_onnx,
        graph.load_onnx,
        "onnxruntime",
        needs=("onnx", "onnxscript", "onnxruntime"),
        folds=True,
    ),
    "torch_export": Format("pytorch", graph.write_torch, graph.load_torch, "torch", needs=(), folds=True),
}


def problems(
    *, run: Path, checkpoint: str, part: str | None, name: str, fold: bool, out: Path, channels: int | None = None
) -> Iterator[str]:
    """Why an export is impossible, a line each, without reading tensors."""
    format_ = FORMATS[name]
    if missing := [package for package in format_.needs if find_spec(package) is None]:
        yield f"format={name} needs {' and '.join(missing)}: python -m pip install {' '.join(missing)}"
    if fold and not format_.folds:
        able = " or ".join(f"format={other}" for other, known in FORMATS.items() if known.folds)
        yield f"fold=true: format={name} holds weights without preprocessing; use {able}"
    if problem := files.folder_problem(out) or write_problem("out", out):
        yield problem
    try:
        weights = load_weights(run, checkpoint, part)
    except (OSError, ValueError, NotTrusted) as error:
        yield str(error)
        return
    if channels and (weights.kind != "vit" or weights.arguments["in_channels"] != 1):
        yield f"channels={channels} is for vitlab's networks of gray images, and this is none; leave it out"
    if reasons := unsupported_parts(weights, name):
        able = ", ".join(other for other in FORMATS if not unsupported_parts(weights, other))
        yield from (f"format={name} doesn't support {reason}; formats that do: {able}" for reason in reasons)


def unsupported_parts(weights: CheckpointWeights, name: str) -> list[str]:
    """Parts of a network that a format doesn't support, with reasons."""
    format_ = FORMATS[name]
    if weights.kind not in format_.kinds:
        target = weights.config["model"]["_target_"]
        network = f"timm's {weights.arguments.get('model_name')}" if weights.kind == "timm" else target
        return [f"{network}: it is for plain Vision Transformers"]
    return format_.unsupported(weights.arguments) if weights.kind == "vit" else []


def export_network(
    trained: ExportModel, name: str, out: Path, *, fold: bool, tolerance: float, license: str | None
) -> Node:
    """Write a network in a format to the folder `out`. Returns the content of export.json.

    Raises `OutputsDiffer` if outputs differ by more than `tolerance`, `FileExistsError` if `out` has files.
    """
    format_, kind = FORMATS[name], graph.output_name(fold)
    if problem := files.folder_problem(out):
        raise FileExistsError(problem)
    with files.atomic_folder(out) as folder:
        format_.write(trained, folder, fold=fold)
        difference = largest_difference(format_, trained, folder, fold)
        if difference is None:
            log.warning("not compared with the live network: %s isn't installed", format_.checked_by)
        else:
            report = "loaded with %s: the largest difference from the live network's %s is %.2g (tolerance %g)"
            log.info(report, format_.checked_by, kind, difference, tolerance)
            if not difference <= tolerance:  # also if it is NaN
                raise OutputsDiffer(
                    f"loaded with {format_.checked_by}, {kind} differ by {difference:.2g} from the live network's, "
                    f"more than tolerance={tolerance:g}; nothing was written. Raise tolerance if that is close enough"
                )
        record = export_record(trained, name, folder, fold=fold, difference=difference)
        if format_.process and difference is not None and trained.channels in CHANNELS:
            through = compare_processor(format_.process(folder), format_.load(folder, trained), trained)
            record["through_preprocessing"] = through
            log.info(
                "through its preprocessing, on %d images of odd sizes: %.2g", len(SIZES), through["largest_difference"]
            )
            if through["other_pixels"]:
                sizes = ", ".join(through["other_pixels"])
                log.warning("%s crops other pixels than were evaluated, of images of %s", format_.checked_by, sizes)
        text = model_card.card_text(trained, record, library=format_.library, license=license)
        (folder / files.CARD).write_text(text, encoding="utf-8")
        files.write_json(folder / files.RECORD, record)
    log.info("%s: %s", out, ", ".join(sorted(file.name for file in out.iterdir())))
    return {"out": str(out), **record}


def largest_difference(format_: Format, trained: ExportModel, folder: Path, fold: bool) -> float | None:
    """The largest difference between the exported and the live network's outputs on batches of several sizes.

    It is relative to the largest output if that is above 1. None if the package that loads the export isn't installed.
    """
    if find_spec(format_.checked_by) is None:
        return None
    exported, live = format_.load(folder, trained), graph.graph_module(trained, fold)
    largest = torch.zeros(())
    with torch.no_grad():
        for seed, count in enumerate(BATCH_SIZES):
            batch = graph.example_input(trained, fold, count, seed=seed)
            expected, outputs = live(batch), exported(batch)
            if outputs.shape != expected.shape:
                shapes = f"outputs have the shape {tuple(outputs.shape)}, the live network's {tuple(expected.shape)}"
                raise OutputsDiffer(f"loaded with {format_.checked_by}, {shapes}")
            scale = expected.abs().max().clamp(min=1)
            largest = torch.maximum(largest, (outputs - expected).abs().max() / scale)  # keeps NaN
    return float(largest)


def export_record(trained: ExportModel, name: str, folder: Path, *, fold: bool, difference: float | None) -> Node:
    """The content of export.json."""
    package = FORMATS[name].checked_by
    shape = {"channels": trained.channels, "image_size": list(trained.image_size)}
    return {
        "format": name,
        "fold": fold,
        "checkpoint": trained.weights.file.name,
        "weights": trained.weights.chosen,
        "step": trained.weights.content.get("global_step"),
        "compared_with": None if difference is None else f"{package} {metadata.version(package)}",
        "largest_difference": difference,
        "classes": list(trained.classes),
        "preprocessing": {**shape, **trained.preprocessing},
        "output": graph.output_name(fold),
        "loss": trained.loss,
        "temperature": trained.temperature,
        "commit": git_commit(),
        "sha256": {file.name: file_sha256(file) for file in sorted(folder.iterdir())},
    }


def compare_processor(
    process: Callable[[Image.Image], Tensor], outputs: Callable[[Tensor], Tensor], trained: ExportModel
) -> Node:
    """How far outputs through `process` are from those through vitlab's evaluation, relative as in the comparison.

    `other_pixels`: the sizes (height x width) whose pixels differ by more than rounding.
    """
    largest, others = 0.0, []
    for seed, (height, width) in enumerate(SIZES):
        image = textured_image(trained.channels, height, width, seed=seed)
        expected, got = trained.transform(image)[None], process(v2.functional.to_pil_image(image))[None]
        std = torch.tensor(trained.std)[:, None, None]
        if got.shape != expected.shape or ((got - expected) * std).abs().mean() * 255 > ROUNDING:
            others.append(f"{height} x {width}")
        with torch.no_grad():
            logits, live = outputs(got), trained.network(expected)
        largest = max(largest, float((logits - live).abs().max() / live.abs().max().clamp(min=1)))
    return {"images": len(SIZES), "largest_difference": largest, "other_pixels": others}


def textured_image(channels: int, height: int, width: int, *, seed: int) -> Tensor:
    """Smooth areas with noise, uint8 [C, H, W]: a shift by a pixel changes both."""
    generator = torch.Generator().manual_seed(seed)
    areas = torch.rand(1, channels, 7, 9, generator=generator)
    smooth = v2.functional.resize(areas, [height, width], v2.InterpolationMode.BILINEAR)[0]
    noise = 0.15 * torch.randn(channels, height, width, generator=generator)
    pixels: Tensor = ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8)
    return pixels
