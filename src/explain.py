"""Show what a Vision Transformer looks at: attention, rollout and relevance on images, scored, and its own pictures.

    python src/explain.py run=runs/NAME/STAMP
    python src/explain.py run=runs/NAME/STAMP images=photos/cat.jpg target=cat
    python src/explain.py run=runs/NAME/STAMP 'images=[test:17,test:3]'
    python src/explain.py run=runs/NAME/STAMP compare=runs/NAME/OTHER
    python src/explain.py run=timm:vit_small_patch16_224 'images=photos/*.jpg'

`runs/explanations/STAMP/index.html` has all of it.
"""

import json
import logging
from pathlib import Path
from typing import Any, Literal

from vitlab.cli.command import command
from vitlab.config.bounds import PositiveInt
from vitlab.config.printable import one_line
from vitlab.config.schema import Node
from vitlab.evaluation import checks

REMOVED = {"blur": "that of the blurred image", "mean": "of the data's mean color"}
ABOUT_SCORES = """
The area under the probability of the class while patches are removed in the order of a map (deletion: low is good) or
inserted (insertion: high is good). A removed patch is {removed}. random: the mean of {orders} random orders. se: the
standard error of the paired difference."""

# Settings that the demo lacks
OWN = ("images", "target", "compare", "count", "samples", "batch_size", "baseline", "run_dir")

log = logging.getLogger(__name__)


@command("explain", check=checks.explanation_problems, absent=("devices", "data"))
def main(
    *,
    run: str,
    checkpoint: str,
    images: str | list[str] | None,
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
        run: Folder of a run, or weights: a file, a folder, `timm:NAME` or `hf:NAME`.
        checkpoint: Of a run: `best`, `last` or another name.
        images: A file, a folder, a pattern such as `photos/*.jpg`, or several; or rows of a run's split, as in
            `test:17`. None: of the run's validation split, or of its test split if it has none.
        target: The class to explain, by name or number. None: for each image the predicted one.
        compare: Another run, or other weights, for CKA between the blocks of both networks.
        count: Images of which pictures are drawn.
        samples: Images over which scores and the network's numbers are averaged.
        batch_size: Images at a time; their attention maps are in memory.
        baseline: What replaces removed patches in the scores: the blurred image, or the mean color of the data.
        device: Of the computation, such as cpu or cuda.
        run_dir: Folder of the pictures. Set by the program; choose another with `hydra.run.dir`.
    """
    import torch

    from vitlab.evaluation import explanation
    from vitlab.evaluation import network_pictures as pictures
    from vitlab.evaluation.attention import head_attention, trace
    from vitlab.evaluation.images import with_channels
    from vitlab.evaluation.judgement_pictures import draw_gallery
    from vitlab.evaluation.relevance import join_curves, score_table
    from vitlab.evaluation.trained_model import Predictions, load_model
    from vitlab.runs.html_page import Page
    from vitlab.storage.atomic import write_csv

    out = Path(run_dir)
    subject = load_model(run, checkpoint=checkpoint, device=device)
    other = load_model(compare, device=device) if compare else None
    wanted = None if target is None else checks.class_index(subject.classes, target)
    inputs, names = explanation.load_inputs(subject, run, images, samples)
    shown, page = explanation.to_images(subject, inputs), Page(f"What {run} looks at", "explanation")
    statistics, kernels, curves, tokens, classes = [], [], [], list[Any](), list[Any]()
    page.add_section("Images" if target is None else f"Images, for the class {target}")
    for start in range(0, len(inputs), batch_size):
        batch, pixels = inputs[start : start + batch_size].to(device), shown[start : start + batch_size]
        result = explanation.explain(subject, batch, wanted)
        statistics.append(pictures.batch_statistics(result.trace))
        curves.append(explanation.score_maps(subject, batch, result, baseline))
        areas = {name: torch.stack(curve.areas(), dim=1).tolist() for name, curve in curves[-1].items()}
        tokens += result.trace.tokens[-1][: max(0, count - start), result.trace.prefix :]
        if result.probabilities is not None:
            classes += Predictions(result.probabilities, subject.classes).top(3)
        if other is not None:
            with torch.no_grad():
                compared = trace(other.network, other.prepare()(with_channels(pixels, other.channels)).to(device))
            kernels.append(pictures.batch_statistics(compared).kernels)
        for i, name in enumerate(names[start : min(count, start + batch_size)]):
            files = [out / f"{kind}_{start + i}.png" for kind in ("maps", "heads")]
            tiles = pictures.overlay(pixels[i], torch.stack([values[i] for values in result.maps.values()]))
            scores = {k: f"\ndeletion {x[i][0]:.2f}, insertion {x[i][1]:.2f}" for k, x in areas.items()}
            random = scores.get("random", "").replace("\n", "\nrandom: ")
            texts = [f"image{random}", *(key + scores.get(key, "") for key in result.maps)]
            tiles = torch.cat([with_channels(pixels[i : i + 1], 3), tiles])
            draw_gallery(files[0], tiles, texts, columns=len(texts), side=224)
            pictures.draw_heads(files[1], pixels[i], head_attention(result.trace)[i])
            top = ", ".join(f"{label} {share:.1%}" for label, share in (classes[start + i] if classes else ()))
            page.add_picture(files[0], f"{name}: {top}")
            page.add_picture(files[1], f"{name}: attention by block and head")
        log.info("explained %d of %d images", start + len(batch), len(inputs))
    captions, numbers = pictures.draw_network(out, subject.network, result.trace, statistics)
    few = with_channels(shown[:count], 3)
    pictures.draw_tokens(out / "tokens.png", few, torch.stack(tokens), result.trace.grid)
    captions["tokens"] = "Patch tokens after the last block: three principal components as colors, and norms"
    own = [batch.kernels for batch in statistics]
    if own[0].shape[1] > 3:
        networks = one_line(Path(run).name)[-24:], one_line(Path(compare or run).name)[-24:]
        pictures.draw_cka(out / "cka.png", pictures.cka(own, kernels or own), networks)
        captions["cka"] = "Linear CKA between the tokens after two blocks; an image is one example"
    joined = join_curves(curves)
    if rows := score_table(joined):
        table = [list(rows[0]), *(list(row.values()) for row in rows)]
        page.add_section("Scores")
        page.add_text(ABOUT_SCORES.format(removed=REMOVED[baseline], orders=explanation.ORDERS))
        page.add_table(table[0], table[1:])
        write_csv(out / "scores.csv", table)
        parts = {name: (c.shares.tolist(), *(c[k].mean(dim=0).tolist() for k in (1, 2))) for name, c in joined.items()}
        panels = dict[str, Any]()
        for k, part in enumerate(("deletion", "insertion"), start=1):
            panels[f"probability, {part}"] = {name: (lines[0], lines[k], "-") for name, lines in parts.items()}
        pictures.draw_lines(out / "curves.png", "share of the patches", panels)
        page.add_picture(out / "curves.png", "Mean probability of the class while patches are removed and inserted")
        log.info("\n".join("  ".join(f"{'' if cell is None else cell:<20}" for cell in row) for row in table))
    page.add_section("Network")
    for name, caption in captions.items():
        page.add_picture(out / f"{name}.png", caption)
    page.write(out / "index.html")
    results = {"run": run, "baseline": baseline, "scores": rows, "blocks": numbers}
    more = {"images": dict(zip(names, classes, strict=False))}  # none without a head
    (out / "explain.json").write_text(json.dumps(results | more, indent=2))
    log.info("page: %s", out / "index.html")
    return results


if __name__ == "__main__":
    main()
