"""The picture of a run shows its curves, whatever of them there is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vitlab.runs import plots
from vitlab.runs.metrics_file import MetricsFile


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were drawn."""
    made: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(plots, "Figure", Kept)
    return made


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    found = [line for axis in figure.axes for line in axis.get_lines()]
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in found}  # type: ignore[arg-type]


def colors(file: Path) -> int:
    with Image.open(file) as picture:
        return len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0))


def test_losses_scores_rates_and_speed_are_drawn_against_the_images_seen(tmp_path: Path, drawn: list[Figure]) -> None:
    metrics = MetricsFile(folder=str(tmp_path))
    for step in (1, 2, 3):
        row = {"train/loss": 3.0 - step, "lr/decay": step / 10, "lr/no_decay": step / 5, "train/images_per_second": 9.0}
        row |= {"train/mfu": 0.4, "train/data_wait": 0.1}
        metrics.log_metrics({**row, "images": 64.0 * step}, step=step)
        metrics.log_metrics({"val/loss": 2.0, "val/acc": step / 4, "val/acc5": 1.0, "images": 64.0 * step}, step=step)
    metrics.log_metrics({"test/acc": 0.5}, step=3)
    plots.plot_curves(metrics.file, tmp_path / "figures" / "curves.png", "a title")
    found = lines(drawn[0])
    seen = [64.0, 128.0, 192.0]
    assert found.keys() == {
        *("train/loss", "val/loss", "val/acc", "val/acc5", "lr/decay", "lr/no_decay", "train/images_per_second"),
        *("train/mfu", "train/data_wait"),
    }
    assert found["train/mfu"] == (seen, [0.4, 0.4, 0.4])
    assert found["val/acc"] == (seen, [0.25, 0.5, 0.75])
    assert found["lr/no_decay"] == (seen, [0.2, 0.4, 0.6])
    assert found["train/loss"] == (seen, [2.0, 1.0, 0.0])
    assert drawn[0].get_suptitle() == "a title"
    assert drawn[0].axes[0].get_yscale() == "linear", "a loss of 0 has no logarithm"
    assert colors(tmp_path / "figures" / "curves.png") > 50


def test_a_positive_loss_is_drawn_on_a_logarithmic_scale(tmp_path: Path, drawn: list[Figure]) -> None:
    metrics = MetricsFile(folder=str(tmp_path))
    for step in (1, 2, 3):
        metrics.log_metrics({"train/loss": 10.0**-step, "images": float(step)}, step=step)
    plots.plot_curves(metrics.file, tmp_path / "curves.png", "")
    assert drawn[0].axes[0].get_yscale() == "log"


def test_one_row_without_validation_is_a_dot_and_no_error(tmp_path: Path, drawn: list[Figure]) -> None:
    metrics = MetricsFile(folder=str(tmp_path))
    metrics.log_metrics({"train/loss": 2.0, "lr/decay": 0.1, "images": 64.0}, step=1)
    plots.plot_curves(metrics.file, tmp_path / "curves.png", "")
    assert lines(drawn[0]) == {"train/loss": ([64.0], [2.0]), "lr/decay": ([64.0], [0.1])}
    assert drawn[0].axes[0].get_lines()[0].get_marker() == "o", "a line of one point can't be seen"
    assert colors(tmp_path / "curves.png") > 20


def test_no_rows_at_all_make_empty_axes(tmp_path: Path, drawn: list[Figure]) -> None:
    (tmp_path / "metrics.csv").write_text("step\n")
    plots.plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", "")
    assert lines(drawn[0]) == {}
    assert (tmp_path / "curves.png").stat().st_size > 0
