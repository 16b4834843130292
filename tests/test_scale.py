"""Costs are measured in processes of their own, at three sizes, and extrapolated to real ones."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from timm.data.readers.reader_image_folder import find_images_and_targets

from benchmark.case import EXPONENT, OURS
from benchmark.timing import Clock, Measurement
from scale import made_up, subjects
from scale.costs import PEAK, PRIVATE, forked_contender, real_costs, subject_cases
from scale.subjects import SUBJECTS, Subject
from vitlab.runs.folder import list_runs, read_config, read_metrics
from vitlab.sweeps import ledger

CLOCK = Clock(rounds=1, seconds=0.0)


def burn(size: int) -> bytearray:
    end = time.process_time() + size / 1000
    while time.process_time() < end:
        pass
    return bytearray(b"1") * (size * 250_000)


def test_time_and_memory_are_those_of_the_call() -> None:
    freed = [b"1" * 100_000 for _ in range(1000)]
    top_of_heap = b"1" * 100_000
    del freed  # 100 MB that this process keeps, and that a forked one inherits
    contender = forked_contender("a", burn, 200)
    seconds = contender.run()
    del top_of_heap
    assert isinstance(seconds, float)
    assert 0.2 < seconds < 0.4
    assert contender.figures[PEAK] == pytest.approx(50, abs=5)
    assert contender.figures[PRIVATE] > 45
    with pytest.raises(RuntimeError, match="a failed with status 1"):
        forked_contender("a", lambda data: data["missing"], {}).run()


def test_the_exponent_leads_to_the_cost_at_a_real_size() -> None:
    subject = Subject(
        unit="things", sizes=(20, 40, 80), prepare=lambda folder, n: n, contenders={OURS: burn}, real={"all": 800}
    )
    *_, last = subject_cases("burning", subject, 1.0, CLOCK)
    assert (last.name, last.axis, last.size) == ("burning, 80 things", "things (burning)", 80)
    figures = last[OURS].figures
    assert figures[EXPONENT] == pytest.approx(1, abs=0.4)
    assert figures["s at all"] == pytest.approx(0.8, rel=0.6)
    flat = Measurement(name="a", seconds=(2.0,), figures={EXPONENT: 0.1})
    assert real_costs(flat, 10, {"x": 100}) == {"s at x": 20.0}, "at least linear"


@pytest.mark.long
def test_the_command_writes_a_table_and_a_picture(tmp_path: Path) -> None:
    line = [sys.executable, str(Path(__file__).parent / "scale"), "--only", "listing", "--size", "0.1", "--rounds", "1"]
    printed = subprocess.run([*line, "--out", str(tmp_path)], check=True, capture_output=True, text=True).stdout
    assert "scale: listing, 3,200 files   vitlab" in printed
    rows = (tmp_path / "benchmark.md").read_text()
    assert [f"listing, {size} files | vitlab" in rows for size in ("200", "800", "3,200")] == [True] * 3
    assert (tmp_path / "scale.png").is_file()


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_subject_is_measured_at_a_small_size(name: str, tmp_path: Path) -> None:
    subject = SUBJECTS[name]
    data = subject.prepare(tmp_path, 1000 if subject.unit == "labels" else 200)
    for run in subject.contenders.values():
        run(data)


def test_all_listings_find_the_same_files(tmp_path: Path) -> None:
    made_up.write_tree(tmp_path, 250)
    found = [len(run(tmp_path)) for run in (subjects.walk, subjects.list_by_torchvision)]
    assert [*found, len(find_images_and_targets(str(tmp_path))[0])] == [250, 250, 250]


def test_a_tree_has_as_many_images_in_a_hundred_classes(tmp_path: Path) -> None:
    source = made_up.write_images(tmp_path, 250)
    assert (len(source.train), len(source.classes)) == (250, 100)
    assert source.train.labels.bincount().tolist() == [3] * 50 + [2] * 50


def test_runs_and_sweeps_are_read_as_vitlab_s_own(tmp_path: Path) -> None:
    assert len(list_runs(made_up.write_runs(tmp_path / "runs", 3))) == 3
    (tmp_path / "sweep").mkdir()
    sweep = ledger.read_sweep(made_up.write_jobs(tmp_path / "sweep", 30))
    assert [job.status for job in sweep.jobs] == ["finished"] * 30
    assert read_config(sweep.jobs[0].folder) == made_up.job_config(0)
    assert len(list(read_metrics(sweep.jobs[0].folder / "metrics.csv"))) == 50


def test_a_log_has_as_many_rows(tmp_path: Path) -> None:
    assert len(list(filter(None, read_metrics(made_up.write_rows(tmp_path, 20))))) == 20
