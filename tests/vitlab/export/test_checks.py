"""Mistakes in the settings of an export are reported with value, knob and remedy."""

from vitlab.config.view import ConfigView
from vitlab.export.checks import export_problems


def test_a_wrong_setting_hides_no_other() -> None:
    settings = {"format": "zip", "tolerance": -1.0, "run": "run"}
    (line,) = export_problems(ConfigView(settings, {"format"}))
    assert line.startswith("tolerance=-1.0 must be 0 or more")
