"""Writes a run's network as other libraries and programs load it, with a model card.

    python src/export.py run=runs/NAME/STAMP format=timm         timm.create_model("local-dir:...", pretrained=True)
    python src/export.py run=runs/NAME/STAMP format=hf           transformers' from_pretrained(...)
    python src/export.py run=runs/NAME/STAMP format=onnx fold=true      bytes in, probabilities out

It goes to `RUN/export/FORMAT`, or to `out`, once what the other library loads gives the network's own outputs.
"""

from pathlib import Path
from typing import Literal

from vitlab import program_checks
from vitlab.cli.command import command
from vitlab.config.schema import Node


@command("export", check=program_checks.export_problems)
def main(
    *,
    run: str,
    format: Literal["safetensors", "timm", "hf", "onnx", "torch_export"],
    checkpoint: str,
    part: Literal["ema", "raw"] | None,
    fold: bool,
    tolerance: float,
    license: str | None,
    out: str,
    overwrite: bool,
    run_dir: str,
) -> Node:
    from vitlab.exporting import formats
    from vitlab.exporting.trained import kept_weights, load

    trained = load(kept_weights(Path(run), checkpoint, part))
    return formats.export(
        trained, format, Path(out), fold=fold, tolerance=tolerance, license=license, overwrite=overwrite
    )


if __name__ == "__main__":
    main()
