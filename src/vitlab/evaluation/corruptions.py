"""The 15 + 4 corruptions of ImageNet-C (https://arxiv.org/abs/1903.12261), five severities of each.

Numbers, and the order of random draws, are those of https://github.com/hendrycks/robustness; a test compares with its
results. Lengths in pixels are meant for images of 224 x 224, and don't scale.
"""

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from vitlab.evaluation.checks import FROST

Array = NDArray[Any]  # images are [H, W, 3] with values from 0 to 1

BOX = Image.Resampling.BOX


def to_bytes(x: Array) -> Array:
    return np.uint8(255 * np.clip(x, 0, 1) + 1e-6)


def blur(x: Array, sigma: float) -> Array:
    return np.asarray(ndimage.gaussian_filter(x, (sigma, sigma, 0)[: x.ndim], mode="nearest"))


def glass_blur(x: Array, rng: Generator, sigma: float, reach: int, rounds: int) -> Array:
    height, width = x.shape[:2]
    image, pixel = to_bytes(blur(x, sigma)), list(range(height * width))
    rows, columns = np.meshgrid(*(np.arange(side - reach, reach, -1) for side in (height, width)), indexing="ij")
    for _ in range(rounds):
        dx, dy = rng.integers(-reach, reach, (*rows.shape, 2)).transpose(2, 0, 1)
        places, others = rows * width + columns, (rows + dy) * width + columns + dx
        for place, other in zip(places.flat, others.flat, strict=True):
            pixel[place] = pixel[other]  # the published exchange of two views is a copy
    return blur(image.reshape(-1, 3)[pixel].reshape(x.shape) / 255, sigma)


def defocus_blur(x: Array, rng: Generator, radius: int, sigma: float) -> Array:
    reach, taps = max(8, radius), np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    disk = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= radius
    weights, kernel = np.exp(-0.5 * (taps / sigma) ** 2), disk / disk.sum()
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, weights / weights.sum(), axis, mode="mirror")
    return np.asarray(ndimage.correlate(x, kernel[..., None], mode="mirror"))


def move(x: Array, radius: float, sigma: float, angle: float) -> Array:
    """ImageMagick's motion blur: half a Gaussian along a line of whole pixels, in 8 bits."""
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
    return (x + amount * heights[: x.shape[0], : x.shape[1], None]) * x.max() / (x.max() + amount)


def change_hsv(x: Array, channel: int, factor: float, more: float) -> Array:
    hsv = rgb_to_hsv(x)
    hsv[..., channel] = np.clip(hsv[..., channel] * factor + more, 0, 1)
    return hsv_to_rgb(hsv)


def pixelate(x: Array, rng: Generator, factor: float) -> Array:
    size, few = (x.shape[1], x.shape[0]), (max(1, int(x.shape[1] * factor)), max(1, int(x.shape[0] * factor)))
    return np.asarray(Image.fromarray(to_bytes(x)).resize(few, BOX).resize(size, BOX)) / 255


def jpeg_compression(x: Array, rng: Generator, quality: int) -> Array:
    Image.fromarray(to_bytes(x)).save(file := io.BytesIO(), "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / 255


def elastic(x: Array, rng: Generator, alpha: float, sigma: float, shift: float) -> Array:
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


def edges(x: Array, low: float, high: float) -> Array:
    """Canny's edges of an image [H, W], as OpenCV finds them."""
    dx, dy = (ndimage.sobel(np.pad(np.float64(x), 1, mode="edge"), axis)[1:-1, 1:-1] for axis in (1, 0))
    size, slope = np.abs(dx) + np.abs(dy), np.abs(dy) / np.maximum(np.abs(dx), 1e-9)
    padded, i, (rows, columns) = np.pad(size, 1), slope > 2**0.5 - 1, np.indices(x.shape) + 1
    j = np.where((dx * dy < 0) & i, -1, 1) * (slope < 2**0.5 + 1)  # with i: the next place across an edge
    before, after = padded[rows - i, columns - j], padded[rows + i, columns + j]
    top = (size > before) & ((size > after) | (size == after) & ((i == 0) | (j == 0)))
    regions = ndimage.label(top & (size > low), np.ones((3, 3)))[0]
    return np.isin(regions, np.unique(regions[top & (size > high)])) & (regions > 0)


def spatter(x: Array, rng: Generator, *values: float) -> Array:
    mean, std, sigma, least, amount, is_mud = values
    layer = blur(rng.normal(mean, std, x.shape[:2]), sigma)
    if is_mud:
        share = blur(np.float64(layer > least), amount)[..., None]
        share *= share >= 0.8
        return x * (1 - share) + share * np.array([63, 42, 20]) / 255
    layer, mean_of_9 = to_bytes(layer * (layer >= least)), partial(ndimage.uniform_filter, size=3, mode="mirror")
    nearest = ndimage.distance_transform_edt(~edges(layer, 50, 150), return_distances=False, return_indices=True)
    few, many = np.sort(np.abs(np.indices(layer.shape) - nearest), axis=0)  # OpenCV's steps: 1, 1.4 and 2.1969 (knight)
    distance = np.where(2 * few > many, 2.1969 * (many - few) + 1.4 * (2 * few - many), many + 0.1969 * few)
    levels = np.uint8(mean_of_9(np.minimum(distance, 20)) + 1e-6)
    sums = np.cumsum(np.bincount(levels.flat, minlength=256))
    equalized = np.round(255 * (sums - sums[levels.min()]) / max(1, levels.size - sums[levels.min()]))[levels]
    light = ndimage.correlate(equalized, [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], mode="mirror")
    drops = layer * np.round(mean_of_9(np.clip(light, 0, 255)))
    return x + (amount * drops / max(1, drops.max()))[..., None] * np.array([175, 238, 238]) / 255


# Functions of image, generator and parameters, and these for each severity. The last four are the extra ones.
CORRUPTIONS: dict[str, tuple[Callable[..., Array], list[Any]]] = {
    "gaussian_noise": (lambda x, g, c: x + g.normal(size=x.shape, scale=c), [.08, .12, .18, .26, .38]),
    "shot_noise": (lambda x, g, c: g.poisson(x * c) / c, [60, 25, 12, 5, 3]),
    "impulse_noise": (lambda x, g, c: np.where(g.random(x.shape) <= c, g.random(x.shape) <= .5, x),
                      [.03, .06, .09, .17, .27]),
    "defocus_blur": (defocus_blur, [(3, .1), (4, .5), (6, .5), (8, .5), (10, .5)]),
    "glass_blur": (glass_blur, [(.7, 1, 2), (.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)]),
    "motion_blur": (lambda x, g, *c: move(x, *c, g.uniform(-45, 45)), [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)]),
    "zoom_blur": (lambda x, g, *c: np.mean([x, *(enlarge(x, factor) for factor in np.arange(1, *c))], axis=0),
                  [(1.11, .01), (1.16, .01), (1.21, .02), (1.26, .02), (1.31, .03)]),
    "snow": (snow, [(.1, .3, 3, .5, 10, 4, .8), (.2, .3, 2, .5, 12, 4, .7), (.55, .3, 4, .9, 12, 8, .7),
                    (.55, .3, 4.5, .85, 12, 8, .65), (.55, .3, 2.5, .85, 12, 12, .55)]),
    "frost": (frost, [(1, .4), (.8, .6), (.7, .7), (.65, .7), (.6, .75)]),
    "fog": (fog, [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)]),
    "brightness": (lambda x, g, c: change_hsv(x, 2, 1, c), [.1, .2, .3, .4, .5]),
    "contrast": (lambda x, g, c: (x - (mean := x.mean(axis=(0, 1)))) * c + mean, [.4, .3, .2, .1, .05]),
    "elastic_transform": (elastic, [(2, .7, .1), (2, .08, .2), (.05, .01, .02), (.07, .01, .02), (.12, .01, .02)]),
    "pixelate": (pixelate, [.6, .5, .4, .3, .25]),
    "jpeg_compression": (jpeg_compression, [25, 18, 15, 10, 7]),
    "speckle_noise": (lambda x, g, c: x + x * g.normal(size=x.shape, scale=c), [.15, .2, .35, .45, .6]),
    "gaussian_blur": (lambda x, g, c: blur(x, c), [1, 2, 3, 4, 6]),
    "spatter": (spatter, [(.65, .3, 4, .69, .6, 0), (.65, .3, 3, .68, .6, 0), (.65, .3, 2, .68, .5, 0),
                          (.65, .3, 1, .65, 1.5, 1), (.67, .4, 1, .65, 1.5, 1)]),
    "saturate": (lambda x, g, *c: change_hsv(x, 1, *c), [(.3, 0), (.1, 0), (2, 0), (5, .1), (20, .2)]),
}  # fmt: skip
