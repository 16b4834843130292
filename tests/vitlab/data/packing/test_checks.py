"""The settings of packing and verifying are checked before anything is read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vitlab.config.schema import Node
from vitlab.config.view import ConfigView
from vitlab.data.packing import manifest
from vitlab.data.packing.checks import problems

USUAL: Node = {"action": "pack", "size": None, "quality": 90, "shard_images": 1024, "shuffle": True, "seed": 0}


def lines(bad: set[str] | None = None, **config: object) -> list[str]:
    return list(problems(ConfigView({**USUAL, **config}, bad or set())))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "out is not set; name the folder to pack into: out=FOLDER"),
        ({"out": __file__}, f"out={__file__} is a file; name a folder"),
        ({"action": "verify", "out": "new"}, "out=new is where images are packed, and verify packs none; leave it out"),
        ({"action": "verify", "data_dir": "hf://a"}, "data_dir=hf://a: verify reads a folder of this machine; do"),
    ],
)
def test_a_mistake_is_reported_with_value_knob_and_remedy(config: Node, problem: str) -> None:
    (line,) = lines(**config)
    assert line.startswith(problem)


def test_a_folder_that_can_t_be_verified_is_reported(packed: Callable[..., Path], tmp_path: Path) -> None:
    assert lines(action="verify", data_dir=str(packed())) == []
    (tmp_path / manifest.NAME).write_text('{"vitlab": 9}')
    (line,) = lines(action="verify", data_dir=str(tmp_path))
    assert "has version 9" in line
