"""Try a network in the browser: drop an image, see its most probable classes and what the network looks at.

    python src/demo.py run=runs/NAME/STAMP
    python src/demo.py run=timm:vit_small_patch16_224 port=8000

Of a run, some validation images are examples. The page is on this machine alone and sends nothing elsewhere. It needs
`pip install -e '.[demo]'`.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

import explain
from vitlab.cli.checks import with_settings_of
from vitlab.cli.command import command
from vitlab.config.bounds import PositiveInt
from vitlab.config.printable import one_line
from vitlab.config.schema import Node
from vitlab.evaluation import checks
from vitlab.runs.folder import CONFIG, read_config

EXAMPLES = 6


@command("demo", check=checks.demo_problems, absent=("devices", "data"))
@with_settings_of(explain.main, without=explain.OWN)
def main(
    *, host: str, port: Annotated[int, Ge(1), Le(65535)] | None, share: bool, max_megabytes: PositiveInt, **network: Any
) -> Node:
    """Serve a page with a network until Ctrl-C.

    Args:
        host: Address of the page; 0.0.0.0 lets other machines in.
        port: Port of the page. None: the first free one from 7860.
        share: Make the page public for a week, through a server of Gradio's makers.
        max_megabytes: Largest upload.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    import gradio
    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize, to_pil_image

    from vitlab.evaluation import explanation
    from vitlab.evaluation.attention import head_attention
    from vitlab.evaluation.network_pictures import overlay
    from vitlab.evaluation.trained_model import Predictions, load_model

    run, device = network["run"], network["device"]
    subject, in_run = load_model(run, checkpoint=network["checkpoint"], device=device), (Path(run) / CONFIG).is_file()
    title = f"{read_config(Path(run)).get('name')}, {Path(run).name}" if in_run else Path(run).name
    blank = torch.zeros(1, subject.channels, *subject.image_size)
    few = explanation.load_inputs(subject, run, None, EXAMPLES)[0] if in_run else blank
    known = explanation.explain(subject, few.to(device))
    depth, heads = len(known.trace.maps), known.trace.maps[0].shape[1]

    def look(image: Any, name: str, block: int, head: int) -> tuple[dict[str, float] | None, Any]:
        if image is None:
            return None, None
        try:
            inputs = subject.transform(image)[None]
        except ValueError as error:  # too large, or in no mode of images
            raise gradio.Error(str(error)) from error
        result, top = explanation.explain(subject, inputs.to(device)), None
        if result.probabilities is not None:
            top = dict(Predictions(result.probabilities, subject.classes).top(5)[0])
        values = head_attention(result.trace)[0]  # L h R S
        values = values[[block] if block >= 0 else slice(None)][:, [head] if head >= 0 else slice(None)]
        values = values.mean(dim=(0, 1)) if name == "attention" else result.maps[name][0]
        shown = overlay(explanation.to_images(subject, inputs)[0], values[None])[0]
        return top, to_pil_image(resize(shown, [448], InterpolationMode.NEAREST))

    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{number}.png" for number in range(len(few) if in_run else 0)]
        for file, pixels in zip(files, explanation.to_images(subject, few), strict=False):
            to_pil_image(pixels).save(file)
        inputs = [
            gradio.Image(type="pil", image_mode=None, sources=["upload", "clipboard"], label="image"),
            gradio.Radio([*known.maps], value="attention", label="map"),
            gradio.Slider(-1, depth - 1, value=depth - 1, step=1, label="block of the attention; -1: mean"),
            gradio.Slider(-1, heads - 1, value=-1, step=1, label="head of the attention; -1: mean"),
        ]
        outputs = [gradio.Label(label="classes"), gradio.Image(format="png", label="map", buttons=["fullscreen"])]
        options: Any = {"live": True, "flagging_mode": "never", "cache_examples": False, "analytics_enabled": False}
        options |= {"examples": [[file, None, None, None] for file in files] or None, "delete_cache": (3600, 3600)}
        page = gradio.Interface(look, inputs, outputs, title=f"vitlab: {one_line(title)}", **options)
        plain = gradio.themes.Default(font="sans-serif", font_mono="monospace")  # the usual fonts are Google's
        limits: Any = {"max_file_size": f"{max_megabytes}mb", "footer_links": [], "theme": plain}
        page.launch(server_name=host, server_port=port, share=share, **limits)
    return {}


if __name__ == "__main__":
    main()
