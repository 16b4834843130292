"""Export the network as a graph that needs no code of vitlab: ONNX or torch.export.

The graph takes any number of images of the size that the network was trained on. With `fold` it also normalizes and
applies softmax (or sigmoid, after training with the sigmoid loss): uint8 images in, probabilities out.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.config.schema import Node
from vitlab.export.checkpoint import ExportModel
from vitlab.runs.record import muted_logs

LARGEST_FILE = 2**31 - 2**24  # bytes of weights in one .onnx: protobuf's limit, less room for the graph
INPUT = "images"
EXAMPLE = 2  # images; with one, the exporter takes the batch size for a constant


class FoldedNetwork(nn.Module):
    """uint8 images [B, C, H, W] -> probabilities [B, classes]."""

    def __init__(self, trained: ExportModel) -> None:
        super().__init__()
        self.prepare, self.network, self.trained = trained.prepare(), trained.network, trained

    def forward(self, images: Tensor) -> Tensor:
        return self.trained.probabilities(self.network(self.prepare(images)))


def graph_module(trained: ExportModel, fold: bool) -> nn.Module:
    return (FoldedNetwork(trained) if fold else trained.network).eval()


def example_input(trained: ExportModel, fold: bool, count: int = EXAMPLE, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, trained.channels, *trained.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images if fold else trained.prepare()(images)


def output_name(fold: bool) -> str:
    return "probabilities" if fold else "logits"


def export_program(trained: ExportModel, fold: bool) -> torch.export.ExportedProgram:
    """The graph, with a dynamic batch size."""
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with torch.no_grad(), muted_logs("torch.export"):
        return torch.export.export(graph_module(trained, fold), (example_input(trained, fold),), dynamic_shapes=shapes)


def write_torch(trained: ExportModel, folder: Path, *, fold: bool) -> None:
    """Write model.pt2."""
    torch.export.save(export_program(trained, fold), folder / "model.pt2")


def load_torch(folder: Path, trained: ExportModel) -> Callable[[Tensor], Tensor]:
    loaded: Callable[[Tensor], Tensor] = torch.export.load(folder / "model.pt2").module()
    return loaded


def write_onnx(trained: ExportModel, folder: Path, *, fold: bool) -> None:
    """Write model.onnx, with 2 GB of weights or more in a second file. Class names and preprocessing are metadata."""
    size = sum(p.numel() * p.element_size() for p in trained.network.parameters())
    names: Any = {"input_names": [INPUT], "output_names": [output_name(fold)]}
    with muted_logs("torch.onnx", "onnxscript", "onnx_ir"):
        program: Any = torch.onnx.export(export_program(trained, fold), **names, dynamo=True, verbose=False)
    known: Node = {"classes": list(trained.classes), "image_size": list(trained.image_size), "loss": trained.loss}
    known |= {"interpolation": trained.interpolation, "crop_fraction": trained.crop_fraction}
    known |= {"temperature": trained.temperature}
    known |= {} if fold else {"mean": list(trained.mean), "std": list(trained.std)}
    program.model.metadata_props.update({key: json.dumps(value) for key, value in known.items()})
    program.save(folder / "model.onnx", external_data=size > LARGEST_FILE)


def load_onnx(folder: Path, trained: ExportModel) -> Callable[[Tensor], Tensor]:
    """The graph in ONNX Runtime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {INPUT: batch.numpy()})[0])
