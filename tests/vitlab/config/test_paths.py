"""Paths in the source tree; those in a wheel are tested in tests/test_wheel.py."""

import sys
import tomllib

import pytest

from vitlab.config import paths


def test_the_source_tree_has_all_three() -> None:
    assert (paths.CONF / "train.yaml").is_file()
    assert (paths.EXPERIMENTS / "digits.yaml").is_file()
    assert (paths.PROGRAMS / "train.py").is_file()


def test_the_version_is_the_one_in_pyproject() -> None:
    assert paths.version() == tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_a_command_line_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["src/train.py", "seed=7"])
    assert paths.command_line(["seed=1", "name=two words"]) == "python src/train.py seed=1 'name=two words'"
    monkeypatch.setattr(sys, "argv", [str(paths.PACKAGE / "programs" / "train.py")])
    assert paths.command_line(["seed=1"]) == "vitlab train seed=1"
