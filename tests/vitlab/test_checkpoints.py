"""A run that is cut off at any step and goes on ends as the run that never was: weights, metrics, best checkpoint."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, LightningModule, Trainer

from conftest import Configure
from faults import assert_same_run, images
from vitlab import build, runs
from vitlab.schema import Node

Train = Callable[..., Node]
QUICK = [
    "logger=csv",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=4",
    "data.max_train_samples=150",
    "data.val_fraction=0.1",
    "batch_size=32",  # 5 steps an epoch
    "schedule.warmup_steps=2",
]
HARD = [  # everything that draws random numbers or keeps state
    "data.augment.mixup=0.4",
    "data.augment.cutmix=0.5",
    "data.augment.erasing=0.3",
    "data.augment.auto_augment=randaugment",
    "model.dropout=0.1",
    "model.drop_path=0.2",
    "trainer.accumulate_grad_batches=2",
    "callbacks=ema",
]
STEPS = 5


class Cut(Exception):
    """Stands for a kill: nothing is saved after it."""


class CutAt(Callback):
    """Raises when a step is about to begin, or within the validation after it."""

    def __init__(self, step: int, *, in_validation: bool = False) -> None:
        self.step, self.in_validation = step, in_validation

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and not self.in_validation:
            raise Cut

    def on_validation_batch_end(self, trainer: Trainer, *_arguments: Any) -> None:
        if trainer.global_step == self.step and self.in_validation:
            raise Cut


@pytest.fixture
def run(
    configure: Configure,
    train_function: Train,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Path]:
    """Trains in a folder by `train.py`'s own function, in this process; `cut` is a callback that ends it early."""
    trainer = build.trainer

    def train(name: str, *overrides: str, cut: Callback | None = None, go_on: bool = False) -> Path:
        def with_cut(*arguments: Any, **options: Any) -> Trainer:
            made = trainer(*arguments, **options)
            if cut is not None:
                made.callbacks.insert(0, cut)  # type: ignore[attr-defined]
            return made

        monkeypatch.setattr(build, "trainer", with_cut)
        folder = tmp_path / name
        config = configure(*small, *QUICK, *overrides)
        config |= {"run_dir": str(folder), "resume": "auto" if go_on else None}
        for callback in ("best", "last"):
            config["callbacks"][callback]["dirpath"] = str(folder / "checkpoints")
        runs.write_config(folder, config)
        try:
            with runs.recorded(folder, first_rank=True) as results:
                results.update(train_function(**config))
        except Cut:
            pass
        return folder

    return train


# ------------------------------------------------------------------------------------------------------ exact resume


@pytest.mark.parametrize(
    "settings",
    [
        [],
        HARD,
        ["trainer.check_val_every_n_epoch=2"],
        ["++trainer.val_check_interval=0.4", "trainer.max_steps=13"],
        ["data.drop_last=true", "callbacks.last.every_n_epochs=2", "callbacks.best.keep=2"],
    ],
    ids=["plain", "hard", "validated-every-second-epoch", "validated-within-epochs", "dropped-last"],
)
@pytest.mark.parametrize("every", [1, 3])
def test_cut_at_any_step_it_ends_as_one_that_was_not(run: Callable[..., Path], settings: list[str], every: int) -> None:
    settings = [*settings, f"callbacks.last.every_n_train_steps={every}"]
    whole = run("whole", *settings)
    total = runs.read_results(whole)["steps"]
    for step in sorted({1, STEPS - 1, STEPS, STEPS + 2, total - 1}):
        shutil.rmtree(whole.parent / "cut", ignore_errors=True)
        run("cut", *settings, cut=CutAt(step))
        assert runs.read_results(whole.parent / "cut")["status"] == "crashed", "it was cut"
        assert_same_run(whole, run("cut", *settings, go_on=True))


@pytest.mark.parametrize("settings", [[], HARD], ids=["plain", "hard"])
def test_cut_within_a_validation_it_repeats_that_validation(run: Callable[..., Path], settings: list[str]) -> None:
    whole = run("whole", *settings)
    for step in (STEPS, 3 * STEPS):
        shutil.rmtree(whole.parent / "cut", ignore_errors=True)
        run("cut", *settings, cut=CutAt(step, in_validation=True))
        assert_same_run(whole, run("cut", *settings, go_on=True))


def test_cut_again_and_again_it_still_ends_the_same(run: Callable[..., Path]) -> None:
    settings = [*HARD, "callbacks.last.every_n_train_steps=1"]
    whole = run("whole", *settings)
    run("cut", *settings, cut=CutAt(3))
    for step in (4, 7, 11):
        run("cut", *settings, cut=CutAt(step), go_on=True)
    assert_same_run(whole, run("cut", *settings, go_on=True))


def test_cut_at_any_step_images_that_workers_load_go_on_where_they_were(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    settings = [*images(tmp_path), "callbacks.last.every_n_train_steps=1"]
    whole = run("whole", *settings)
    for step in (3, 4, 5, 6):
        shutil.rmtree(whole.parent / "cut", ignore_errors=True)
        run("cut", *settings, cut=CutAt(step))
        assert_same_run(whole, run("cut", *settings, go_on=True))
