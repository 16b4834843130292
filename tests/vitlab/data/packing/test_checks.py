"""The settings of packing, verifying and indexing are checked before anything is read."""

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
        ({"action": "index", "out": "new"}, "out=new is where images are packed, and index packs none; leave it out"),
        ({"action": "index", "data_dir": "gone"}, "data_dir=gone has no tar files of a train split; move those of"),
        ({"action": "verify", "data_dir": "hf://a"}, "data_dir=hf://a: verify reads a folder of this machine; do"),
    ],
)
def test_a_mistake_is_reported_with_value_knob_and_remedy(config: Node, problem: str) -> None:
    (line,) = lines(**config)
    assert line.startswith(problem)


def test_folders_that_can_t_be_verified_or_indexed_are_reported(packed: Callable[..., Path], tmp_path: Path) -> None:
    assert lines(action="verify", data_dir=str(packed())) == []
    (tmp_path / manifest.NAME).write_text('{"vitlab": 9}')
    (tmp_path / "empty").mkdir()
    found = [
        *lines(action="verify", data_dir=str(tmp_path)),
        *lines(action="index", data_dir=str(packed())),
        *lines(action="index", data_dir=str(tmp_path / "empty")),
    ]
    expected = ["has version 9", "has an index already", "has no tar files of a train split"]
    assert [text in line for text, line in zip(expected, found, strict=True)] == [True] * 3
