"""How far crops are from those of a full decoding that torch resizes: in pixels, and in a network's logits.

Beside ours stands the same crop, fully decoded and resized by Pillow: what usual pipelines differ by among themselves.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from vitlab.benchmarking import peers
from vitlab.benchmarking.folders import Interpolation
from vitlab.data.augment import Prepare
from vitlab.data.decode import decode, quiet
from vitlab.data.jpeg import Box, decode_crop
from vitlab.data.source import IMAGENET_MEAN, IMAGENET_STD

FILES, THROUGH_NETWORK = 64, 16  # so many are looked at, and of so many of these the logits


def quality(files: Sequence[str], size: int, interpolation: Interpolation, *, scaled: bool = False) -> dict[str, float]:
    """Of random crops resized to `size`, ours and Pillow's: the mean |difference| of pixels, of 255, and that of the
    logits of an untrained ViT-S/16, as a share of their standard deviation over the images.
    """
    chance, chosen = random.Random(0), spread(len(files), FILES)
    with quiet():
        rows = [crops(Path(files[index]).read_bytes(), size, interpolation, chance, scaled=scaled) for index in chosen]
    ours, pillows, whole = (torch.stack(images) for images in zip(*rows, strict=True))
    few, logits = torch.tensor(spread(len(rows), THROUGH_NETWORK)), untrained(size)
    expected, found = logits(whole[few]), {}
    for pixels, effect, images in (
        ("pixels differ", "logits differ", ours),
        ("Pillow's differ", "Pillow's logits differ", pillows),
    ):
        found[pixels] = float((images.float() - whole.float()).abs().mean())
        found[effect] = float((logits(images[few]) - expected).abs().mean() / expected.std(dim=0).mean())
    return found


def spread(length: int, most: int) -> list[int]:
    """At most so many of `range(length)`, at even distances: files are sorted by their classes."""
    return [place * length // most for place in range(most)] if length > most else list(range(length))


def crops(
    data: bytes, size: int, interpolation: Interpolation, chance: random.Random, *, scaled: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """A random part of an image, uint8 [3, size, size]: ours, Pillow's, and torch's of the full decoding."""
    image, mode = decode(data), v2.InterpolationMode(interpolation)
    height, width = (chance.randint(side // 3, side) for side in image.shape[-2:])
    top, left = chance.randint(0, image.shape[-2] - height), chance.randint(0, image.shape[-1] - width)
    box = Box(top, left, height, width)
    whole = v2.functional.resized_crop(image, *box, [size, size], mode, antialias=True)
    crop = v2.functional.to_pil_image(image[:, top : top + height, left : left + width])
    pillow = v2.functional.pil_to_tensor(crop.resize((size, size), Image.Resampling[interpolation.upper()]))
    return decode_crop(data, lambda *_: box, (size, size), mode, scaled=scaled), pillow, whole


def untrained(size: int) -> Callable[[Tensor], Tensor]:
    """uint8 images [N, 3, size, size] -> logits of a ViT-S/16 whose weights are always the same; of the images, what
    whole patches cover.
    """
    patch = min(16, size)
    side = size // patch * patch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = peers.vitlab(replace(peers.SIZES["s16"], image=side, patch=patch)).eval()
    prepare = Prepare(image_size=(side, side), mean=IMAGENET_MEAN, std=IMAGENET_STD)

    @torch.inference_mode()
    def logits(images: Tensor) -> Tensor:
        found: Tensor = network(prepare(images[..., :side, :side]))
        return found

    return logits
