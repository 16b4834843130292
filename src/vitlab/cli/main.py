"""The command `vitlab`: `vitlab train ...` runs what `python src/train.py ...` runs; alone, it lists the programs."""

import ast
import runpy
import signal
import sys
from pathlib import Path

from vitlab.config.paths import PROGRAMS, version
from vitlab.config.schema import suggest


def main() -> None:
    programs = {file.stem: file for file in sorted(PROGRAMS.glob("*.py"))}
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(overview(programs), file=sys.stdout)
    elif name == "--version":
        print(f"vitlab {version()}", file=sys.stdout)
    elif name not in programs:
        there = f"{suggest(name, programs)} (of {', '.join(programs)})"
        print(f"vitlab: there is no program {name!r}{there}", file=sys.stderr)
        sys.exit(2)
    else:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # as in vitlab/__init__.py
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        sys.argv = [str(programs[name]), *arguments]
        sys.path.insert(0, str(PROGRAMS))  # as `python FILE` does
        runpy.run_path(sys.argv[0], run_name="__main__")


def overview(programs: dict[str, Path]) -> str:
    """The programs with the first line of their docstrings, read without importing them."""
    lines = ["vitlab PROGRAM [GROUP=OPTION ...] [KEY=VALUE ...]", ""]
    for name, file in programs.items():
        first = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
        lines.append(f"  {name:<11}{first}")
    return "\n".join([*lines, "", "  vitlab PROGRAM --help shows its groups and settings; vitlab --version"])
