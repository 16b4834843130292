"""The network as a graph that needs neither vitlab nor its code: ONNX, or torch.export's own.

Any number of images at once, of the one size that the network was trained on. `fold` puts the normalisation before it
and softmax (or sigmoid, where each class was trained by itself) behind it: bytes in, probabilities out.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.config.schema import Node
from vitlab.export.checkpoint import ExportModel, comparison_images
from vitlab.runs.muted_logs import muted_logs
from vitlab.storage.atomic import fsync

LARGEST_FILE = 2**31 - 2**24  # bytes of weights in one .onnx: protobuf's limit, less what the graph takes
INPUT = "images"
EXAMPLE = 2  # images; of one the exporter would believe that it is always one


class FoldedNetwork(nn.Module):
    """uint8 images [B, C, H, W] -> probabilities [B, classes]."""

    def __init__(self, trained: ExportModel) -> None:
        super().__init__()
        self.prepare, self.network, self.loss = trained.prepare(), trained.network, trained.loss

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.prepare(images))
        return logits.softmax(dim=1) if self.loss == "softmax" else logits.sigmoid()


def graph_module(trained: ExportModel, fold: bool) -> nn.Module:
    """What is recorded."""
    return (FoldedNetwork(trained) if fold else trained.network).eval()


def example_input(trained: ExportModel, fold: bool, count: int = EXAMPLE) -> Tensor:
    """What it is given."""
    made = comparison_images(trained, count)
    return made if fold else trained.prepare()(made)


def output_name(fold: bool) -> str:
    """The name of what comes out."""
    return "probabilities" if fold else "logits"


def export_program(trained: ExportModel, fold: bool) -> torch.export.ExportedProgram:
    """The graph, for any number of images."""
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with torch.no_grad(), muted_logs("torch.export"):
        return torch.export.export(graph_module(trained, fold), (example_input(trained, fold),), dynamic_shapes=shapes)


def write_torch(trained: ExportModel, folder: Path, *, fold: bool) -> None:
    """model.pt2."""
    torch.export.save(export_program(trained, fold), folder / "model.pt2")
    fsync(folder / "model.pt2")


def load_torch(folder: Path, trained: ExportModel) -> Callable[[Tensor], Tensor]:
    """The graph, as torch runs it."""
    loaded: Callable[[Tensor], Tensor] = torch.export.load(folder / "model.pt2").module()
    return loaded


def write_onnx(trained: ExportModel, folder: Path, *, fold: bool) -> None:
    """model.onnx; weights of 2 GB and more beside it."""
    size = sum(p.numel() * p.element_size() for p in trained.network.parameters())
    with muted_logs("torch.onnx", "onnxscript", "onnx_ir"):
        program: Any = torch.onnx.export(
            export_program(trained, fold),
            input_names=[INPUT],
            output_names=[output_name(fold)],
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props.update({k: str(v) for k, v in graph_metadata(trained, fold).items()})
    program.save(folder / "model.onnx", external_data=size > LARGEST_FILE)
    for file in folder.glob("model.onnx*"):
        fsync(file)


def graph_metadata(trained: ExportModel, fold: bool) -> Node:
    """What a user of the file has to know, kept in it."""
    known: Node = {"classes": json.dumps(list(trained.classes)), "image_size": list(trained.image_size)}
    return known if fold else known | {"mean": list(trained.mean), "std": list(trained.std)}


def load_onnx(folder: Path, trained: ExportModel) -> Callable[[Tensor], Tensor]:
    """The graph, as ONNX Runtime runs it on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

    def run(batch: Tensor) -> Tensor:
        (found,) = session.run(None, {INPUT: batch.numpy()})
        return torch.from_numpy(found)

    return run


def input_description(trained: ExportModel, fold: bool) -> str:
    """What goes in, in words."""
    height, width = trained.image_size
    kind = "uint8, 0..255" if fold else "float32, normalised"
    return f"[any number, {trained.channels}, {height}, {width}], {kind}"


def usage_onnx(trained: ExportModel, fold: bool) -> str:
    """How to load it."""
    return f"""import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
# images: {input_description(trained, fold)}
# ({output_name(fold)},) = session.run(None, {{"{INPUT}": images}})"""


def usage_torch(trained: ExportModel, fold: bool) -> str:
    """How to load it."""
    return f"""import torch

model = torch.export.load("FOLDER/model.pt2").module()
# images: {input_description(trained, fold)}
# {output_name(fold)} = model(images)"""
