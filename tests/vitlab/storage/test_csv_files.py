"""A table as a spreadsheet may open it."""

from pathlib import Path

from vitlab.storage.csv_files import write_csv


def test_a_cell_is_no_formula_and_no_control_character(tmp_path: Path) -> None:
    write_csv(tmp_path / "jobs.csv", [["=1+1", -1.5, "-1.5", None, "a\x1b[2J\nb"]])
    assert (tmp_path / "jobs.csv").read_text() == "'=1+1,-1.5,-1.5,,a\\x1b[2J\\nb\n"
