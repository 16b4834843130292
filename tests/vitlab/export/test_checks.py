"""Mistakes in the settings of an export are reported with value, knob and remedy."""

from pathlib import Path
from typing import Any

from vitlab.config.view import ConfigView
from vitlab.export.checks import export_problems


def test_a_missing_checkpoint_is_reported_unless_its_settings_are_wrong(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"format": "timm", "run": "nowhere", "checkpoint": "best", "out": str(tmp_path / "out")}
    assert list(export_problems(ConfigView(settings, set()))) == [
        "checkpoint=best: nowhere/checkpoints has no best.ckpt"
    ]
    assert list(export_problems(ConfigView(settings, {"format"}))) == []
