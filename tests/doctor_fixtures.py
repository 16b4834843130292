"""Runs for tests of the doctor: a small network on digits, and digits that load slowly."""

import time
from functools import partial
from typing import Any

import pytest
import torch

from vitlab.config.schema import Node
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import MemoryDataset
from vitlab.data.sets.digits import digits
from vitlab.diagnostics.measure import ProfiledRun
from vitlab.models.vit import VisionTransformer
from vitlab.training import schedules
from vitlab.training.classifier import Classifier

FEW_WORKERS = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class SlowDataset(MemoryDataset):
    def __getitems__(self, plan: Any) -> Any:
        time.sleep(0.04)
        return super().__getitems__(plan)


class SlowData(DataModule):
    """Digits of which each training batch takes 40 ms, in the loop or in a worker."""

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        loader.dataset.__class__ = SlowDataset
        return loader


def profiled_run(
    kind: type[DataModule] = DataModule, *, accumulate: int = 1, callbacks: Node | None = None
) -> ProfiledRun:
    data = kind(source=digits, batch_size=32, augment=Augment(), image_size=8, seed=0, num_workers=0)
    data.setup()
    torch.manual_seed(0)
    network = VisionTransformer(image_size=8, patch_size=4, in_channels=1, num_classes=10, dim=16, depth=1, heads=2)
    sgd = partial(torch.optim.SGD, lr=0.1)
    module = Classifier(network, num_classes=10, optimizer=sgd, schedule=schedules.constant)
    trainer = {"_target_": "lightning.Trainer", "accelerator": "cpu", "devices": 1, "precision": "32-true"}
    trainer |= {"accumulate_grad_batches": accumulate, "log_every_n_steps": 2, "gradient_clip_val": 1.0}
    trainer |= {"enable_model_summary": False, "use_distributed_sampler": False}
    nodes = {"monitor": {"_target_": "vitlab.training.monitor.Monitor"}, **(callbacks or {})}
    return ProfiledRun(datamodule=data, module=module, trainer=trainer, callbacks=nodes)
