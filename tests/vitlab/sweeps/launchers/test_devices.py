"""A machine's devices are shared out to jobs."""

import pytest

from vitlab.sweeps.launchers import devices
from vitlab.sweeps.launchers.devices import Devices


def test_eight_gpus_are_four_jobs_of_two() -> None:
    gpus = Devices("01234567", at_once=None)
    taken = [gpus.acquire(2) for _ in range(5)]
    assert taken == [["0", "1"], ["2", "3"], ["4", "5"], ["6", "7"], None]
    gpus.release(["2", "3"])
    assert gpus.acquire(2) == ["2", "3"]


def test_a_job_that_names_its_devices_gets_these_or_waits() -> None:
    gpus = Devices("abcd", at_once=None)
    assert gpus.acquire([1, 3]) == ["b", "d"]
    assert gpus.acquire([3]) is None
    assert gpus.acquire(2) == ["a", "c"]


def test_more_jobs_than_devices_share_them_evenly() -> None:
    gpus = Devices("01", at_once=4)
    taken = [gpus.acquire(1) for _ in range(5)]
    assert taken == [["0"], ["1"], ["0"], ["1"], None]


def test_gpus_are_counted_as_the_environment_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-1,7")
    assert devices.visible_gpus() == ["5", "GPU-1"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert devices.visible_gpus() == ["0", "1"]
