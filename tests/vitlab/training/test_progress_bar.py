"""The bar counts epochs from 1, stays on one line, and says how long the run will take; a pipe gets lines."""

import io
import re
import time
from collections.abc import Callable

import pytest
from lightning import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel
from rich.console import Console

from vitlab.training.progress_bar import ProgressBar


def trainer(**options: int) -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)  # type: ignore[arg-type]


def test_epochs_count_from_1() -> None:
    bar = ProgressBar()
    assert not bar._leave, "no bars stay on the screen by default"
    bar.setup(trainer(max_epochs=12), BoringModel(), "fit")
    assert bar._get_train_description(0) == "Epoch 1/12"
    assert bar._get_train_description(11) == "Epoch 12/12"
    bar.trainer.fit_loop.max_epochs = -1
    assert bar._get_train_description(2) == "Epoch 3   ", "as wide as Validation: it doesn't flicker"


@pytest.mark.parametrize(
    ("seconds", "words"), [(40.0, "0:00:40 left"), (600.0, "0:10:00 left"), (6000.0, "1:40:00 left")]
)
def test_the_remaining_time_follows_from_the_steps_since_the_start(
    seconds: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = ProgressBar()
    run = trainer(max_steps=110)
    bar.setup(run, BoringModel(), "fit")
    bar._start = (time.monotonic() - seconds, 90)  # resumed at step 90; 10 steps since
    monkeypatch.setattr(Trainer, "global_step", 100)
    assert bar._remaining_time() == words


def test_a_narrow_screen_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    for module in ("lightning.pytorch.callbacks.progress.rich_progress", "vitlab.training.progress_bar"):
        monkeypatch.setattr(f"{module}.get_console", lambda: screen)
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
