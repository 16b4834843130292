"""Mistakes in the settings of an export are reported with value, knob and remedy."""

from pathlib import Path
from typing import Any

from conftest import Exportable
from vitlab.config.view import ConfigView
from vitlab.export.checks import export_problems


def test_a_missing_checkpoint_is_reported_unless_its_settings_are_wrong(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"format": "timm", "run": "nowhere", "checkpoint": "best", "out": str(tmp_path / "out")}
    assert list(export_problems(ConfigView(settings, set()))) == [
        "checkpoint=best: nowhere/checkpoints has no best.ckpt"
    ]
    assert list(export_problems(ConfigView(settings, {"format"}))) == []


def test_channels_are_added_to_networks_of_gray_images_alone(exportable: Exportable, tmp_path: Path) -> None:
    for channels, count in ((1, 0), (3, 1)):
        run = str(exportable(in_channels=channels).weights.run)
        settings: dict[str, Any] = {"format": "safetensors", "run": run, "checkpoint": "best", "channels": 3}
        found = list(export_problems(ConfigView({**settings, "out": str(tmp_path / "out")}, set())))
        message = "channels=3 is for vitlab's networks of gray images, and this is none; leave it out"
        assert found == [message] * count
