"""Show what a Vision Transformer looks at: attention, rollout and relevance on images, scored, and its own pictures.

    python src/explain.py run=runs/NAME/STAMP
    python src/explain.py run=runs/NAME/STAMP images=photos/cat.jpg target=cat
    python src/explain.py run=runs/NAME/STAMP compare=runs/NAME/OTHER
    python src/explain.py model.weights=timm:vit_small_patch16_224 'images=photos/*.jpg'

`index.html` has all pictures, `scores.csv` the maps' deletion and insertion next to random orders of the patches, and
`explain.json` the numbers.
"""

import json
import logging
from pathlib import Path
from typing import Literal

from vitlab.cli.command import command
from vitlab.config.bounds import PositiveInt
from vitlab.config.schema import Node
from vitlab.evaluation import checks

log = logging.getLogger(__name__)


@command("explain", check=checks.explain_problems, absent=("devices", "data"))
def main(
    *,
    run: str | None,
    checkpoint: str,
    model: Node,
    images: str | None,
    target: str | int | None,
    compare: str | None,
    count: PositiveInt,
    samples: PositiveInt,
    batch_size: PositiveInt,
    baseline: Literal["blur", "mean"],
    device: str,
    run_dir: str,
) -> Node:
    """Explain a network.

    Args:
        run: Folder of a run; images of its validation split, or of its test split, are explained.
        checkpoint: Which of the run's checkpoints: `best`, `last` or another name.
        model: In place of a run, `model.weights`: a file, a folder, timm:NAME or hf:NAME.
        images: An image, a folder, or a pattern such as 'photos/*.jpg'. None: the run's.
        target: The class to explain, by name or number. None: for each image the predicted one.
        compare: Another run, or other weights, for CKA between the blocks of both networks.
        count: Images of which pictures are drawn.
        samples: Images over which scores and the network's numbers are averaged.
        batch_size: Images at a time; their attention maps are in memory.
        baseline: What replaces removed patches in the scores: the blurred image, or the mean color of the data.
        device: Of the computation, such as cpu or cuda.
        run_dir: Folder of the pictures. Set by the program; choose another with `hydra.run.dir`.
    """
    from vitlab.evaluation import explanation
    from vitlab.evaluation.trained_model import load_model
    from vitlab.runs.html_page import Page
    from vitlab.storage.csv_files import write_csv

    source, out = run or model["weights"], Path(run_dir)
    subject = load_model(source, checkpoint=checkpoint, device=device)
    other = load_model(compare, device=device) if compare else None
    wanted = None if target is None else explanation.class_index(subject.classes, target)
    inputs, names = explanation.load_inputs(subject, images, run, samples)
    page, settings = Page(f"What {source} looks at", "explanation"), {"count": count, "batch_size": batch_size}
    scores, numbers = explanation.explain_images(
        subject, inputs, names, page, out, target=wanted, other=other, baseline=baseline, **settings
    )
    page.write(out / "index.html")
    (out / "explain.json").write_text(json.dumps({"source": source, "baseline": baseline, "scores": scores, **numbers}))
    if scores:
        write_csv(out / "scores.csv", [list(scores[0]), *(list(row.values()) for row in scores)])
    for row in scores:
        log.info(
            "  ".join(f"{key} {value:.3f}" if isinstance(value, float) else str(value) for key, value in row.items())
        )
    log.info("page: %s", out / "index.html")
    return {"page": str(out / "index.html"), "scores": scores}


if __name__ == "__main__":
    main()
