"""Training computes what it computed when golden_curves.json was written."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest
import torch

import golden_curves

GOLDEN = json.loads(golden_curves.FILE.read_text())


@pytest.fixture
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


LONG = {"deit3-like": pytest.mark.long}


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("name", [pytest.param(name, marks=LONG.get(name, ())) for name in golden_curves.RECIPES])
def test_losses_are_those_that_were_written_down(name: str, tmp_path: Path) -> None:
    """After a change that is meant to change them: python tests/golden_curves.py"""
    found, expected = golden_curves.losses(name, tmp_path), GOLDEN["losses"][name]
    assert len(found) == len(expected) >= golden_curves.STEPS
    if golden_curves.environment() == GOLDEN["environment"]:
        assert found == expected
    # elsewhere: the first loss, of the same weights and images; then rounding (bfloat16 within Muon) is enlarged
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert found[:10] == pytest.approx(expected[:10], rel=0.02)
    assert fmean(found[-50:]) == pytest.approx(fmean(expected[-50:]), rel=0.15)
