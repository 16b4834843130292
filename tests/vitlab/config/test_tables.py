"""Every table next to a module can be read, and belongs to one."""

from pathlib import Path

import pytest

import vitlab
from vitlab.config.tables import read_table

TABLES = sorted(Path(vitlab.__file__).parent.rglob("*.yaml"))


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_a_table_is_read_by_the_module_of_its_name(file: Path) -> None:
    module = file.with_suffix(".py")
    assert "read_table(__file__)" in module.read_text()
    assert isinstance(read_table(str(module)), dict)


def test_the_tables_are_found() -> None:
    assert {file.stem for file in TABLES} >= {"guesses", "layouts", "renamed"}
