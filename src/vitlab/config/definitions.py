"""Find the definitions of dotted paths in source files: re-exports are followed, and nothing is imported.

    lightning.Trainer -> lightning.pytorch.Trainer -> ... -> the class in lightning/pytorch/trainer/trainer.py

Modules without source and names that are made at run time are unknown.
"""

import ast
import builtins
import importlib.util
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

Value = ast.ClassDef | ast.FunctionDef | ast.expr
Binding = Value | str  # of a name: the dotted path that it is imported from


@dataclass(frozen=True)
class Definition:
    """Where a name is bound to a class, a function or another value."""

    module: str
    name: str
    node: Value


def find_spec(module: str) -> ModuleSpec | None:
    """Like `importlib.util.find_spec`, without importing the packages that the module is in."""
    parent = module.rpartition(".")[0]
    if not parent:
        return importlib.util.find_spec(module)
    above = find_spec(parent)
    folders = list(above.submodule_search_locations or []) if above else []
    try:
        return PathFinder.find_spec(module, folders) if folders else None
    except KeyError:  # a folder without `__init__.py`: its path refers to its package, which isn't imported
        spec = ModuleSpec(module, None, is_package=True)
        name = module.removeprefix(f"{parent}.")
        spec.submodule_search_locations = [str(path) for folder in folders if (path := Path(folder, name)).is_dir()]
        return spec


def bindings(module: str) -> Mapping[str, Binding]:
    """The names of a module; none if it doesn't exist or has no readable source."""
    return _bindings(module, tuple(sys.path))


@cache
def _bindings(module: str, search_path: tuple[str, ...]) -> Mapping[str, Binding]:
    with suppress(ValueError, SyntaxError, RecursionError):  # `__main__`; modules that import * from each other
        spec = find_spec(module)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
            return _read_bindings(spec.origin, package)
    return {}


def _read_bindings(file: str, package: str) -> Mapping[str, Binding]:
    names: dict[str, Binding] = {}
    for statement in _statements(ast.parse(Path(file).read_bytes()).body):
        match statement:
            case ast.ClassDef() | ast.FunctionDef():
                names[statement.name] = statement
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                names[name] = value
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id=name), attr="__doc__")], value=value):
                names[f"{name}.__doc__"] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                names[name] = value
            case ast.Import():
                for alias in statement.names:
                    first = alias.name.partition(".")[0]
                    names[alias.asname or first] = alias.name if alias.asname else first
            case ast.ImportFrom(module=origin, names=aliases, level=level):
                above = package.split(".")[: package.count(".") + 2 - level] if level else []
                path = ".".join([*above, *([origin] if origin else [])])
                for alias in aliases:
                    some = (_star_names(path) or ["*"]) if alias.name == "*" else [alias.name]
                    names |= {alias.asname or name: f"{path}.{name}" for name in some}
    return names


def _star_names(module: str) -> list[str]:
    """The names that `from module import *` takes."""
    names = bindings(module)
    listed = names.get("__all__")
    if isinstance(listed, ast.List | ast.Tuple):
        return [str(item.value) for item in listed.elts if isinstance(item, ast.Constant)]
    return [name for name in names if not name.startswith("_")]


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, also in `if` and `try`; of two that bind the same name, the first comes last."""
    for statement in body:
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)
            yield from _statements(getattr(statement, "orelse", []))
            yield from _statements(statement.body)
        else:
            yield statement


def follow(path: str) -> Iterator[str]:
    """A dotted path, and each that it is imported from or an alias of; the last is that of the definition, if any."""
    passed: list[str] = []
    binding: Binding | None = path
    while isinstance(binding, str) and binding not in passed:
        passed.append(binding)
        yield binding
        module, _, name = binding.rpartition(".")
        binding = bindings(module).get(name)
        if isinstance(binding, ast.Name | ast.Attribute):  # NAME = OTHER
            other = qualified_name(binding, module)
            holder, _, name = other.rpartition(".")
            binding = other if name in bindings(holder) else binding


def find(path: str) -> Definition | None:
    """The definition that a dotted path names; None if it is not in source files."""
    *_, last = follow(path)
    module, _, name = last.rpartition(".")
    node = bindings(module).get(name)
    return None if node is None or isinstance(node, str) else Definition(module, name, node)


def is_module(name: str) -> bool:
    with suppress(ValueError, ImportError):
        return find_spec(name) is not None
    return False


def is_made_at_run_time(path: str) -> bool:
    """Whether a path is in a module whose source doesn't bind its name, which is none of Python's own (`__loader__`).

    Also false if the module imports everything (`*`) from one without a source file.
    """
    module, _, name = path.rpartition(".")
    names = bindings(module)
    return is_module(module) and name not in names and "*" not in names and not name.startswith("__")


def qualified_name(expression: ast.expr, module: str) -> str:
    """The dotted path of a name in a module's code (`nn.Module` -> `torch.nn.Module`); empty if it is no name."""
    match expression:
        case ast.Name(id=name):
            binding = bindings(module).get(name)
            built_in = binding is None and hasattr(builtins, name)
            return binding if isinstance(binding, str) else f"builtins.{name}" if built_in else f"{module}.{name}"
        case ast.Attribute(value=holder, attr=name):
            above = qualified_name(holder, module)
            return f"{above}.{name}" if above else ""
        case ast.Subscript(value=generic):
            return qualified_name(generic, module)
    return ""


def is_kind_of(path: str, kinds: Collection[str]) -> bool | None:
    """Whether a class is one of the kinds or is derived from one; None if source files don't say."""
    if any(step in kinds for step in follow(path)):
        return True
    if path.partition(".")[0] in sys.stdlib_module_names:
        return False
    definition = find(path)
    if definition is None or not isinstance(definition.node, ast.ClassDef):
        return None
    answers = [is_kind_of(qualified_name(base, definition.module), kinds) for base in definition.node.bases]
    return True if True in answers else None if None in answers else False
