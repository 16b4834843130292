"""Export a run's network to timm, transformers, ONNX, torch.export or safetensors, with a model card.

    python src/export.py run=runs/NAME/STAMP format=timm         timm.create_model("local-dir:...", pretrained=True)
    python src/export.py run=runs/NAME/STAMP format=hf           transformers' from_pretrained(...)
    python src/export.py run=runs/NAME/STAMP format=onnx fold=true      uint8 images in, probabilities out

The folder `RUN/export/FORMAT`, or `out`, appears once the library has loaded the export and its outputs are equal.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from vitlab.cli.command import command
from vitlab.config.bounds import NonNegativeFloat
from vitlab.config.schema import ConfigView, Node


def problems(read: ConfigView) -> Iterator[str]:
    name, run, checkpoint, out = (read(key, str) for key in ("format", "run", "checkpoint", "out"))
    if name is None or run is None or checkpoint is None or out is None:
        return
    from vitlab.export import export

    part, fold = read("part", str), bool(read("fold", bool))
    known: Any = {"part": part, "name": name, "fold": fold, "channels": read("channels", int), "out": Path(out)}
    yield from export.problems(run=Path(run), checkpoint=checkpoint, **known)


@command("export", check=problems)
def main(
    *,
    run: str,
    format: Literal["safetensors", "timm", "hf", "onnx", "torch_export"],
    checkpoint: str,
    part: Literal["ema", "raw"] | None,
    fold: bool,
    channels: Literal[3] | None,
    tolerance: NonNegativeFloat,
    license: str | None,
    out: str,
    run_dir: str,
) -> Node:
    """Export a network.

    Args:
        run: Folder of the run.
        format: Format of the export.
        checkpoint: A checkpoint in RUN/checkpoints: `best`, `last`, or another name.
        part: Which weights of a checkpoint that has both. None: those that were tested, the averages.
        fold: For onnx and torch_export: put normalization and softmax into the graph (bytes in, probabilities out).
        channels: 3: let a network of gray images take RGB, as many tools open any image. None: the network's channels.
        tolerance: Largest difference allowed between the outputs of the export and those of the network.
        license: License named in the model card, such as mit or apache-2.0. None: none is named.
        out: Folder of the export; it appears only when complete.
        run_dir: Folder of the log. Set by the program.
    """
    from vitlab.evaluation.checkpoint import load_weights
    from vitlab.export import export
    from vitlab.export.checkpoint import color_weights, load_export_model

    weights = load_weights(Path(run), checkpoint, part)
    trained = load_export_model(color_weights(weights) if channels else weights)
    return export.export_network(trained, format, Path(out), fold=fold, tolerance=tolerance, license=license)


if __name__ == "__main__":
    main()
