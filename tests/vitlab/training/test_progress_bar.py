"""The bar counts epochs from 1, stays on one line, and says how long the run will take; a pipe gets lines."""

import io
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel
from rich.console import Console
from rich.live import Live
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from vitlab.training.progress_bar import ProgressBar


def trainer(**options: int) -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)  # type: ignore[arg-type]


class Clocked(BoringModel):
    """Takes 10 s for each batch of training, 20 of validation and 15 of a test; knows its loss in the second epoch."""

    seconds = 100.0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seconds += 10
        self.trainer.progress_bar_metrics.update({"train/loss": 0.25} if self.current_epoch else {})
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seconds += 20

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.seconds += 15


def test_epochs_count_from_1() -> None:
    bar = ProgressBar()
    assert not bar._leave, "no bars stay on the screen by default"
    bar.setup(trainer(max_epochs=12), BoringModel(), "fit")
    assert bar._get_train_description(0) == "Epoch 1/12"
    assert bar._get_train_description(11) == "Epoch 12/12"
    bar.trainer.fit_loop.max_epochs = 1
    assert bar._get_train_description(0) == "Epoch 1/1 "
    bar.trainer.fit_loop.max_epochs = -1
    assert bar._get_train_description(2) == "Epoch 3   ", "as wide as Validation: it doesn't flicker"


@pytest.mark.parametrize(
    ("seconds", "step", "words"),
    [
        (40.0, 100, "0:00:40 left"),
        (600.0, 100, "0:10:00 left"),
        (6000.0, 100, "1:40:00 left"),
        (1.0, 91, "0:00:19 left"),
        (1.0, 90, ""),
    ],
)
def test_the_remaining_time_follows_from_the_steps_since_the_start(
    seconds: float, step: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = ProgressBar()
    run = trainer(max_steps=110)
    bar.setup(run, BoringModel(), "fit")
    monkeypatch.setattr(Trainer, "global_step", step)
    assert bar._remaining_time() == "", "before the start, as in the first check of a resumed run"
    bar._start = (time.monotonic() - seconds, 90)  # resumed at step 90
    assert bar._remaining_time() == words


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A terminal of 100 columns."""
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    for module in ("lightning.pytorch.callbacks.progress.rich_progress", "vitlab.training.progress_bar"):
        monkeypatch.setattr(f"{module}.get_console", lambda: screen)
    return screen


@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("leave", [False, True])
@pytest.mark.parametrize("sanity", [0, 1])
def test_a_terminal_has_a_bar_for_each_stage_and_no_lines(
    leave: bool, sanity: int, screen: Console, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bar, completed = Clocked(), ProgressBar(leave=leave), dict[str, float]()
    monkeypatch.setattr(time, "monotonic", lambda: model.seconds)

    def watch(hard: bool = False) -> None:
        ProgressBar.refresh(bar, hard)
        assert bar.progress is not None
        assert bar.progress.live._refresh_thread is None, "it would draw while the log is printed"
        assert bar.progress.live.transient is not leave
        for task in bar.progress.tasks:
            name = task.description.split(",")[0].strip()
            completed[name] = max(completed.get(name, 0), task.completed)

    starts, start = Counter[int](), Live.start

    def note(self: Live, refresh: bool = False) -> None:
        starts[id(self)] += 1
        start(self, refresh)

    monkeypatch.setattr(Live, "start", note)
    monkeypatch.setattr(bar, "refresh", watch)
    run = trainer(max_epochs=2, limit_train_batches=5, limit_val_batches=2, limit_test_batches=4)
    run.num_sanity_val_steps = sanity
    run.callbacks = [bar]  # type: ignore[attr-defined]
    with caplog.at_level("INFO", logger="vitlab.training.progress_bar"):
        run.fit(model)
        run.test(model, verbose=False)
    expected = {"Epoch 1/2": 5, "Epoch 2/2": 5, "Validation": 2, "Testing": 4}
    assert completed == ({"Sanity Checking": 1} if sanity else {}) | expected
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.file.getvalue())  # type: ignore[attr-defined]
    assert "Epoch 2/2" in shown
    assert set(starts.values()) == {2}, "by Lightning, and once without its thread: not for each stage"
    assert "━" in shown
    assert not [record for record in caplog.records if record.name == "vitlab.training.progress_bar"]


def test_a_narrow_screen_gets_one_line(screen: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    bar = ProgressBar()
    run = trainer(max_epochs=2, limit_train_batches=3, limit_val_batches=1)
    run.callbacks = [bar]  # type: ignore[attr-defined]

    class Model(BoringModel):
        def on_train_batch_end(self, *_: object) -> None:
            self.trainer.progress_bar_metrics.update({f"a long name {number}": 0.123 for number in range(9)})

    heights = list[int]()
    draw: Callable[..., None] = ProgressBar.refresh

    def watch(self: ProgressBar, hard: bool = False) -> None:
        draw(self, hard)
        assert self.progress is not None
        visible = sum(task.visible for task in self.progress.tasks)
        heights.append(len(screen.render_lines(self.progress.get_renderable())) - visible)
        assert self.progress.live._refresh_thread is None

    monkeypatch.setattr(ProgressBar, "refresh", watch)
    run.fit(Model())
    assert heights
    assert set(heights) == {0}


@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
def test_a_pipe_gets_a_line_at_intervals_and_no_bar(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    bar = ProgressBar()
    run = trainer(max_epochs=2, limit_train_batches=5, limit_val_batches=20, limit_test_batches=20)
    run.callbacks = [bar]  # type: ignore[attr-defined]
    seconds = iter(range(0, 10**6, 3))  # between two looks at the clock
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    with caplog.at_level("INFO", logger="vitlab.training.progress_bar"):
        run.fit(BoringModel())
        run.test(BoringModel(), verbose=False)
    lines = [record.message for record in caplog.records if record.name == "vitlab.training.progress_bar"]
    assert len(lines) in range(5, 25)
    assert any(re.fullmatch(r"epoch 1/2   batch \d of 5   \d:\d\d:\d\d left", line) for line in lines), lines
    for pattern in (r"validation   batch \d+ of 20   .+ left", r"test   batch \d+ of 20   \d:\d\d:\d\d left"):
        assert any(re.fullmatch(pattern, line) for line in lines), lines
    assert "━" not in capfd.readouterr().out


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.randn(3, 32))


@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
def test_a_line_comes_every_30_seconds_with_the_time_that_remains(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = Clocked()
    monkeypatch.setattr(time, "monotonic", lambda: model.seconds)
    run = trainer(
        max_epochs=2, limit_train_batches=5, limit_val_batches=2, limit_test_batches=5, num_sanity_val_steps=0
    )
    run.callbacks = [ProgressBar()]  # type: ignore[attr-defined]
    with caplog.at_level("INFO", logger="vitlab.training.progress_bar"):
        run.fit(model)
        run.test(model, verbose=False)
        run = trainer()
        run.callbacks = [ProgressBar()]  # type: ignore[attr-defined]
        run.test(model, DataLoader(Endless()), verbose=False)
    assert [record.message for record in caplog.records if record.name == "vitlab.training.progress_bar"] == [
        "epoch 1/2   batch 3 of 5   0:01:10 left",
        "validation   batch 1 of 2   0:01:10 left",  # 5 of 10 steps
        "epoch 2/2   batch 1 of 5   train/loss 0.2500   0:01:07 left",  # 100 s for 6 steps
        "epoch 2/2   batch 4 of 5   train/loss 0.2500   0:00:14 left",
        "validation   batch 1 of 2   train/loss 0.2500   0:00:00 left",
        "test   batch 1 of 5   0:01:00 left",
        "test   batch 3 of 5   0:00:30 left",
        "test   batch 5 of 5   0:00:00 left",
        "test   batch 2 of inf",
    ]


def test_it_is_drawn_at_most_ten_times_a_second_unless_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bool] = []
    monkeypatch.setattr(RichProgressBar, "refresh", lambda self, hard=False: drawn.append(hard))
    bar = ProgressBar()
    for _ in range(3):
        bar.refresh()
    assert drawn == [True]
    bar.refresh(hard=True)
    assert drawn == [True, True]
    time.sleep(0.11)
    bar.refresh()
    assert drawn == [True, True, True]
