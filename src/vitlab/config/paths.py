"""Folders of programs, configuration and experiments, in a source tree (or editable install) or in a wheel."""

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
IN_WHEEL = (PACKAGE / "conf").is_dir()  # hatch_build.py puts all three into the package
ROOT = PACKAGE if IN_WHEEL else PACKAGE.parents[1]
CONF = ROOT / "conf"
EXPERIMENTS = ROOT / "experiments"
PROGRAMS = ROOT / ("programs" if IN_WHEEL else "src")
COMMAND = "vitlab {}" if IN_WHEEL else "python src/{}.py"  # how a user starts a program


def version() -> str:
    """vitlab's version; a source tree need not be installed to know it."""
    if IN_WHEEL:
        from importlib import metadata

        return metadata.version("vitlab")
    import tomllib

    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def command_line(arguments: Iterable[str]) -> str:
    """The command that starts this program with other arguments."""
    program = Path(sys.argv[0])
    start = ["vitlab", program.stem] if program.parent == PACKAGE / "programs" else ["python", sys.argv[0]]
    return shlex.join([*start, *arguments])
