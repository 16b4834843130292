"""Names from files and settings can't control a terminal, forge a line of a log, or start a formula."""

import pytest

from vitlab.config.printable import one_line, printable, table_cell


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain été 犬 👩\u200d🚀", "plain été 犬 👩\u200d🚀"),
        ("10\xa0%, thin\u2009space", "10\xa0%, thin\u2009space"),
        ("a line\n\tand another", "a line\n\tand another"),
        ("\x1b[2J\x07\r\x00\x7f\x9b", "\\x1b[2J\\x07\\r\\x00\\x7f\\x9b"),
        ("right to left \u202egnp.exe", "right to left \\u202egnp.exe"),
        (b"caf\xe9.png".decode("utf-8", "surrogateescape"), "caf\\udce9.png"),
    ],
)
def test_what_is_no_text_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).encode("utf-8").decode("utf-8") == shown


def test_a_name_stays_in_its_line() -> None:
    assert one_line("a\nERROR b\tc\u2028d\x85e") == "a\\nERROR b\\tc\\u2028d\\x85e"
    assert one_line("été") == "été"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-cmd", "'-cmd"),
        ("\t=1", "\\t=1"),
        ("-1.5e-3", "-1.5e-3"),
        ("+7", "+7"),
        ("a=1", "a=1"),
        ("", ""),
    ],
)
def test_a_spreadsheet_calculates_no_cell(text: str, cell: str) -> None:
    assert table_cell(text) == cell
    assert table_cell(cell) == cell
