"""The signature is the schema: a configuration node is checked against the callable it configures.

A node is a mapping with `_target_`, as Hydra's `instantiate` takes it. Every key must be a parameter of the
target, every value must fit the parameter's annotation, every mandatory parameter must be there. All
problems are collected, none raises, so that one message can show them together.

`defaults` reads a signature from source, without importing the module: composing, `--help` and `--cfg` must not
wait for torch.
"""

import ast
import difflib
import importlib
import importlib.util
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

Node = dict[str, Any]

# What `instantiate` itself reads in a node.
RESERVED = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}


def steps(target: str) -> Iterator[tuple[str, Any]]:
    """The modules and attributes on the way to what a dotted path names, each with its path, in Hydra's order.

    Nothing is imported before it is asked for. `ImportError` says which part of the path does not exist.
    """
    first, *rest = target.split(".")
    if not rest or importlib.util.find_spec(first) is None:
        raise ImportError(f"there is no module {first!r}")
    path, found = first, typing.cast(Any, importlib.import_module(first))
    yield path, found
    for part in rest:
        path, holder, before = f"{path}.{part}", found, path
        if hasattr(holder, part):
            found = getattr(holder, part)
        elif hasattr(holder, "__path__") and importlib.util.find_spec(path) is not None:
            found = importlib.import_module(path)
        else:
            raise ImportError(f"{before} has no {part!r}{suggest(part, dir(holder))}")
        yield path, found


def resolve(target: str) -> Callable[..., Any]:
    """The object behind a dotted path; `ImportError` says which part of the path does not exist."""
    *_, (_, found) = steps(target)
    return typing.cast(Callable[..., Any], found)


@lru_cache
def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters by name, annotations evaluated where they can be, without `self`."""
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):  # a library's annotation that only a type checker can evaluate
        hints = {}
    found = inspect.signature(target).parameters
    return {
        name: parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in found.items()
        if parameter.kind is not inspect.Parameter.VAR_POSITIONAL
    }


def defaults(target: str) -> Node:
    """`{"_target_": target, parameter: default, ...}` for a callable of this package, read from its source.

    Parameters without a default are left out. Nothing is imported but the parents of the module.
    """
    module, name = target.rsplit(".", 1)
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    for statement in ast.parse(Path(spec.origin).read_text()).body:
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            functions = [item for item in statement.body if isinstance(item, ast.FunctionDef)]
            function = next(item for item in functions if item.name == "__init__")
            break
        if isinstance(statement, ast.FunctionDef) and statement.name == name:
            function = statement
            break
    else:
        raise LookupError(f"{module} defines no {name}")
    arguments = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    node = {argument.arg: ast.literal_eval(value) for argument, value in arguments if value is not None}
    return {"_target_": target, **{k: list(v) if isinstance(v, tuple) else v for k, v in node.items()}}


def suggest(word: str, candidates: Iterable[str]) -> str:
    """`; did you mean 'dim'?`, or nothing where no candidate is close."""
    close = difflib.get_close_matches(word, [c for c in candidates if not c.startswith("_")], n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def node_problems(path: str, node: Mapping[str, Any], supplied: Iterable[str] = ()) -> list[str]:
    """What is wrong with a node and the nodes in it. `supplied`: parameters that the program passes itself."""
    target = node.get("_target_")
    if not isinstance(target, str):
        return [f"{path}._target_={target!r} is not a dotted path to a callable"]
    try:
        callable_ = resolve(target)
    except ImportError as error:
        return [f"{path}._target_={target} can't be imported: {error}"]
    # what calls a partial one is known where it is told what it supplies
    partial = node.get("_partial_", False) and not supplied
    return call_problems(path, node, callable_, supplied=supplied, partial=partial)


def call_problems(
    path: str,
    arguments: Mapping[str, Any],
    target: Callable[..., Any],
    *,
    supplied: Iterable[str] = (),
    partial: bool = False,
) -> list[str]:
    """What is wrong with calling `target(**arguments)`, nodes inside included."""
    known = parameters(target)
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    named = {n: p for n, p in known.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    found = []
    for key, value in arguments.items():
        where = f"{path}.{key}" if path else key
        if key in RESERVED:
            continue
        if key not in named:
            if not open_ended:
                found.append(f"{where}={shown(value)}: there is no such setting{suggest(key, named)}")
        elif value == "???":
            found.append(f"{where} is not set, and has no default: add {where}=VALUE")
        elif nodes := nodes_in(value):
            for name, inner in nodes.items():
                found += node_problems(f"{where}.{name}" if name else where, inner)
        elif not fits(value, named[key].annotation):
            possible = choices(named[key].annotation)
            words = [word for word in (value if isinstance(value, list) else [value]) if isinstance(word, str)]
            hint = "".join(suggest(word, possible) for word in words if word not in possible)
            found.append(f"{where}={shown(value)} is not {described(named[key].annotation)}{hint}")
    if not partial:
        given = {*arguments, *supplied}
        for name, parameter in named.items():
            if parameter.default is inspect.Parameter.empty and name not in given:
                where = f"{path}.{name}" if path else name
                found.append(f"{where} is not set, and has no default: add {where}=VALUE")
    return found


def nodes_in(value: Any) -> dict[str, Node]:
    """The nodes that a value is, or holds one level below (a mapping or list of callbacks, loggers ...)."""
    if isinstance(value, dict):
        if "_target_" in value:
            return {"": value}
        return {k: v for k, v in value.items() if isinstance(v, dict) and "_target_" in v}
    if isinstance(value, list):
        return {str(i): v for i, v in enumerate(value) if isinstance(v, dict) and "_target_" in v}
    return {}


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain YAML value may be passed where `annotation` is wanted.

    Stricter than Python (a bool is no int, "3" is no number) but for two things that YAML can't say: an int
    may stand for a float, and a list for a tuple.
    """
    if annotation in (Any, inspect.Parameter.empty, object) or isinstance(annotation, TypeVar | str):
        return True
    if annotation in (None, type(None)):
        return value is None
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin in (Union, types.UnionType):
        return any(fits(value, choice) for choice in arguments)
    if origin is typing.Annotated:
        return fits(value, arguments[0])
    kind = origin or annotation
    if not inspect.isclass(kind):
        return True
    if kind is float:
        return type(value) in (int, float)
    if kind in (int, bool, str, bytes):
        return type(value) is kind
    if issubclass(kind, tuple):
        if not isinstance(value, list | tuple):
            return False
        if not arguments or arguments[-1] is Ellipsis:
            return all(fits(item, arguments[0]) for item in value) if arguments else True
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if isinstance(value, list | tuple):
        inner = arguments[0] if arguments else Any
        return issubclass(list, kind) and all(fits(item, inner) for item in value)
    if isinstance(value, dict):
        inner = arguments[1] if len(arguments) == 2 else Any
        return issubclass(dict, kind) and all(fits(item, inner) for item in value.values())
    if issubclass(kind, Path):
        return isinstance(value, str)
    # any other class is made by a node with a `_target_`, which a plain value is not; a string is no list of letters
    return isinstance(value, kind) and not isinstance(value, str)


def choices(annotation: Any) -> list[str]:
    """The strings that a (union of) Literal allows."""
    if typing.get_origin(annotation) is Literal:
        return [c for c in typing.get_args(annotation) if isinstance(c, str)]
    return [c for inner in typing.get_args(annotation) for c in choices(inner)]


def described(annotation: Any) -> str:
    """An annotation in words for a message: `one of 'cls', 'avg'`, `int or None`, `tuple of 2 floats`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(described(a) for a in arguments)
    if annotation in (None, type(None)):
        return "null"
    if inspect.isclass(origin) and issubclass(origin, tuple) and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} ({', '.join(described(a) for a in arguments)})"
    if inspect.isclass(origin) and issubclass(origin, Sequence) and arguments:
        return f"a list of {described(arguments[0])}"
    if annotation is dict or origin is dict:
        return "a mapping"
    return {int: "an int", float: "a number", bool: "true or false", str: "a string"}.get(
        annotation, getattr(annotation, "__name__", str(annotation))
    )


def shown(value: Any) -> str:
    """A value as it would be typed on the command line, shortened."""
    text = {None: "null", True: "true", False: "false"}.get(value) if not isinstance(value, dict | list) else None
    text = text if isinstance(value, bool | None) and text else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
