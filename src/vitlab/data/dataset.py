"""Map-style data sets that answer with whole batches: from memory, or decoded from files in the workers.

A loader whose batch sampler yields a `BatchPlan` hands it to `__getitems__`; so a batch carries where it
stands in training. What a file becomes depends on (seed, epoch, index) alone, never on the workers.
"""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from vitlab.data.augment import Augment
from vitlab.data.sampler import BatchPlan, stable_seed
from vitlab.data.sources import Split

try:
    from torchvision.io import decode_image
except ImportError:  # its removal is announced; Pillow gives the same pixels at half the speed
    decode_image = None

BICUBIC, BILINEAR = v2.InterpolationMode.BICUBIC, v2.InterpolationMode.BILINEAR


class TrainBatch(NamedTuple):
    """A device's part of one optimizer step; uint8 as loaded, float and normalised once on the device."""

    images: Tensor  # [b, C, H, W]
    targets: Tensor  # int64 [b], or float [b, classes] under Mixup or CutMix
    # images of the whole step, over all devices and accumulated batches
    count: int  # type: ignore[assignment]  # tuple has a method of this name
    epoch: int
    step: int  # optimizer step within the epoch
    micro: int = 0  # which part of the step


class EvalBatch(NamedTuple):
    """A device's batch of evaluation."""

    images: Tensor  # [b, C, H, W]
    targets: Tensor  # int64 [b]


def make_batch(images: Tensor, targets: Tensor, plan: BatchPlan, training: bool) -> TrainBatch | EvalBatch:
    if training:
        return TrainBatch(images, targets, plan.count, plan.epoch, plan.step, plan.micro)
    return EvalBatch(images, targets)


class MemoryDataset(Dataset[TrainBatch | EvalBatch]):
    """A split in memory: a batch is one selection of rows, uint8 and unchanged."""

    def __init__(self, split: Split, *, training: bool) -> None:
        assert split.images is not None
        self.images, self.labels, self.training = split.images, split.labels, training

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, plan: BatchPlan) -> TrainBatch | EvalBatch:
        rows = torch.tensor(plan.indices)
        return make_batch(self.images[rows], self.labels[rows], plan, self.training)


class FilesDataset(Dataset[TrainBatch | EvalBatch]):
    """A split of files, decoded to RGB and brought to `image_size` (height, width) as uint8.

    Training: random resized crop, flip and auto-augmentation as `augment` says. Evaluation: resized so that
    the centre crop keeps `augment.crop_fraction` of the short side.
    """

    def __init__(
        self, split: Split, *, image_size: tuple[int, int], augment: Augment, seed: int, training: bool
    ) -> None:
        assert split.files is not None
        self.files, self.labels, self.seed, self.training = split.files, split.labels, seed, training
        self.image_size, self.crop_fraction = image_size, augment.crop_fraction
        steps: list[torch.nn.Module] = [
            v2.RandomResizedCrop(image_size, augment.crop_scale, interpolation=BICUBIC, antialias=True)
        ]
        if augment.flip:
            steps.append(v2.RandomHorizontalFlip())
        if augment.auto_augment == "randaugment":
            level = augment.randaugment_magnitude
            steps.append(v2.RandAugment(augment.randaugment_ops, level, interpolation=BILINEAR))
        if augment.auto_augment == "trivialaugment":
            steps.append(v2.TrivialAugmentWide(interpolation=BILINEAR))
        self.vary = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, plan: BatchPlan) -> TrainBatch | EvalBatch:
        images = torch.stack([self._load(index, plan.epoch) for index in plan.indices])
        return make_batch(images, self.labels[torch.tensor(plan.indices)], plan, self.training)

    def _load(self, index: int, epoch: int) -> Tensor:
        image = read_image(self.files[index])
        if not self.training:
            return centre_crop(image, self.image_size, self.crop_fraction)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed(self.seed, epoch, index))
            varied: Tensor = self.vary(image)
        return varied


def centre_crop(image: Tensor, image_size: tuple[int, int], crop_fraction: float) -> Tensor:
    """[C, H, W] resized to just cover `image_size` / `crop_fraction`, and its centre of `image_size`."""
    height, width = image.shape[-2:]
    cover_height, cover_width = (int(side / crop_fraction) for side in image_size)
    if cover_height * width >= cover_width * height:  # height binds
        size = [cover_height, cover_height * width // height]
    else:
        size = [cover_width * height // width, cover_width]
    resized = v2.functional.resize(image, size, BICUBIC, antialias=True)
    cropped: Tensor = v2.functional.center_crop(resized, list(image_size))
    return cropped


def read_image(path: str) -> Tensor:
    """uint8 [3, H, W], upright as its EXIF tag says, transparency laid over white.

    Raises:
        ValueError: naming the file, where it can't be read or decoded.
    """
    try:
        data = Path(path).read_bytes()
        image = _decode(data) if _is_plain(data) else _decode_with_pillow(data)
    except (OSError, RuntimeError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} can't be decoded ({error}); replace or remove it") from error
    return image


def _is_plain(data: bytes) -> bool:
    """JPEG, or PNG of 8 or 16 bits without a palette: what torchvision decodes, nearly twice as fast."""
    if decode_image is None:
        return False
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        bits, colour, palette = data[24:25], data[25:26], b"\x03"
        return bits in (b"\x08", b"\x10") and colour != palette
    return data[:2] == b"\xff\xd8"


def _decode(data: bytes) -> Tensor:
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities")
        image: Tensor = decode_image(encoded, apply_exif_orientation=True)
    channels = image.shape[0]
    if data[:2] == b"\xff\xd8" and channels == 4:  # CMYK: torchvision's conversion isn't Pillow's
        return _decode_with_pillow(data)
    if image.dtype == torch.uint16:
        image = (image.to(torch.int32) // 257).to(torch.uint8)
    if channels in (2, 4):
        image = _over_white(image)
    return image.expand(3, -1, -1) if image.shape[0] == 1 else image


def _decode_with_pillow(data: bytes) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a large image is still an image
        with Image.open(io.BytesIO(data)) as opened:
            image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):
        return torch.from_numpy((np.asarray(image) // 257).astype(np.uint8)).expand(3, -1, -1)
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of mode {image.mode}; save it with 8 bits a channel")
    if image.has_transparency_data:
        return _over_white(v2.functional.pil_to_tensor(image.convert("RGBA")))
    pixels: Tensor = v2.functional.pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))
    return pixels


def _over_white(image: Tensor) -> Tensor:
    """[colours + 1, H, W] with alpha last -> [colours, H, W]."""
    alpha = image[-1:].to(torch.int32)
    mixed = image[:-1].to(torch.int32) * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).to(torch.uint8)
