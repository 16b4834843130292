"""One self-contained page of tables and pictures: no network, no script, every text escaped; light and dark, any width.

Its style sheet, `page.css`, is also that of a sweep's report.
"""

import base64
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vitlab.storage.atomic import atomic_write

SOURCES = Path(__file__).parent
DASH = "\N{EN DASH}"


def style_sheet() -> Markup:
    return Markup((SOURCES / "page.css").read_text())


def format_cell(value: object) -> str:
    """Text as it is; a float with four digits, a missing number (None, NaN) as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return DASH
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Page:
    """A page in the order in which its parts are added. `kind` is the line above the title."""

    def __init__(self, title: str, kind: str = "vitlab") -> None:
        self.title, self.kind = title, kind
        self.sections: list[dict[str, Any]] = []

    def add_section(self, title: str) -> None:
        self.sections.append({"title": title, "parts": []})

    def add_text(self, text: str) -> None:
        self._add(text=text)

    def add_table(self, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Add a table; columns of numbers and None alone are aligned right."""
        rows = [list(row) for row in rows]
        numeric = [all(row[k] is None or isinstance(row[k], int | float) for row in rows) for k in range(len(header))]
        self._add(header=list(header), rows=rows, numeric=numeric)

    def add_picture(self, picture: Path | bytes, caption: str) -> None:
        """Add a PNG."""
        data = picture if isinstance(picture, bytes) else picture.read_bytes()
        self._add(address=f"data:image/png;base64,{base64.b64encode(data).decode()}", caption=caption)

    def write(self, file: Path) -> None:
        environment = Environment(
            loader=FileSystemLoader(SOURCES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        environment.filters["cell"] = format_cell
        file.parent.mkdir(parents=True, exist_ok=True)
        text = environment.get_template("page.html").render(
            title=self.title,
            kind=self.kind,
            created=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            style=style_sheet(),
            sections=self.sections,
        )
        atomic_write(file, text)

    def _add(self, **part: Any) -> None:
        if not self.sections:
            self.add_section("")
        self.sections[-1]["parts"].append(part)
