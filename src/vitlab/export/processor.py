"""Compare the exported preprocessing with the one that was evaluated, on images of odd sizes."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from vitlab.config.schema import Node
from vitlab.export.checkpoint import ExportModel

SIZES = (
    *((101, 67), (67, 101), (83, 83), (129, 201), (200, 131), (57, 240), (241, 99), (75, 100), (150, 151)),
    *((333, 500), (375, 500), (500, 333)),  # of photos
)
ROUNDING = 2.0  # of 255: mean differences above it aren't those of rounding


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
