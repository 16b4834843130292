"""metrics.csv loses and repeats nothing."""

import csv
from pathlib import Path
from typing import Any

import pytest

from vitlab.runs.metrics_file import MetricsFile


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


# ----------------------------------------------------------------------------------------------------- metrics.csv


def test_a_row_goes_to_the_file_at_once(tmp_path: Path) -> None:
    file = MetricsFile(folder=str(tmp_path))
    assert not (tmp_path / "metrics.csv").exists(), "nothing was logged"
    file.log_metrics({"train/loss": 2.5}, step=1)
    assert rows(tmp_path) == [{"step": "1", "train/loss": "2.5"}]
    file.log_metrics({"train/loss": 0.1 + 0.2}, step=2)
    assert float(rows(tmp_path)[1]["train/loss"]) == 0.1 + 0.2, "no digit is lost"


def test_a_new_name_makes_a_column_and_keeps_the_rows_before(tmp_path: Path) -> None:
    file = MetricsFile(folder=str(tmp_path))
    file.log_metrics({"train/loss": 2.0}, step=1)
    file.log_metrics({"val/acc": 0.5}, step=1)
    file.log_metrics({"train/loss": 1.0}, step=2)
    assert rows(tmp_path) == [
        {"step": "1", "train/loss": "2.0", "val/acc": ""},
        {"step": "1", "train/loss": "", "val/acc": "0.5"},
        {"step": "2", "train/loss": "1.0", "val/acc": ""},
    ]


def test_a_reopened_file_is_appended_to(tmp_path: Path) -> None:
    MetricsFile(folder=str(tmp_path)).log_metrics({"a": 1.0}, step=1)
    again = MetricsFile(folder=str(tmp_path))
    again.log_metrics({"a": 2.0}, step=2)
    again.log_metrics({"b": 3.0}, step=3)
    assert rows(tmp_path) == [
        {"step": "1", "a": "1.0", "b": ""},
        {"step": "2", "a": "2.0", "b": ""},
        {"step": "3", "a": "", "b": "3.0"},
    ]


def test_rewinding_drops_the_steps_that_will_be_made_again_and_no_others(tmp_path: Path) -> None:
    file = MetricsFile(folder=str(tmp_path))
    for step in range(1, 6):
        file.log_metrics({"a": float(step)}, step=step)
    again = MetricsFile(folder=str(tmp_path))
    again.rewind(3)
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3"]
    again.log_metrics({"a": 40.0}, step=4)
    assert [row["a"] for row in rows(tmp_path)] == ["1.0", "2.0", "3.0", "40.0"]
    again.rewind(10)
    assert len(rows(tmp_path)) == 4
    again.rewind(0)
    assert rows(tmp_path) == []


def test_a_file_shorter_than_its_checkpoint_says_is_reported_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = MetricsFile(folder=str(tmp_path))
    for step in range(1, 6):
        file.log_metrics({"a": float(step)}, step=step)
    MetricsFile(folder=str(tmp_path)).rewind(5, 5)
    assert caplog.messages == []
    content = (tmp_path / "metrics.csv").read_bytes()
    for damaged, lost in (
        (content[:-6], 1),
        (content[:-3], 1),
        (content.replace(b"3,3.0", b"\xff\x00,"), 1),
        (b"\x80" * 99, 5),
        (b"", 5),
    ):
        caplog.clear()
        (tmp_path / "metrics.csv").write_bytes(damaged)
        again = MetricsFile(folder=str(tmp_path))
        again.rewind(5, 5)
        assert len(rows(tmp_path)) == 5 - lost
        again.log_metrics({"a": 6.0}, step=6)
        assert rows(tmp_path)[-1] == {"step": "6", "a": "6.0"}
        words = f"metrics.csv is shorter than its checkpoint says: {lost} of the 5 rows before step 5 are lost"
        assert f"{words}; the file is kept as metrics.csv.damaged" in caplog.text
        assert (tmp_path / "metrics.csv.damaged").read_bytes() == damaged


def test_a_deleted_file_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    MetricsFile(folder=str(tmp_path)).rewind(0, 0)
    assert caplog.messages == []
    MetricsFile(folder=str(tmp_path)).rewind(9, 2)
    assert caplog.messages[0].endswith("2 of the 2 rows before step 9 are lost")


def test_an_interrupted_rewrite_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = MetricsFile(folder=str(tmp_path))
    file.log_metrics({"a": 1.0}, step=1)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(csv.DictWriter, "writerow", killed)
    with pytest.raises(KeyboardInterrupt):
        file.log_metrics({"b": 1.0}, step=2)
    assert rows(tmp_path) == [{"step": "1", "a": "1.0"}]


def test_epochs_that_an_earlier_version_counted_from_0_count_from_1_in_a_resumed_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,epoch,a\n1,0.0,1.0\n2,1.0,2.0\n2,,3.0\n3,1.0,4.0\n")
    file = MetricsFile(folder=str(tmp_path))
    file.rewind(2)
    file.log_metrics({"epoch": 2, "a": 4.0}, step=3)
    assert [row["epoch"] for row in rows(tmp_path)] == ["1.0", "2.0", "", "2.0"]
    MetricsFile(folder=str(tmp_path)).rewind(3)
    assert [row["epoch"] for row in rows(tmp_path)] == ["1.0", "2.0", "", "2.0"], "and only once"
