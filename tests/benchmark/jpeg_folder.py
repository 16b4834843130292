"""Load a folder of JPEG files as normalized float32 batches with vitlab, torchvision and timm."""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import decode_image
from torchvision.transforms import v2

from benchmark.training import train_config
from vitlab.data.datamodule import DataModule
from vitlab.training import build

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_photographs(folder: Path, count: int) -> None:
    """Write crops of scikit-learn's two photographs: two classes, 500 x 375 pixels, JPEG quality 90 to 95."""
    from sklearn.datasets import load_sample_image

    rng = random.Random(0)
    for label, name in enumerate(("china.jpg", "flower.jpg")):
        photo = Image.fromarray(load_sample_image(name))
        for split, number in [*(("train", n) for n in range((count + 1 - label) // 2)), ("val", 0)]:
            width = rng.randint(400, 560)
            height = width * 3 // 4
            left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
            image = photo.crop((left, top, left + width, top + height)).resize((500, 375), Image.Resampling.LANCZOS)
            file = folder / split / str(label) / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file, quality=rng.choice((90, 95)), subsampling=2)


def loaders(folder: Path, image_size: int, batch_size: int, workers: int) -> dict[str, Any]:
    """Loaders of `folder`/train by name, with one thread per process and bicubic interpolation.

    vitlab's holds a tenth of the files out for validation; timm's drops an incomplete batch.
    """
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader

    lines = ["data=image_folder", f"image_size={image_size}", f"batch_size={batch_size}", f"data.num_workers={workers}"]
    lines += [f"data_dir={folder}", "data.scan=none", "data.interpolation=bicubic"]
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": workers, "persistent_workers": workers > 0}
    dataset = create_dataset("", root=str(folder), split="train", is_training=True)
    own: dict[str, Any] = {"use_prefetcher": False, "color_jitter": 0.0, "interpolation": "bicubic"}
    own["device"] = torch.device("cpu")
    # torchvision's `references/classification`, on PIL images, and on tensors decoded by torchvision
    crop, flip = v2.RandomResizedCrop(image_size, interpolation=v2.InterpolationMode.BICUBIC), v2.RandomHorizontalFlip()
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    root, decode = str(folder / "train"), partial(decode_image, mode="RGB")
    images = ImageFolder(root, v2.Compose([crop, flip, v2.PILToTensor(), *last]))
    tensors = ImageFolder(root, v2.Compose([crop, flip, *last]), loader=decode)
    return {
        "vitlab": TrainBatches(build.build_data(train_config(lines, str(folder))["data"])),
        "torchvision, PIL": DataLoader(images, shuffle=True, **options),
        "torchvision.io, tensors": DataLoader(tensors, shuffle=True, **options),
        "timm": create_loader(dataset, image_size, is_training=True, **own, **options),
    }


class TrainBatches:
    """A data module's augmented training batches, without a Trainer; each pass is an epoch."""

    def __init__(self, data: DataModule) -> None:
        self.epoch = -1
        data.position = lambda: (self.epoch, 0)  # type: ignore[method-assign]  # instead of the Trainer's
        self.data, self.loader = data, data.train_dataloader()

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        return (self.data.on_after_batch_transfer(batch, 0) for batch in self.loader)
