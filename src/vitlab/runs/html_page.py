"""One self-contained page of tables and pictures: no network, no script, every text escaped; light and dark, any width.

Its style sheet, `page.css`, is also that of a sweep's report.
"""

import base64
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from vitlab.storage.atomic import atomic_write

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
PAGE = Markup("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title} · {kind}</title>
<link rel="icon" href="data:,"><style>{style}</style></head>
<body><main><header><p class="over">{kind}</p><h1>{title}</h1><p class="facts">{created}</p></header>
<section>{parts}</section></main></body></html>
""")
TABLE = Markup('<div class="scroll plain" tabindex="0"><table><thead>{}</thead><tbody>{}</tbody></table></div>\n')
PICTURE = Markup('<figure class="picture"><img src="{}" alt="{caption}"><figcaption>{caption}</figcaption></figure>\n')


def style_sheet() -> Markup:
    return Markup((Path(__file__).parent / "page.css").read_text())


class Page:
    """A page in the order in which its parts are added. `kind` is the line above the title."""

    def __init__(self, title: str, kind: str = "vitlab") -> None:
        self.title, self.kind, self.parts = title, kind, Markup("")

    def add_section(self, title: str) -> None:
        self.parts += Markup("</section>\n<section><h2>{}</h2>\n").format(title)

    def add_text(self, text: str) -> None:
        self.parts += Markup('<p class="note">{}</p>\n').format(text)

    def add_table(self, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Add a table. Floats have four digits; a missing number (None, NaN) is a dash."""
        rows = [list(row) for row in rows]
        number = [all(isinstance(row[k], int | float | None) for row in rows) for k in range(len(header))]
        body = Markup("").join(table_row("td", row, number) for row in rows)
        self.parts += TABLE.format(table_row("th", header, number), body)

    def add_picture(self, picture: Path | bytes, caption: str) -> None:
        """Add a PNG."""
        data = picture if isinstance(picture, bytes) else picture.read_bytes()
        address = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        self.parts += PICTURE.format(address, caption=caption)

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        texts = {"title": self.title, "kind": self.kind, "created": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}
        atomic_write(file, PAGE.format(policy=POLICY, style=style_sheet(), parts=self.parts, **texts))


def table_row(tag: str, cells: Iterable[object], number: Sequence[bool]) -> Markup:
    row = Markup("")
    for cell, is_number in zip(cells, number, strict=True):
        text = f"{cell:.4g}" if isinstance(cell, float) else str(cell)
        text = "\N{EN DASH}" if cell is None or cell != cell else text  # NaN isn't itself
        kind = "n" if is_number else "long" if len(text) > 40 else "t"
        row += Markup("<{0} class={1}>{2}</{0}>").format(tag, kind, text)
    return Markup("<tr>{}</tr>\n").format(row)
