"""A checkpoint from anywhere is read as weights and plain data, and runs nothing."""

import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
import train
from vitlab.config import allowlist
from vitlab.storage import safe_load


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_a_checkpoint_that_would_run_code_is_refused_in_one_line(
    twins: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_program(name: str, *arguments: str) -> str:
        """Run a program in this process to its failure, and return its output."""
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "trainer.accelerator=cpu", *arguments])
        with pytest.raises(SystemExit) as end:
            {"train": train, "evaluate": evaluate}[name].main()
        assert end.value.code == 1
        return capsys.readouterr().err

    monkeypatch.chdir(tmp_path)
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
    output = run_program("train", f"resume={last}", "trainer.max_epochs=7", "logger=csv")
    assert f"{last} is refused: it holds more than weights and plain data (posix.mkdir)" in output
    assert "weights_only" not in output, "torch's advice to run the code"
    error = json.loads((run / "results.json").read_text())["error"]
    assert error.startswith("NotTrusted: ")
    assert "\n" not in error
    output = run_program("evaluate", "run=run")
    assert "best.ckpt is refused: it holds more than weights and plain data" in output
    assert not exploded.exists()


def test_other_errors_of_loading_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="other"), safe_load.explain_unsafe_pickle(Path("x")):
        raise RuntimeError("other")
