"""A run that is killed at any step and resumed ends like an uninterrupted one: weights, metrics, best checkpoint."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from conftest import Configure
from faults.runs import assert_same_run, images, rows, same
from vitlab.config.schema import Node
from vitlab.distributed import signals
from vitlab.distributed.signals import StopRequested
from vitlab.runs import record
from vitlab.runs.folder import read_results, write_config
from vitlab.runs.metrics_file import MetricsFile
from vitlab.storage import safe_load
from vitlab.training import build, checkpoints

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
    "callbacks.ema.every_n_steps=2",
    "callbacks.ema.start_step=4",
    "callbacks.ema.use_warmup=true",
]
STEPS = 5


class Cut(Exception):
    """Simulates a kill: nothing is saved after it."""


class CutAt(Callback):
    """Raise before a step, or within the validation after it."""

    def __init__(self, step: int, *, in_validation: bool = False) -> None:
        self.step, self.in_validation = step, in_validation

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and not self.in_validation:
            raise Cut

    def on_validation_batch_end(self, trainer: Trainer, *_arguments: Any) -> None:
        if trainer.global_step == self.step and self.in_validation:
            raise Cut


class CutAfterTraining(Callback):
    """Raise after the last step is saved, before the test."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise Cut


@pytest.fixture
def run(
    configure: Configure,
    train_function: Train,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Path]:
    """Train in a folder by the function of `train.py`, in this process; `cut` is a callback that ends it early."""
    trainer = build.build_trainer

    def train(name: str, *overrides: str, cut: Callback | None = None, resumed: bool = False) -> Path:
        def with_cut(*arguments: Any, **options: Any) -> Trainer:
            made = trainer(*arguments, **options)
            if cut is not None:
                made.callbacks.insert(0, cut)  # type: ignore[attr-defined]
            return made

        monkeypatch.setattr(build, "build_trainer", with_cut)
        folder = tmp_path / name
        config = configure(*small, *QUICK, *overrides)
        config |= {"run_dir": str(folder), "resume": "auto" if resumed else None}
        for callback in ("best", "last"):
            config["callbacks"][callback]["dirpath"] = str(folder / "checkpoints")
        write_config(folder, config)
        try:
            with record.record_run(folder, first_rank=True) as results:
                results.update(train_function(**config))
        except Cut:
            pass
        return folder

    return train


# ------------------------------------------------------------------------------------------------------ exact resume


@pytest.mark.parametrize(
    ("every", "settings", "steps"),
    [
        (1, [], {STEPS + 2}),
        pytest.param(1, HARD, {1, STEPS - 1, STEPS, STEPS + 2, 3 * STEPS - 1}, marks=pytest.mark.long),
        (3, HARD, {STEPS - 1, STEPS + 2}),
        (3, ["trainer.check_val_every_n_epoch=2"], {STEPS, STEPS + 2}),
        (1, ["++trainer.val_check_interval=0.4", "trainer.max_steps=13"], {STEPS, STEPS + 2}),
        (1, ["+trainer.limit_train_batches=7", "trainer.accumulate_grad_batches=2"], {3, 4, 6}),
        (3, ["data.drop_last=true", "callbacks.last.every_n_epochs=2", "callbacks.best.keep=2"], {STEPS - 1, STEPS}),
    ],
    ids=[
        "plain",
        "hard",
        "hard-seldom",
        "validated-every-second-epoch",
        "validated-within-epochs",
        "cut-steps",
        "dropped-last",
    ],
)
def test_cut_at_any_step_it_ends_like_an_uninterrupted_one(
    run: Callable[..., Path], settings: list[str], every: int, steps: set[int]
) -> None:
    settings = [*settings, f"callbacks.last.every_n_train_steps={every}"]
    complete = run("complete", *settings)
    for step in sorted(steps):
        shutil.rmtree(complete.parent / "cut", ignore_errors=True)
        run("cut", *settings, cut=CutAt(step))
        assert read_results(complete.parent / "cut")["status"] == "crashed", "it was cut"
        assert_same_run(complete, run("cut", *settings, resumed=True))


@pytest.mark.parametrize("end", ["trainer.max_epochs=3", f"trainer.max_steps={3 * STEPS}"])
def test_cut_within_a_validation_it_repeats_that_validation(run: Callable[..., Path], end: str) -> None:
    settings = [*HARD, end]
    complete = run("complete", *settings)
    for step in (STEPS, 3 * STEPS):
        shutil.rmtree(complete.parent / "cut", ignore_errors=True)
        run("cut", *settings, cut=CutAt(step, in_validation=True))
        assert_same_run(complete, run("cut", *settings, resumed=True))


@pytest.mark.long
def test_cut_again_and_again_it_still_ends_the_same(run: Callable[..., Path]) -> None:
    settings = [*HARD, "callbacks.last.every_n_train_steps=1"]
    complete = run("complete", *settings)
    run("cut", *settings, cut=CutAt(3))
    for step in (4, 7, 11):
        run("cut", *settings, cut=CutAt(step), resumed=True)
    assert_same_run(complete, run("cut", *settings, resumed=True))


def test_cut_at_any_step_images_that_workers_load_resume_where_they_were(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    settings = [*images(tmp_path), "callbacks.last.every_n_train_steps=1"]
    complete = run("complete", *settings)
    for step in (4, 6):
        shutil.rmtree(complete.parent / "cut", ignore_errors=True)
        run("cut", *settings, cut=CutAt(step))
        assert_same_run(complete, run("cut", *settings, resumed=True))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_cut_at_any_step_rows_of_larger_files_resume_where_they_were(
    run: Callable[..., Path], parquet: Path, tmp_path: Path, workers: int
) -> None:
    settings = ["data=huggingface", f"data.name={parquet}", "image_size=8"]
    settings += [f"data.source.cache_dir={tmp_path / 'cache'}", f"data.num_workers={workers}"]
    settings += ["data.max_train_samples=null", "batch_size=128"]
    settings += ["trainer.max_epochs=2", "callbacks.last.every_n_train_steps=1"]
    complete = run("complete", *settings)
    assert read_results(complete)["steps"] == 10
    run("cut", *settings, cut=CutAt(7))
    assert_same_run(complete, run("cut", *settings, resumed=True))


@pytest.mark.parametrize(("before", "after", "share"), [(1, 2, "1.0"), (3, 2, "0.8")])
def test_in_other_parts_a_run_is_resumed_with_the_same_steps_and_validations(
    run: Callable[..., Path], before: int, after: int, share: str
) -> None:
    parts = "trainer.accumulate_grad_batches={}"
    settings = ["callbacks.last.every_n_train_steps=1", f"+trainer.limit_train_batches={share}"]
    complete = run("complete", *settings, parts.format(before))
    for step in (2, STEPS + 3):
        shutil.rmtree(complete.parent / "cut", ignore_errors=True)
        run("cut", *settings, parts.format(before), cut=CutAt(step))
        other = run("cut", *settings, parts.format(after), resumed=True)
        for name in ("step", "epoch", "images", "val/count"):
            assert [row[name] for row in rows(other)] == [row[name] for row in rows(complete)]


# ---------------------------------------------------------------------------------------------------- what is kept


def test_checkpoints_are_kept_by_choice_and_the_best_of_several(run: Callable[..., Path]) -> None:
    kept = [
        "callbacks.last.keep_every_n_train_steps=4",
        "callbacks.last.keep_every_n_epochs=2",
        "callbacks.best.keep=2",
    ]
    folder = run("run", *kept) / "checkpoints"
    names = {path.name for path in folder.iterdir()}
    assert {"last.ckpt", "previous.ckpt", "best.ckpt"} < names
    assert {name for name in names if name.startswith("step-")} == {f"step-{step:06d}.ckpt" for step in (4, 8, 10, 12)}
    best = sorted(name for name in names if name.startswith("best-"))
    assert len(best) == 2
    scores = {int(row["step"]): float(row["val/acc"]) for row in rows(folder.parent) if row["val/acc"]}
    step = safe_load.load_checkpoint(folder / "best.ckpt")["global_step"]
    assert scores[step] == max(scores.values())
    assert f"best-{step:06d}.ckpt" in best
    assert safe_load.load_checkpoint(folder / "step-000004.ckpt")["global_step"] == 4


class AskToStop(Callback):
    """Ask for the end of the training before a step, as early stopping does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        trainer.should_stop |= trainer.global_step == self.step


@pytest.mark.parametrize(
    ("settings", "cut", "step"),
    [
        (["trainer.max_epochs=-1", "trainer.max_steps=7"], None, 7),
        (["trainer.max_epochs=3"], AskToStop(6), 7),
        (["trainer.max_epochs=1"], None, STEPS),
    ],
    ids=["steps", "callback", "epochs"],
)
def test_the_end_of_a_training_is_saved_wherever_it_is(
    run: Callable[..., Path], settings: list[str], cut: Callback | None, step: int
) -> None:
    never = ["callbacks.last.every_n_epochs=null", "callbacks.last.every_n_minutes=null"]
    folder = run("ended", *never, *settings, cut=cut)
    assert safe_load.load_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == step


class StopInValidation(Callback):
    """Request a stop at a validation's start, or at its first batch together with the error of a lost rank."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, error: bool) -> None:
        self.monkeypatch, self.error = monkeypatch, error

    def request(self) -> None:
        self.monkeypatch.setattr(signals._request, "outcome", "preempted")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.error:
            self.request()

    def on_validation_batch_end(self, trainer: Trainer, *_arguments: Any) -> None:
        if self.error:
            self.request()
            raise RuntimeError("another rank no longer responds")


@pytest.mark.parametrize(
    ("error", "every", "status", "step"),
    [
        (False, 1, "preempted", STEPS),
        (False, 7, "preempted", STEPS + 1),  # the step before the validation isn't saved: after the next
        (True, 1, "preempted", STEPS),
        (True, 7, "crashed", None),
    ],
)
def test_a_request_within_a_validation_stops_at_once_if_the_step_is_saved(
    run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: bool,
    every: int,
    status: str,
    step: int | None,
) -> None:
    seldom = [f"callbacks.last.every_n_epochs={every}", "callbacks.last.every_n_minutes=null"]
    with pytest.raises((StopRequested, RuntimeError)):
        run("stopped", *seldom, cut=StopInValidation(monkeypatch, error=error))
    assert read_results(tmp_path / "stopped")["status"] == status
    file = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert (safe_load.load_checkpoint(file)["global_step"] if file.is_file() else None) == step


def test_a_checkpoint_is_taken_when_so_many_minutes_are_over(run: Callable[..., Path]) -> None:
    seldom = ["callbacks.last.every_n_epochs=null", "callbacks.last.every_n_minutes=1e-9"]
    folder = run("run", *seldom, cut=CutAt(3))
    assert safe_load.load_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 3


@pytest.mark.parametrize(("late", "reason"), [(0, 0), (1, 0), (0, 1), (1, 2)])
def test_what_another_rank_decides_all_ranks_do(
    late: int, reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reduce(flags: torch.Tensor, op: Any) -> None:
        assert op == torch.distributed.ReduceOp.MAX
        flags.copy_(flags.maximum(torch.tensor([late, reason])))  # of the other rank

    monkeypatch.setattr(torch.distributed, "all_reduce", reduce)
    saved: list[Path] = []
    trainer: Any = SimpleNamespace(world_size=2, global_step=5, current_epoch=0, is_last_batch=False, loggers=[])
    trainer.strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer.is_global_zero, trainer.save_checkpoint = False, lambda file, weights_only: saved.append(file)
    last = checkpoints.LastCheckpoint(dirpath=str(tmp_path), every_n_minutes=None)
    with pytest.raises(StopRequested) if reason else nullcontext():
        last.on_train_batch_end(trainer, trainer)
    assert saved == [tmp_path / "last.ckpt"] * bool(late or reason)


@pytest.mark.parametrize("knob", ["every_n_epochs", "every_n_train_steps", "every_n_minutes", "keep_every_n_epochs"])
def test_an_interval_of_nothing_is_refused(knob: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{knob}=0 must be "):
        checkpoints.LastCheckpoint(dirpath=str(tmp_path), **{knob: 0})


def test_a_checkpoint_holds_what_it_is_of(run: Callable[..., Path]) -> None:
    checkpoint = safe_load.load_checkpoint(run("run") / "checkpoints" / "last.ckpt")
    assert checkpoint["vitlab"]["config"]["model"]["dim"] == 16
    assert checkpoint["vitlab"]["data"]["data set"] == "digits"
    assert checkpoint["vitlab"].keys() == {"config", "data", "preprocessing", "wandb"}


def test_rows_are_on_the_disk_before_the_checkpoint_that_counts_them(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    save_rows, save_checkpoint = MetricsFile.save, Trainer.save_checkpoint

    def note_rows(self: MetricsFile) -> None:
        order.append("rows")
        save_rows(self)

    def note_checkpoint(self: Trainer, filepath: Path, *arguments: Any, **options: Any) -> None:
        order.append(Path(filepath).name)
        save_checkpoint(self, filepath, *arguments, **options)

    monkeypatch.setattr(MetricsFile, "save", note_rows)
    monkeypatch.setattr(Trainer, "save_checkpoint", note_checkpoint)
    run("run", "trainer.max_epochs=2")
    before = [order[place - 1] for place, name in enumerate(order) if name == "last.ckpt"]
    assert len(before) > 1
    assert set(before) == {"rows"}


def test_a_finished_run_is_lengthened_as_if_it_had_been_longer_from_the_start(run: Callable[..., Path]) -> None:
    settings = [*HARD, "schedule=constant"]
    long, short = run("long", *settings), run("short", *settings, "trainer.max_epochs=2")
    run("short", *settings, resumed=True)
    one, two = (safe_load.load_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (long, short))
    for part in ("state_dict", "current_model_state", "optimizer_states", "averaging_state", "loops"):
        assert same(one[part], two[part]), part


def test_a_run_that_is_resumed_with_another_rate_and_decay_trains_with_these(run: Callable[..., Path]) -> None:
    settings = ["schedule=constant", "optimizer.lr=1e-3", "callbacks.last.every_n_train_steps=1"]
    run("run", *settings, cut=CutAt(7))
    folder = run("run", *settings, "optimizer.lr=2e-4", "optimizer.weight_decay=0.5", resumed=True)
    rates = {int(row["step"]): float(row["lr/decay"]) for row in rows(folder) if row["lr/decay"]}
    assert rates[5] == 1e-3
    assert {rate for step, rate in rates.items() if step > 7} == {2e-4}
    groups = safe_load.load_checkpoint(folder / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert {group["name"]: group["weight_decay"] for group in groups} == {"decay": 0.5, "no_decay": 0.0}


def test_a_run_that_is_resumed_with_another_patience_stops_by_it(run: Callable[..., Path]) -> None:
    stop = "+callbacks.stop={{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: {}"
    stop += ", min_delta: 9}}"
    settings = ["trainer.max_epochs=6", "callbacks.last.every_n_train_steps=1"]
    run("run", *settings, stop.format(9), cut=CutAt(2 * STEPS + 1))
    results = read_results(run("run", *settings, stop.format(2), resumed=True))
    assert results["ended_by"] == "early_stopping"
    assert results["steps"] == 3 * STEPS


def test_a_run_ended_by_time_is_stopped_and_continues_with_as_much_time(run: Callable[..., Path]) -> None:
    settings = ["+trainer.max_time={seconds: 0}", "callbacks.last.every_n_train_steps=1"]
    results = read_results(run("run", *settings))
    assert (results["status"], results["ended_by"]) == ("stopped", "max_time")
    assert results["steps"] < 3 * STEPS
    results = read_results(
        run("run", "callbacks.last.every_n_train_steps=1", "+trainer.max_time={hours: 1}", resumed=True)
    )
    assert (results["status"], results["ended_by"], results["steps"]) == ("finished", "max_epochs", 3 * STEPS)


def test_a_damaged_best_checkpoint_is_not_tested(run: Callable[..., Path]) -> None:
    cut = run("cut", cut=CutAt(12))
    best = cut / "checkpoints" / "best.ckpt"
    content = best.read_bytes()
    best.write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=r"best.ckpt is damaged"):
        safe_load.verify_checkpoint(best)
    results = read_results(run("cut", resumed=True))
    assert results["status"] == "finished"
    assert safe_load.corruption(best) is None, "a later one took its place"


@pytest.mark.parametrize(
    "settings", [[], ["callbacks=ema"], ["data.val_fraction=0"]], ids=["plain", "averaged", "nothing-held-out"]
)
def test_a_run_of_no_validation_that_is_cut_after_its_last_step_is_tested_when_it_is_resumed(
    run: Callable[..., Path], settings: list[str]
) -> None:
    settings = [*settings, "trainer.max_steps=3"]
    complete = run("complete", *settings)
    assert not (run("cut", *settings, cut=CutAfterTraining()) / "checkpoints" / "best.ckpt").exists()
    cut = run("cut", *settings, resumed=True)
    assert_same_run(complete, cut)
    one, two = (read_results(folder) for folder in (complete, cut))
    scores = {key for key in one if key.startswith(("val/", "test/"))}
    assert {key: one[key] for key in scores} == {key: two[key] for key in scores}
    assert ("val/loss" in scores) == ("data.val_fraction=0" not in settings)
    assert "test/acc" in scores


def test_a_checkpoint_is_saved_after_every_epoch_or_ten_minutes_by_default(tmp_path: Path) -> None:
    last = checkpoints.LastCheckpoint(dirpath=str(tmp_path))
    assert (last.epochs, last.steps, last.minutes, last.kept_epochs, last.kept_steps) == (1, None, 10.0, None, None)
