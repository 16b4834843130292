"""How fast prediction is: `predict` of images in memory to a bare loop over the network, and the loader of files to the
evaluation's loader in training, as ratios of interleaved pairs.

    OMP_NUM_THREADS=1 PYTHONPATH=src python tests/predict_speed.py
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vitlab.data.augment import Augment
from vitlab.data.dataset import FilesDataset, build_loader
from vitlab.data.sampler import EvalBatches
from vitlab.data.source import Split
from vitlab.evaluation.prediction_files import ImageFiles
from vitlab.evaluation.trained_model import TrainedModel
from vitlab.models.vit import VisionTransformer

COUNT, SIZE, BATCH, PAIRS = 256, 96, 64, 15


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def report(name: str, bare: Callable[[], object], ours: Callable[[], object]) -> None:
    for function in (bare, ours):  # first calls are slower
        function()
    ratios = sorted(seconds(bare) / seconds(ours) for _ in range(PAIRS))
    middle = f"{ratios[PAIRS // 4]:.2f} to {ratios[-1 - PAIRS // 4]:.2f}"
    print(f"{name}: {statistics.median(ratios):.2f} of its speed (middle half {middle})")


def main() -> None:
    network = VisionTransformer(image_size=SIZE, patch_size=16, dim=192, depth=6, heads=3, num_classes=100).eval()
    half = (0.5,) * 3
    model = TrainedModel(network=network, classes=None, image_size=(SIZE, SIZE), mean=half, std=half)
    images = torch.randint(0, 256, (COUNT, 3, SIZE, SIZE), dtype=torch.uint8)
    ready = model.transform(images)

    @torch.inference_mode()
    def bare_loop() -> Tensor:
        return torch.cat([network(batch) for batch in torch.split(ready, BATCH)])

    report("a bare loop over prepared batches", bare_loop, lambda: model.predict(images, batch_size=BATCH))

    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, f"{number}.jpg")) for number in range(COUNT)]
        for number, path in enumerate(paths):
            blocks = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(np.kron(blocks, np.ones((16, 16, 1), np.uint8))).save(path)
        split = Split(None, torch.zeros(COUNT, dtype=torch.long), paths)
        dataset = FilesDataset(split, image_size=(SIZE, SIZE), augment=Augment(), seed=0, training=False)
        plans = EvalBatches(samples=COUNT, batch_size=BATCH)
        cropped = TrainedModel(**{**vars(model), "crop_fraction": 0.875})
        numbers = [[*range(start, start + BATCH)] for start in range(0, COUNT, BATCH)]
        files = ImageFiles(paths, cropped)
        report(
            "the evaluation's loader",
            lambda: [*build_loader(dataset, plans, workers=1, keep=False, pin=False, seed=0)],
            lambda: [*DataLoader(files, batch_sampler=numbers, collate_fn=nn.Identity(), num_workers=1)],
        )


if __name__ == "__main__":
    main()
