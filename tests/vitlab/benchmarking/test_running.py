"""Parts are measured in order, what is there is on the disk after each case, and goals are counted."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmark_cases import measured
from vitlab.benchmarking import running
from vitlab.benchmarking.devices import Devices
from vitlab.benchmarking.timing import Case, Clock, Goal, Part


class Two(Part):
    """Two cases; the second looks for the first on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, ""

    def cases(self, clock: Clock) -> Iterator[Case]:
        rows = [measured("vitlab", 1.0), measured("timm", 2.0)]
        yield Case(part="two", name="first", unit="images", measured=rows, goals=[Goal(least=1.0)])
        self.seen = (self.folder / "benchmark.md").read_text()
        yield Case(part="two", name="second", unit="images", measured=rows, goals=[Goal(least=3.0)])

    def draw(self, cases: Sequence[Case], folder: Path) -> None:
        (folder / "two.txt").write_text(" ".join(case.name for case in cases))


def test_each_case_is_told_written_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = Two(tmp_path)
    with caplog.at_level(logging.INFO):
        found = running.run({"two": part}, Clock(rounds=1, seconds=0), tmp_path)
    assert found == {"cases": 2, "goals reached": 1, "goals missed": 1}
    assert "| first |" in part.seen
    assert "| second |" not in part.seen
    assert "second" in (tmp_path / "benchmark.csv").read_text()
    assert (tmp_path / "two.txt").read_text() == "first second"
    assert "two: first   vitlab 1   timm 0.5 images/s   2.00 x timm (goal 1)" in caplog.text
    assert "goals: 1 of 2 reached" in caplog.text


def test_a_start_is_told_in_seconds_and_no_goals_are_not_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [measured("vitlab", 10.0), measured("imports", 8.0)]
    start = Case(part="start", name="train.py", unit="starts", measured=rows, goals=[Goal(least=1 / 1.3)], lasting=True)
    told = "start: train.py   vitlab 10   imports 8 s   takes 1.25 x as long as imports (goal at most 1.3)"
    assert running.line(start) == told

    class One(Part):
        def cases(self, clock: Clock) -> Iterator[Case]:
            yield Case(part="one", name="only", unit="images", measured=rows)

    with caplog.at_level(logging.INFO):
        running.run({"one": One()}, Clock(rounds=1, seconds=0), tmp_path)
    assert "goals:" not in caplog.text
    assert str(tmp_path / "benchmark.md") in caplog.text


def test_parts_that_are_left_out_leave_no_table_and_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = running.run({"devices": Devices()}, Clock(rounds=1, seconds=0), tmp_path)
    assert found == {"cases": 0, "goals reached": 0, "goals missed": 0}
    assert list(tmp_path.iterdir()) == []
    assert "devices: left out" in caplog.text
    assert "nothing was measured" in caplog.text


def test_what_a_training_tells_of_itself_is_not_in_the_benchmarks_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Telling(Part):
        def cases(self, clock: Clock) -> Iterator[Case]:
            for name in ("vitlab.classifier", "vitlab.data.sets.image_folder"):
                logging.getLogger(name).info("test split: here")
                logging.getLogger(name).warning("one is broken")
            yield from ()

    with caplog.at_level(logging.INFO):
        running.run({"telling": Telling()}, Clock(rounds=1, seconds=0), tmp_path)
        logging.getLogger("vitlab.classifier").info("afterwards")
    assert "test split" not in caplog.text
    assert caplog.text.count("one is broken") == 2
    assert "afterwards" in caplog.text


class Broken(Two):
    def cases(self, clock: Clock) -> Iterator[Case]:
        yield Case(part="broken", name="whole", unit="images", measured=[measured("vitlab", 1.0)])
        raise MemoryError("no room")


def test_a_part_that_ends_with_an_error_keeps_what_it_has_and_the_others_go_on(tmp_path: Path) -> None:
    parts = {"broken": Broken(tmp_path), "two": Two(tmp_path)}
    with pytest.raises(RuntimeError, match=r"not measured to the end: broken \(MemoryError: no room\)"):
        running.run(parts, Clock(rounds=1, seconds=0), tmp_path)
    table = (tmp_path / "benchmark.md").read_text()
    assert "| whole |" in table
    assert "| second |" in table
