"""A dotted path is followed through re-exports to its definition, in source files alone."""

import ast
import sys
from pathlib import Path

import pytest

from vitlab.config import definitions

FILES = {
    "__init__.py": "from .one import Shape as Form\nfrom .two import *\nimport package.one as first\n",
    "one.py": "import torch.nn as nn\nfrom torch import nn as networks\n\n\nclass Shape(nn.Module): ...\n",
    "two.py": """
from package.one import Shape
__all__ = ["Circle", "loop"]
try:
    from missing import Disc
except ImportError:
    Disc = None
class Circle(Shape): ...
class Hidden: ...
class Odd(make_base()): ...
class Plain(dict): ...
alias = Circle
""",
    "loop.py": "from package.pool import name\n",
    "pool.py": "from package.loop import name\n",
}


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `package` that fails when it is imported."""
    (folder := tmp_path / "package").mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(f"{text}\nraise AssertionError\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "definition"),
    [
        ("package.one.Shape", "package.one.Shape"),
        ("package.Form", "package.one.Shape"),
        ("package.Circle", "package.two.Circle"),
        ("package.two.Disc", None),
        ("package.Hidden", None),
        ("package.two.alias", "package.two.Circle"),
        ("package.gone", None),
        ("package.loop.name", None),
        ("package.one.Shape.method", None),
        ("nowhere.Shape", None),
        ("torch.nn.Module", "torch.nn.modules.module.Module"),
        ("lightning.Trainer", "lightning.pytorch.trainer.trainer.Trainer"),
    ],
)
def test_a_name_is_found_where_it_is_defined(path: str, definition: str | None) -> None:
    known = definitions.find(path)
    assert (f"{known.module}.{known.name}" if known else None) == definition
    assert known is None or isinstance(known.node, ast.ClassDef)
    assert "package" not in sys.modules


def test_the_steps_to_a_definition_come_in_their_order() -> None:
    assert list(definitions.follow("package.Form")) == ["package.Form", "package.one.Shape"]
    assert list(definitions.follow("package.loop.name")) == ["package.loop.name", "package.pool.name"]


@pytest.mark.parametrize(
    ("path", "kinds", "answer"),
    [
        ("package.Circle", {"torch.nn.Module"}, True),
        ("package.Circle", {"package.one.Shape"}, True),
        ("package.Circle", {"torch.optim.Optimizer"}, False),
        ("package.two.Plain", {"torch.nn.Module"}, False),
        ("package.two.Odd", {"torch.nn.Module"}, None),
        ("package.two.alias", {"torch.nn.Module"}, True),
        ("package.gone", {"torch.nn.Module"}, None),
    ],
)
def test_a_class_is_of_a_kind_by_its_bases(path: str, kinds: set[str], answer: bool | None) -> None:
    assert definitions.is_kind_of(path, kinds) is answer


def test_a_module_without_source_or_with_wrong_syntax_has_no_names(tmp_path: Path) -> None:
    (tmp_path / "package" / "wrong.py").write_text("def\n")
    assert definitions.bindings("package.wrong") == {}
    assert definitions.bindings("sys") == {}
    assert definitions.bindings("") == {}


def test_a_name_that_source_does_not_bind_is_made_at_run_time(tmp_path: Path) -> None:
    (tmp_path / "package" / "extension.py").write_text("from posix import *\n")
    assert definitions.is_made_at_run_time("package.made")
    assert not definitions.is_made_at_run_time("package.two.Circle")
    assert not definitions.is_made_at_run_time("package.gone.made")
    assert not definitions.is_made_at_run_time("package.__loader__"), "Python's own"
    assert not definitions.is_made_at_run_time("package.extension.system"), "perhaps of another module"
