"""Names from files and settings as text that is safe to show: on a terminal, in a log, in a table."""

import re
import unicodedata
from collections.abc import Iterable

NOT_TEXT = re.compile(r"[^\n\t]")
JOINERS = "\u200c\u200d"  # of letters and emoji
FORMULA = ("=", "+", "-", "@")  # spreadsheets calculate cells that begin with one of these


def printable(text: str) -> str:
    r"""The text with escapes (`\x1b`) for control characters and bytes that aren't UTF-8; line breaks, tabs remain."""
    if text.isascii() and text.isprintable():
        return text
    return NOT_TEXT.sub(lambda match: escape(match[0]), text)


def one_line(text: str) -> str:
    """The printable text with escapes for line breaks and tabs too."""
    return text if text.isprintable() else "".join(map(escape, text))


def table_cell(text: str) -> str:
    """The printable text in one line, with a quote before what a spreadsheet would calculate; numbers remain.

    A cell is its own cell.
    """
    line = one_line(text)
    if not line.startswith(FORMULA):
        return line
    try:
        float(line)
    except ValueError:
        return f"'{line}"
    return line


def escape(character: str) -> str:
    if character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def format_names(names: Iterable[str], most: int = 6) -> str:
    """The first names, and the number of the others."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
