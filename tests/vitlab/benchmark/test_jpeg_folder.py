"""The loaders of a folder of JPEG files: each draws order, crops and flips in each pass."""

from pathlib import Path

import torch
from PIL import Image

from vitlab.benchmark.jpeg_folder import loaders, write_photographs
from vitlab.data.decode import quiet


def test_the_files_are_of_the_size_of_imagenets(tmp_path: Path) -> None:
    write_photographs(tmp_path, 5)
    files = sorted(tmp_path.glob("train/*/*.jpg"))
    assert len(files) == 5
    for file in files:
        with Image.open(file) as image:
            assert (image.size, image.format) == ((500, 375), "JPEG")


def test_each_pass_of_all_loaders_draws_order_crops_and_flips(tmp_path: Path) -> None:
    write_photographs(tmp_path, 30)
    found = loaders(tmp_path, image_size=32, batch_size=15, workers=0)
    assert [*found] == ["vitlab", "torchvision, PIL", "torchvision.io, tensors", "timm"]
    for name, loader in found.items():
        with quiet():
            first, second = (torch.cat([batch[0] for batch in loader]) for _ in range(2))
        assert first.shape == second.shape == (27 if name == "vitlab" else 30, 3, 32, 32), name
        assert first.dtype == torch.float32
        assert -1 < float(first.mean()) < 1 < 3 * float(first.std()), "normalized"
        ordered = [sorted(images.mean(dim=(1, 2, 3)).tolist()) for images in (first, second)]
        assert ordered[0] != ordered[1], "the same crops, whatever their order"
