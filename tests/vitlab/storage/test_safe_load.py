"""A checkpoint from anywhere is read as weights and plain data, and runs nothing."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Program
from vitlab.config import allowlist
from vitlab.storage import safe_load


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_a_checkpoint_that_would_run_code_is_refused_in_one_line(
    twins: list[Path], program: Program, tmp_path: Path
) -> None:
    exploded = tmp_path / "exploded"
    zipped, bare = tmp_path / "zipped.ckpt", tmp_path / "bare.ckpt"
    saved = torch.load(twins[0] / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save({**saved, "more": Bomb(exploded)}, zipped)
    bare.write_bytes(pickle.dumps({"state_dict": {}, "more": Bomb(exploded)}, protocol=2))
    for file in (zipped, bare):
        with (
            pytest.raises(allowlist.NotTrusted, match="holds more than weights") as refused,
            safe_load.explain_unsafe_pickle(file),
        ):
            torch.load(file, weights_only=True)
        assert "mkdir" in str(refused.value)
        assert "\n" not in str(refused.value)
    shutil.copytree(twins[0], run := tmp_path / "run")
    shutil.copy(zipped, run / "checkpoints" / "last.ckpt")
    shutil.copy(zipped, run / "checkpoints" / "best.ckpt")
    last = "run/checkpoints/last.ckpt"
    output = program("train", f"resume={last}", "trainer.max_epochs=7", cwd=tmp_path, status=1)
    assert f"{last} is refused: it holds more than weights and plain data (posix.mkdir)" in output
    assert "weights_only" not in output, "torch's advice to run it all the same"
    error = json.loads((run / "results.json").read_text())["error"]
    assert error.startswith("NotTrusted: ")
    assert "\n" not in error
    output = program("evaluate", "run=run", "trainer.accelerator=cpu", cwd=tmp_path, status=1)
    assert "best.ckpt is refused: it holds more than weights and plain data" in output
    assert not exploded.exists()


def test_other_errors_of_loading_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="other"), safe_load.explain_unsafe_pickle("x"):
        raise RuntimeError("other")
