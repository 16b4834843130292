"""What users of Lightning call works: our data under other modules, our module on other loaders, prediction."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateFinder
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.digits import digits
from vitlab.models.vit import VisionTransformer
from vitlab.training.classifier import Classifier

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers", "ignore:.*logging interval", "ignore:.*Skipping val loop"
)


class Theirs(LightningModule):
    """Somebody's module, on pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.lr = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 0.1
        self.seen: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        self.seen.append(labels)
        return F.cross_entropy(self.network(images), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.network(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def data(*, tuples: bool = False, **settings: Any) -> DataModule:
    given = {"augment": Augment(translate=0.1), "image_size": 8, "batch_size": 64, "seed": 0, "max_train_samples": 300}
    module = DataModule(source=digits, **{**given, **settings})
    module.tuples = tuples
    return module


def network() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(image_size=8, patch_size=4, dim=16, depth=1, heads=2, num_classes=10, in_channels=1)


def trainer(tmp_path: Path, **settings: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(accelerator="cpu", default_root_dir=tmp_path, **{**quiet, "logger": False, **settings})


def loader(count: int = 96, batch_size: int = 32) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (count,), generator=generator)
    images = torch.randn(count, 1, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1)
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size)


def test_our_data_trains_somebodys_module(tmp_path: Path) -> None:
    module = Theirs()
    run = trainer(tmp_path, max_epochs=8)
    run.fit(module, data(tuples=True))
    assert run.global_step == 8 * 5
    assert run.callback_metrics["accuracy"] > 0.6
    assert torch.cat(module.seen[:5]).tolist() != torch.cat(module.seen[5:10]).tolist(), "another order"


def test_the_rate_finder_of_lightning_runs_on_our_data(tmp_path: Path) -> None:
    module, finder = Theirs(), LearningRateFinder(num_training_steps=12)
    run = trainer(tmp_path, max_epochs=1, callbacks=[finder])
    run.fit(module, data(tuples=True))
    assert run.global_step == 5, "the training is complete after the search"
    assert finder.optimal_lr is not None


def test_a_module_with_two_optimizers_of_its_own_gets_the_same_epochs(tmp_path: Path) -> None:
    class Manual(Theirs):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            one, two = self.optimizers()  # type: ignore[attr-defined]
            one.zero_grad()
            self.manual_backward(loss)
            one.step()
            two.step()
            return loss

        def configure_optimizers(self) -> Any:
            return [super().configure_optimizers(), torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)]

    seen = []
    for module in (Theirs(), Manual()):
        trainer(tmp_path, max_epochs=3).fit(module, data(tuples=True))
        seen.append(torch.cat(module.seen).tolist())
    assert seen[0] == seen[1]


def test_a_changing_accumulation_is_refused_for_somebody_elses_module_too(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=2, callbacks=[GradientAccumulationScheduler({0: 1, 1: 2})])
    with pytest.raises(ValueError, match="set accumulate_grad_batches of the Trainer"):
        run.fit(Theirs(), data(tuples=True))


@pytest.mark.parametrize("tuples", [False, True])
def test_epochs_without_a_trainer_differ_and_can_be_repeated(tuples: bool) -> None:
    module = data(tuples=tuples, max_train_samples=100)
    module.setup()

    def epoch(batches: Any) -> tuple[Tensor, Tensor]:
        pairs = [module.on_after_batch_transfer(batch, 0)[:2] for batch in batches]
        return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])

    batches = module.train_dataloader()
    first, second, third = epoch(batches), epoch(batches), epoch(module.train_dataloader())
    for one, other in ((first, second), (second, third), (first, third)):
        assert one[1].tolist() != other[1].tolist()
        assert not torch.equal(one[0].sum(0), other[0].sum(0)), "augmentation"
    module.set_epoch(1)
    again = epoch(batches)
    assert torch.equal(again[0], second[0])
    assert torch.equal(again[1], second[1])


@pytest.mark.parametrize(
    "schedule", [None, partial(CosineAnnealingLR, T_max=30), lambda optimizer: StepLR(optimizer, 7)]
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_our_module_trains_on_somebodys_loaders(schedule: Any, accumulate: int, tmp_path: Path) -> None:
    module = Classifier(network(), num_classes=10, optimizer=partial(torch.optim.Adam, lr=0.01), schedule=schedule)
    logger = CSVLogger(tmp_path)
    settings: Any = {"logger": logger, "log_every_n_steps": 1, "accumulate_grad_batches": accumulate}
    run = trainer(tmp_path, max_epochs=10, **settings)
    run.fit(module, loader(), loader())
    assert run.global_step == 30 // accumulate
    assert {"train/loss", "val/acc", "val/loss", "val/count"} <= run.callback_metrics.keys()
    assert run.callback_metrics["val/count"] == 96
    rows = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "train/loss" in rows.splitlines()[0]
    assert "val/acc" in rows.splitlines()[0]
    if schedule is not None:
        assert run.optimizers[0].param_groups[0]["lr"] < 0.01


def test_accumulated_pairs_have_the_gradient_of_the_complete_batch(tmp_path: Path) -> None:
    updated = []
    for batch_size, accumulate in ((96, 1), (32, 3)):
        module = Classifier(network(), num_classes=10, optimizer=partial(torch.optim.SGD, lr=0.1))
        trainer(tmp_path, max_steps=1, accumulate_grad_batches=accumulate).fit(module, loader(96, batch_size))
        updated.append(torch.cat([p.detach().flatten() for p in module.network.parameters()]))
    torch.testing.assert_close(*updated)


def test_lightning_predicts_with_our_module_on_any_loader(tmp_path: Path) -> None:
    module = Classifier(network(), num_classes=10)
    module.eval()
    ours = data()
    parts = trainer(tmp_path).predict(module, ours)
    assert parts is not None
    probabilities = torch.cat([part for part in parts if isinstance(part, Tensor)])
    images = torch.cat([ours.on_after_batch_transfer(batch, 0).images for batch in ours.test_dataloader()])
    torch.testing.assert_close(probabilities, module(images).softmax(1))
    plain: Any = torch.randn(40, 1, 8, 8)
    for batches, count in ((loader(), 96), (DataLoader(plain, batch_size=16), 40)):
        parts = trainer(tmp_path).predict(module, batches)
        assert parts is not None
        assert sum(len(part) for part in parts) == count


def test_a_checkpoint_is_loaded_into_a_new_module(tmp_path: Path) -> None:
    module = Classifier(network(), num_classes=10, optimizer=partial(torch.optim.Adam, lr=0.01))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "last.ckpt", network=network(), num_classes=10)
    state = module.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    trainer(tmp_path, max_epochs=2).fit(
        Classifier(network(), num_classes=10, optimizer=partial(torch.optim.Adam, lr=0.01)),
        loader(),
        ckpt_path=tmp_path / "last.ckpt",
    )
