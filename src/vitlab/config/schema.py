"""The signature is the schema: a configuration node is checked against the callable it configures.

A node is a mapping with `_target_`, as Hydra's `instantiate` takes it. Every key must be a parameter of the target,
every value must fit the parameter's annotation and bounds (`Annotated[int, Ge(1)]`), every mandatory parameter must be
set. All problems are collected, none raises. Signatures are read from source files, or else by importing the target.
"""

import difflib
import importlib
import importlib.util
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal

from vitlab.config import renamed, signatures
from vitlab.config.bounds import bound_problem, choices, fits, format_type
from vitlab.config.guesses import advice
from vitlab.distributed import environment

Node = dict[str, Any]

SCORES = ("acc", "acc5", "loss", "correct", "count")  # of every evaluation
OBJECTIVES = ("val/acc", "val/acc5", "val/loss")

# Keys that `instantiate` reads.
RESERVED = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}


def resolve(target: str) -> Callable[..., Any]:
    """The object that a dotted path names, in Hydra's order; `ImportError` says which part does not exist."""
    first, *rest = target.split(".")
    if not rest or importlib.util.find_spec(first) is None:
        raise ImportError(f"there is no module {first!r}")
    path, value = first, typing.cast(Any, importlib.import_module(first))
    for part in rest:
        path, holder, before = f"{path}.{part}", value, path
        if hasattr(holder, part):
            value = getattr(holder, part)
        elif hasattr(holder, "__path__") and importlib.util.find_spec(path) is not None:
            value = importlib.import_module(path)
        else:
            raise ImportError(f"{before} has no {part!r}{suggest(part, dir(holder))}")
    return typing.cast(Callable[..., Any], value)


def parameters(target: str | Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a callable or of a dotted path, without `self`. Raises `ImportError`."""
    if isinstance(target, str):
        known = signatures.parameters(target)
        return _imported_parameters(resolve(target)) if known is None else known
    return _imported_parameters(target)


@lru_cache
def _imported_parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # a library's annotation that only a type checker can evaluate
        hints = {}
    return {
        name: parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_POSITIONAL
    }


def suggest(word: str, candidates: Iterable[str]) -> str:
    """`; did you mean 'dim'?`, or nothing if no candidate is close."""
    close = difflib.get_close_matches(word, [c for c in candidates if not c.startswith("_")], n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


Supplied = Mapping[str, Iterable[str]]  # parameters that the program passes itself, by the path of a node


def node_problems(path: str, node: Mapping[str, Any], supplied: Supplied | None = None) -> list[str]:
    """Problems of a node and of the nodes in it."""
    target = node.get("_target_")
    if not isinstance(target, str):
        return [f"{path}._target_={target!r} is not a dotted path to a callable"]
    # only a program that passes the other parameters knows whether a partial node is complete
    partial = node.get("_partial_", False) and not (supplied or {}).get(path)
    try:
        return call_problems(path, node, target, supplied=supplied, partial=partial)
    except ImportError as error:
        return [f"{path}._target_={target} can't be imported: {error}"]


def call_problems(
    path: str,
    arguments: Mapping[str, Any],
    target: str | Callable[..., Any],
    *,
    supplied: Supplied | None = None,
    partial: bool = False,
) -> list[str]:
    """Problems of calling `target(**arguments)`, nodes inside included. Raises `ImportError`."""
    known = parameters(target)
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    named = {n: p for n, p in known.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    lines = []
    for key, value in arguments.items():
        where = f"{path}.{key}" if path else key
        if key in RESERVED:
            continue
        if key not in named and not open_ended:
            lines.append(f"{where}={format_value(value)}{unknown_setting(where, key, named, value)}")
        elif value == "???":
            lines.append(f"{where} is not set, and has no default: add {where}=VALUE")
        elif nodes := child_nodes(value):
            for name, inner in nodes.items():
                lines += node_problems(f"{where}.{name}" if name else where, inner, supplied)
        elif key in named and (problem := value_problem(value, named[key].annotation)):
            line = f"{where}={format_value(value)}"
            hint = advice(line) if key == "precision" else None  # fp16, say
            lines.append(f"{line} {problem.partition('; did')[0]}; {hint}" if hint else f"{line} {problem}")
    given = {*arguments, *(supplied or {}).get(path, ())}
    for name, parameter in named.items():
        if parameter.default is inspect.Parameter.empty and name not in given and not partial:
            where = f"{path}.{name}" if path else name
            lines.append(f"{where} is not set, and has no default: add {where}=VALUE")
    return lines


def value_problem(value: Any, annotation: Any) -> str | None:
    """Problem of a plain YAML value with an annotation: `is not an int`, `must be at least 1`."""
    if fits(value, annotation):
        return bound_problem(value, annotation)
    possible = choices(annotation)
    words = [word for word in (value if isinstance(value, list) else [value]) if isinstance(word, str)]
    hint = "".join(suggest(word, possible) for word in words if word not in possible)
    return f"is not {format_type(annotation)}{hint}"


def unknown_setting(path: str, key: str, known: Iterable[str], value: Any) -> str:
    """The remedy for a setting that doesn't exist: its new name, vitlab's for another tool's, or a similar one."""
    if new := next((new for old, new in renamed.SETTINGS.items() if f"{old}.".startswith(f"{path}.")), None):
        return f": the setting was renamed to {new}"
    if path in renamed.REMOVED:
        return f": the setting was removed; {renamed.REMOVED[path]}"
    hint = advice(f"{path}={format_value(value)}")
    return f": there is no such setting{f'; {hint}' if hint else suggest(key, known)}"


def child_nodes(value: Any) -> dict[str, Node]:
    """The node that a value is, or the nodes in it (a mapping or list of callbacks, loggers ...), by their keys."""
    if isinstance(value, dict):
        if "_target_" in value:
            return {"": value}
        return {k: v for k, v in value.items() if isinstance(v, dict) and "_target_" in v}
    if isinstance(value, list):
        return {str(i): v for i, v in enumerate(value) if isinstance(v, dict) and "_target_" in v}
    return {}


def arguments_of(node: Node) -> Node:
    """The arguments that a node passes to its target; lists are tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in node.items() if not k.startswith("_")}


def format_value(value: Any) -> str:
    """A value as it would be typed on the command line, shortened."""
    text = {None: "null", True: "true", False: "false"}[value] if isinstance(value, bool | None) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


class ConfigView:
    """Values for the rules of checks, by dotted path; None if a key is missing or has a problem already."""

    def __init__(self, config: Node, bad: set[str], *, remote: bool = False) -> None:
        self.config, self.bad, self.remote = config, bad, remote  # for a cluster's jobs
        self.samples: int | None = None  # to train on, once they are counted

    def __call__(self, path: str, kind: Any = object) -> Any:
        value: Any = self.config
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                return None
            value = value[key]
        return value if path not in self.bad and fits(value, kind) else None

    def has_problem(self, *paths: str) -> bool:
        """Whether one of these paths, or one below it, has a problem."""
        return any(bad == path or bad.startswith(f"{path}.") for bad in self.bad for path in paths)

    def ranks(self) -> int:
        """Number of processes that train, on all nodes."""
        devices, accelerator = self("trainer.devices"), self("trainer.accelerator", str)
        if devices is None or not fits(devices, int | str | list[int]):
            return 1
        return environment.ranks_per_node(devices, accelerator or "auto") * (self("trainer.num_nodes", int) or 1)


def objectives(metrics: Iterable[str]) -> list[str]:
    """The possible objectives: those of every run, and `classifier.metrics` of this one."""
    return [*OBJECTIVES, *(f"val/{name}" for name in metrics)]


def direction(metric: str) -> Literal["min", "max"]:
    """Whether lower or higher values of a score are better, by its name."""
    return "min" if "loss" in metric or "error" in metric else "max"
