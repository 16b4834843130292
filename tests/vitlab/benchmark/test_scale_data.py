"""The data of the scale benchmark are of the size that is asked for, and what vitlab itself writes and reads."""

from pathlib import Path

from vitlab.benchmark import scale_data
from vitlab.runs.folder import list_runs, read_config, read_metrics
from vitlab.sweeps import ledger


def test_a_tree_has_as_many_images_in_a_hundred_classes(tmp_path: Path) -> None:
    source = scale_data.write_images(tmp_path, 250)
    assert (len(source.train), len(source.classes)) == (250, 100)
    assert source.train.labels.bincount().tolist() == [3] * 50 + [2] * 50


def test_runs_and_sweeps_are_read_as_vitlab_s_own(tmp_path: Path) -> None:
    assert len(list_runs(scale_data.write_runs(tmp_path / "runs", 3))) == 3
    (tmp_path / "sweep").mkdir()
    sweep = ledger.read_sweep(scale_data.write_jobs(tmp_path / "sweep", 30))
    assert [job.status for job in sweep.jobs] == ["finished"] * 30
    assert read_config(sweep.jobs[0].folder) == scale_data.job_config(0)
    assert len(list(read_metrics(sweep.jobs[0].folder / "metrics.csv"))) == 50


def test_a_log_has_as_many_rows(tmp_path: Path) -> None:
    assert len(list(filter(None, read_metrics(scale_data.write_rows(tmp_path, 20))))) == 20
