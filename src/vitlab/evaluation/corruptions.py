"""The corruptions of ImageNet-C (https://arxiv.org/abs/1903.12261), and the errors on images with them.

Numbers, and the order of random draws, are those of https://github.com/hendrycks/robustness; a test compares. Lengths
in pixels are meant for images of 224 x 224, and don't scale.
"""

import io
import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from vitlab.data.datamodule import DataModule
from vitlab.evaluation.checks import CORRUPTIONS, FROST
from vitlab.evaluation.images import with_channels
from vitlab.evaluation.network_pictures import draw_lines
from vitlab.storage.atomic import write_csv

Array = NDArray[Any]  # images are [H, W, 3] with values from 0 to 1
blur = partial(ndimage.gaussian_filter, mode="nearest", axes=(0, 1))

log = logging.getLogger(__name__)


def to_bytes(x: Array) -> Array:
    return (255 * np.clip(x, 0, 1) + 1e-6).astype(np.uint8)


def glass_blur(x: Array, rng: Generator, sigma: float, reach: int, rounds: int) -> Array:
    height, width = x.shape[:2]
    image, pixel = to_bytes(blur(x, sigma)), list(range(height * width))
    rows, columns = np.meshgrid(*(np.arange(side - reach, reach, -1) for side in (height, width)), indexing="ij")
    for _ in range(rounds):
        dx, dy = rng.integers(-reach, reach, (*rows.shape, 2)).transpose(2, 0, 1)
        places, others = rows * width + columns, (rows + dy) * width + columns + dx
        for place, other in zip(places.flat, others.flat, strict=True):
            pixel[place] = pixel[other]  # the published exchange of two views is a copy
    return np.asarray(blur(image.reshape(-1, 3)[pixel].reshape(x.shape) / 255, sigma))


def defocus_blur(x: Array, rng: Generator, radius: int, sigma: float) -> Array:
    reach, taps = max(8, radius), np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    disk = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= radius
    weights, kernel = np.exp(-0.5 * (taps / sigma) ** 2), disk / disk.sum()
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, weights / weights.sum(), axis, mode="mirror")
    return np.asarray(ndimage.correlate(x, kernel[..., None], mode="mirror"))


def move(x: Array, radius: float, sigma: float, angle: float) -> Array:
    """ImageMagick's motion blur: half a Gaussian along a line of pixels, in 8 bits."""
    steps, moved = np.arange(2 * radius + 1), np.zeros(x.shape)
    weights, pad = np.exp(-(steps**2) / (2 * sigma**2)), len(steps)
    dx, dy = (pad + np.ceil(steps * f(np.deg2rad(angle)) - 0.5).astype(int) for f in (np.cos, np.sin))
    padded = np.pad(x, [(pad, pad), (pad, pad), (0, 0)][: x.ndim], mode="edge")
    for weight, i, j in zip(weights / weights.sum(), dy, dx, strict=True):
        moved += weight * padded[i : i + x.shape[0], j : j + x.shape[1]]
    return to_bytes(moved) / 255


def enlarge(x: Array, factor: float) -> Array:
    """The center of an image, enlarged to its size."""
    parts = [(side, int(np.ceil(side / factor))) for side in x.shape[:2]]
    inner = x[tuple(slice((side - n) // 2, (side - n) // 2 + n) for side, n in parts)]
    large = np.asarray(ndimage.zoom(inner, (factor, factor, 1)[: x.ndim], order=1))
    (i, height), (j, width) = (((n - side) // 2, side) for n, (side, _) in zip(large.shape, parts, strict=False))
    return large[i : i + height, j : j + width]


def snow(x: Array, rng: Generator, *values: float) -> Array:
    mean, std, zoom, least, radius, sigma, share = values
    flakes = enlarge(rng.normal(mean, std, x.shape[:2]), zoom)
    flakes = move(to_bytes(flakes * (flakes >= least)) / 255, radius, sigma, rng.uniform(-135, -45))[..., None]
    brighter = np.maximum(x, 1.5 * (x @ (0.299, 0.587, 0.114))[..., None] + 0.5)
    return share * x + (1 - share) * brighter + flakes + np.rot90(flakes, 2)


def frost(x: Array, rng: Generator, image: float, ice: float, folder: str) -> Array:
    photograph = np.asarray(Image.open(f"{folder}/{FROST[rng.integers(5)]}").convert("RGB"))
    i, j = (rng.integers(0, n - side) for n, side in zip(photograph.shape[:2], x.shape[:2], strict=True))
    return image * x + ice * photograph[i : i + x.shape[0], j : j + x.shape[1]] / 255


def fog(x: Array, rng: Generator, amount: float, decay: float) -> Array:
    """Add heights of the diamond-square algorithm on a torus."""
    step, wibble = max(256, 1 << (max(x.shape[:2]) - 1).bit_length()), 100.0
    heights = np.zeros((step, step))

    def fill(part: Array, total: Array) -> None:
        part[:] = total / 4 + wibble * rng.uniform(-wibble, wibble, total.shape)

    while step >= 2:
        half = step // 2
        corners, centers = heights[::step, ::step], heights[half::step, half::step]
        pairs = corners + np.roll(corners, -1, 0)
        fill(centers, pairs + np.roll(pairs, -1, 1))
        fill(heights[::step, half::step], centers + np.roll(centers, 1, 0) + corners + np.roll(corners, -1, 1))
        fill(heights[half::step, ::step], centers + np.roll(centers, 1, 1) + corners + np.roll(corners, -1, 0))
        step, wibble = half, wibble / decay
    heights = (heights - heights.min()) / np.ptp(heights)
    return np.asarray((x + amount * heights[: x.shape[0], : x.shape[1], None]) * x.max() / (x.max() + amount))


def edges(x: Array, low: float, high: float) -> Array:
    """Canny's edges of an image [H, W], as OpenCV finds them."""
    dx, dy = (ndimage.sobel(np.pad(np.float64(x), 1, mode="edge"), axis)[1:-1, 1:-1] for axis in (1, 0))
    size, slope = np.abs(dx) + np.abs(dy), np.abs(dy) / np.maximum(np.abs(dx), 1e-9)
    padded, i, (rows, columns) = np.pad(size, 1), slope > 2**0.5 - 1, np.indices(x.shape) + 1
    j = np.where((dx * dy < 0) & i, -1, 1) * (slope < 2**0.5 + 1)  # with i: the next place across an edge
    before, after = padded[rows - i, columns - j], padded[rows + i, columns + j]
    top = (size > before) & ((size > after) | (size == after) & ((i == 0) | (j == 0)))
    regions = ndimage.label(top & (size > low), np.ones((3, 3)))[0]
    return np.isin(regions, regions[top & (size > high)])


def spatter(x: Array, rng: Generator, *values: float) -> Array:
    """Mud, or drops of water that are lit from one side."""
    mean, std, sigma, least, amount, is_mud = values
    layer = blur(rng.normal(mean, std, x.shape[:2]), sigma)
    if is_mud:
        share = blur(np.float64(layer > least), amount)[..., None]
        share *= share >= 0.8
        return np.asarray(x * (1 - share) + share * np.array([63, 42, 20]) / 255)
    layer, mean_of_9 = to_bytes(layer * (layer >= least)), partial(ndimage.uniform_filter, size=3, mode="mirror")
    nearest = ndimage.distance_transform_edt(~edges(layer, 50, 150), return_distances=False, return_indices=True)
    few, many = np.sort(np.abs(np.indices(layer.shape) - nearest), axis=0)  # OpenCV's steps: 1, 1.4 and 2.1969 (knight)
    distance = np.where(2 * few > many, 2.1969 * (many - few) + 1.4 * (2 * few - many), many + 0.1969 * few)
    levels = np.uint8(mean_of_9(np.minimum(distance, 20)) + 1e-6)
    sums = np.cumsum(np.bincount(levels.flat, minlength=256))
    equalized = np.round(255 * (sums - sums[levels.min()]) / max(1, levels.size - sums[levels.min()]))[levels]
    light = ndimage.correlate(equalized, [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], mode="mirror")
    drops = layer * np.round(mean_of_9(np.clip(light, 0, 255)))
    return np.asarray(x + (amount * drops / max(1, drops.max()))[..., None] * np.array([175, 238, 238]) / 255)


def change_hsv(x: Array, channel: int, factor: float, more: float) -> Array:
    hsv = rgb_to_hsv(x)
    hsv[..., channel] = np.clip(hsv[..., channel] * factor + more, 0, 1)
    return np.asarray(hsv_to_rgb(hsv))


def jpeg_compression(x: Array, rng: Generator, quality: int) -> Array:
    Image.fromarray(to_bytes(x)).save(file := io.BytesIO(), "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / 255


def resize(x: Array, height: float, width: float) -> Array:
    size = max(1, int(width)), max(1, int(height))
    return np.asarray(Image.fromarray(to_bytes(x)).resize(size, Image.Resampling.BOX)) / 255


def elastic_transform(x: Array, rng: Generator, alpha: float, sigma: float, shift: float) -> Array:
    """A random affine map, then random displacements; the published code has 244 for 224."""
    center, third = np.array(x.shape[:2]) // 2, min(x.shape[:2]) // 3
    points = center + third * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + rng.uniform(-244 * shift, 244 * shift, points.shape)
    back = np.linalg.solve(np.c_[moved, np.ones(3)], points)  # (x, y, 1) of the result -> (x, y) of the image
    rows, columns, channels = np.indices(x.shape)
    places = [columns * back[0, k] + rows * back[1, k] + back[2, k] for k in (1, 0)]
    bent = ndimage.map_coordinates(x, [*places, channels], order=1, mode="mirror")
    random = (rng.uniform(-1, 1, x.shape[:2]) for _ in range(2))
    dx, dy = (244 * alpha * ndimage.gaussian_filter(r, 244 * sigma, mode="reflect", truncate=3) for r in random)
    places = [rows + dy[..., None], columns + dx[..., None], channels]
    return np.asarray(ndimage.map_coordinates(bent, places, order=1, mode="reflect"))


FUNCTIONS: dict[str, Any] = {  # of image, generator and the parameters of a severity
    "gaussian_noise": lambda x, rng, c: x + rng.normal(size=x.shape, scale=c),
    "shot_noise": lambda x, rng, c: rng.poisson(x * c) / c,
    "impulse_noise": lambda x, rng, c: np.where(rng.random(x.shape) <= c, rng.random(x.shape) <= 0.5, x),
    "speckle_noise": lambda x, rng, c: x + x * rng.normal(size=x.shape, scale=c),
    "gaussian_blur": lambda x, rng, c: np.asarray(blur(x, c)),
    "motion_blur": lambda x, rng, radius, sigma: move(x, radius, sigma, rng.uniform(-45, 45)),
    "zoom_blur": lambda x, rng, *c: np.mean([x, *(enlarge(x, float(z)) for z in np.arange(1, *c))], axis=0),
    "contrast": lambda x, rng, c: (x - (mean := x.mean(axis=(0, 1)))) * c + mean,
    "brightness": lambda x, rng, c: change_hsv(x, 2, 1, c),
    "pixelate": lambda x, rng, c: resize(resize(x, c * x.shape[0], c * x.shape[1]), *x.shape[:2]),
    "saturate": lambda x, rng, *c: change_hsv(x, 1, *c),
    "spatter": spatter,
    **{f.__name__: f for f in (defocus_blur, glass_blur, snow, frost, fog, elastic_transform, jpeg_compression)},
}


class Corrupted:
    """Images of an evaluation, whose corruption depends on its name, its severity and the image's number alone."""

    def __init__(self, dataset: Any, name: str, severity: int, frost_dir: str | None) -> None:
        values = CORRUPTIONS[name]["severities"][severity - 1]
        self.values = [*(values if isinstance(values, list) else [values]), *[frost_dir] * (name == "frost")]
        self.dataset, self.function, self.seed = dataset, name, ([*CORRUPTIONS].index(name), severity)

    def __getitems__(self, plan: Any) -> Any:
        batch = self.dataset.__getitems__(plan)
        for image, index in zip(batch.images, plan.indices, strict=True):
            x, rng = with_channels(image, 3).permute(1, 2, 0).numpy() / 255, np.random.default_rng([*self.seed, index])
            changed = to_bytes(FUNCTIONS[self.function](x, rng, *self.values))
            image[:] = with_channels(torch.from_numpy(changed).permute(2, 0, 1), len(image))
        return batch


def measure_corruptions(
    trainer: Trainer, module: Any, data: DataModule, folder: Path, names: Any, severities: Any, frost_dir: str | None
) -> dict[str, float]:
    """Write the errors on the first rank; every rank calls it. Returns their mean without the extra ones, and `mce`."""
    errors = dict[str, list[float]]()
    for name in CORRUPTIONS if names == "all" else names:
        for severity in severities if name != "frost" or frost_dir else ():
            data.view = partial(Corrupted, name=name, severity=severity, frost_dir=frost_dir)
            trainer.test(module, data, verbose=False)
            correct, count = (int(trainer.callback_metrics[f"{module.split}/{key}"]) for key in ("correct", "count"))
            errors.setdefault(name, []).append(round(1 - correct / count, 6))
        log.info("%s: error %s", name, errors.get(name, "unknown without frost_dir"))
    data.view, means = None, {name: float(np.mean(own)) for name, own in errors.items()}
    known = {name: own["alexnet"] for name, own in CORRUPTIONS.items() if "alexnet" in own}
    summary = {"mean_error": float(np.mean([means[name] for name in known if name in means] or [*means.values()]))}
    if data.num_classes == 1000 and not known.keys() - means.keys() and len(severities) == 5:
        summary["mce"] = float(np.mean([100 * means[name] / error for name, error in known.items()]))
    if trainer.is_global_zero:
        lines = [[name, *own, means[name]] for name, own in errors.items()]
        write_csv(folder / "corruptions.csv", [["corruption", *map(str, severities), "mean"], *lines])
        styles = [f"C{number}{mark}" for mark in ("o-", "s--") for number in range(10)]
        panel = {name: (severities, errors[name], style) for name, style in zip(errors, styles, strict=False)}
        draw_lines(folder / "corruptions.png", "severity", {"error": panel})
    return summary
