"""Parts are measured in order, what there is is on disk after each case, and goals are counted."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vitlab.benchmark import run
from vitlab.benchmark.case import Case, Part
from vitlab.benchmark.devices import Devices
from vitlab.diagnostics.timing import CPU, Clock, Measurement

CLOCK = Clock(rounds=1, seconds=0)
FAST, SLOW = Measurement(name="vitlab", seconds=(1.0,)), Measurement(name="timm", seconds=(2.0,))


class Two(Part):
    """Two cases; the second looks for the first on disk."""

    part = "networks"

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, ""

    def cases(self, clock: Clock) -> Iterator[Case]:
        yield Case(part=self.part, name="first", measured=[FAST, SLOW])
        self.seen = (self.folder / "benchmark.md").read_text()
        yield Case(part=self.part, name="second", measured=[SLOW, FAST.__class__(name="vitlab", seconds=(4.0,))])


class Broken(Two):
    def cases(self, clock: Clock) -> Iterator[Case]:
        for name in ("vitlab.training.classifier", "vitlab.data.source"):
            logging.getLogger(name).info("a split of a training")
            logging.getLogger(name).warning("an image is broken")
        yield Case(part="start", name="only", unit=None, measured=[FAST])
        raise MemoryError("no room")


def test_each_case_is_logged_written_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = Two(tmp_path)
    with caplog.at_level(logging.INFO):
        assert run.run({"networks": part}, CLOCK, tmp_path) == {"cases": 2, "goals reached": 1, "goals missed": 1}
    assert "| first |" in part.seen
    assert "| second |" not in part.seen
    assert "networks: first   vitlab 1   timm 0.5 images/s   seconds 0.50 x timm (goal: at most 1)" in caplog.text
    assert f"1 of 2 goals reached; {tmp_path / 'benchmark.md'}" in caplog.text


def test_a_part_that_fails_keeps_what_it_has_and_the_others_follow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(RuntimeError, match=r"failed: start \(MemoryError: no room\)"):
        run.run({"start": Broken(tmp_path), "networks": Two(tmp_path)}, CLOCK, tmp_path)
    assert "start: only   vitlab 1 s\n" in caplog.text
    table = (tmp_path / "benchmark.md").read_text()
    assert "| only |" in table
    assert "| second |" in table
    assert "a split of a training" not in caplog.text
    assert caplog.text.count("an image is broken") == 2


def test_skipped_parts_are_logged_and_write_no_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        results = run.run({"devices": Devices()}, CLOCK, tmp_path)
    assert results == {"cases": 0, "goals reached": 0, "goals missed": 0}
    assert list(tmp_path.iterdir()) == []
    assert "devices: skipped" in caplog.text
    assert "nothing was measured" in caplog.text


def test_threads_are_set_and_in_the_title() -> None:
    before = torch.get_num_threads()
    try:
        clock = run.clock(rounds=3, seconds=0.1, threads=2, accelerator="cpu")
        assert clock.device == CPU
        title = run.description(clock)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert title.startswith(f"{run.processor()}, 2 threads, torch {torch.__version__.partition('+')[0]}")
