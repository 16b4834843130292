"""Read the explanation of each argument from docstrings in Google style, in source files: `--help` imports no torch."""

import ast
import inspect
import re
from collections.abc import Mapping
from functools import cache

from vitlab.config import definitions

HEADER = re.compile(r"(Args|Arguments|Parameters):")
ENTRY = re.compile(r"\*{0,2}(\w+)\s*(?:\(.*?\))?\s*:(?:\s+|$)(.*)")  # `name (type, optional): text`
MARKUP = (
    (r":\w+:`~?([^`]*)`", r"`\1`"),
    (r"``", "`"),
    (r"\*\*|`_", ""),
    (r"\s*\(default: .*?\)(?=[.,\s]|$)", ""),  # which a column of its own shows
    (r"\s*\.\. \w+::.*", ""),
)


@cache
def argument_lines(target: str) -> Mapping[str, str]:
    """The explanations of a class's or function's arguments, by name; those of base classes come last.

    Of libraries they are first sentences without reStructuredText's markup.
    """
    if (definition := definitions.find(target)) is None:
        return {}
    node, inherited = definition.node, dict[str, str]()
    if isinstance(node, ast.FunctionDef):
        texts = [ast.get_docstring(node)]
    elif isinstance(node, ast.ClassDef):
        constructor = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        assigned = definitions.bindings(definition.module).get(f"{node.name}.__doc__")
        written = inspect.cleandoc(literal_text(assigned, definition.module))
        texts = [ast.get_docstring(node), written, *(ast.get_docstring(n) for n in constructor)]
        for base in node.bases:
            inherited |= argument_lines(definitions.qualified_name(base, definition.module))
    else:
        return {}
    lines = {name: text for docstring in texts for name, text in parse_arguments(docstring or "").items()}
    if definition.module.partition(".")[0] not in ("vitlab", "hydra_plugins"):
        for pattern, plain in MARKUP:
            lines = {name: re.sub(pattern, plain, text) for name, text in lines.items()}
        lines = {name: re.split(r"(?<=[^.][.])\s+(?=[A-Z`])", text)[0].strip() for name, text in lines.items()}
    return {**inherited, **lines}


def literal_text(value: object, module: str) -> str:
    """The text of an expression such as torch's `AdamW.__doc__ = r"..." + rf"...{_foreach_doc}..."`."""
    match value:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(literal_text(part, module) for part in parts)
        case ast.FormattedValue(value=part):
            return literal_text(part, module)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return literal_text(left, module) + literal_text(right, module)
        case ast.Name():
            definition = definitions.find(definitions.qualified_name(value, module))
            return literal_text(definition.node, definition.module) if definition else ""
    return ""


def parse_arguments(docstring: str) -> dict[str, str]:
    """The entries of a docstring's sections of arguments, each with its lines joined."""
    entries: dict[str, str] = {}
    header = indent = -1  # columns of the section's header and of its entries
    name = ""
    for line in docstring.splitlines():
        column = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if HEADER.fullmatch(line.strip()):
            header, indent, name = column, -1, ""
        elif header < 0 or column <= header:
            header, name = -1, ""
        else:
            indent = column if indent < 0 else indent
            if column <= indent:
                match = ENTRY.fullmatch(line.strip())
                name = match[1] if match else ""
                entries |= {name: match[2]} if match else {}
            elif name:
                entries[name] = f"{entries[name]} {line.strip()}".strip()
    return entries
