"""Read signatures from source files: composing, `--help` and error messages must not wait for torch."""

import ast
import importlib
from functools import cache
from inspect import Parameter
from typing import Annotated, Any, ForwardRef, Literal, Union, cast, get_origin

from vitlab.config import definitions
from vitlab.config.definitions import Definition

Node = dict[str, Any]

# Modules of annotations are imported; other names stay names until a value is compared with them.
IMPORTED = ("builtins", "typing", "types", "collections", "pathlib", "datetime", "os", "numbers", "annotated_types")
WITHOUT_INIT = ("builtins.object", "abc.ABC", "typing.Generic", "typing.Protocol")
NO_INIT = cast(ast.FunctionDef, ast.parse("def __init__(self): ...").body[0])


def parameters(target: str) -> dict[str, Parameter] | None:
    """The parameters of a class or function, without `self` and `*args`; None if they are not in source files.

    A default is an expression of the source.
    """
    definition = definitions.find(target)
    function = _function_of(definition) if definition else None
    if definition is None or function is None:
        return None
    assert isinstance(function.node, ast.FunctionDef)
    given = function.node.args
    positional = [*given.posonlyargs, *given.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults))
    pairs = list(zip(positional, [*missing, *given.defaults], strict=True))[function != definition :]
    pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
    found = [
        Parameter(
            argument.arg,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if default is None else default,
            annotation=evaluate(argument.annotation, function.module) if argument.annotation else Any,
        )
        for argument, default in pairs
    ]
    found += [Parameter(given.kwarg.arg, Parameter.VAR_KEYWORD)] if given.kwarg else []
    return {parameter.name: parameter for parameter in found}


def _function_of(definition: Definition) -> Definition | None:
    """The function that is called: of a class its `__init__`, or a base's; None if it is not in source files."""
    if isinstance(definition.node, ast.FunctionDef):
        return definition
    if not isinstance(definition.node, ast.ClassDef) or definition.node.decorator_list or definition.node.keywords:
        return None  # such as @dataclass, which makes `__init__`
    own = {item.name: item for item in definition.node.body if isinstance(item, ast.FunctionDef)}
    if "__new__" in own:
        return None
    if "__init__" in own:
        return Definition(definition.module, f"{definition.name}.__init__", own["__init__"])
    for base in definition.node.bases:
        path = definitions.qualified_name(base, definition.module)
        if path in WITHOUT_INIT:
            continue
        above = definitions.find(path)
        function = _function_of(above) if above else None
        if function is None or function.node is not NO_INIT:
            return function
    return Definition("builtins", "object.__init__", NO_INIT)


def defaults(target: str) -> Node:
    """`{"_target_": target, parameter: default, ...}` of a callable whose defaults are literals."""
    if (known := parameters(target)) is None:
        raise LookupError(f"{target} is not defined in a source file")
    given = {n: ast.literal_eval(p.default) for n, p in known.items() if p.default is not Parameter.empty}
    return {"_target_": target, **{k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}}


# ------------------------------------------------------------------------------------------------------ annotations


def evaluate(expression: ast.expr, module: str) -> Any:
    """An annotation's value, with `ForwardRef`s of dotted paths as its names; `Any` for what is no type."""
    match expression:
        case ast.Constant(value=str() as text):
            return evaluate(ast.parse(text, mode="eval").body, module)
        case ast.Constant(value=value):
            return value
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[evaluate(left, module), evaluate(right, module)]  # noqa: UP007
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(evaluate(item, module) for item in items)
        case ast.Subscript(value=generic, slice=inner):
            return _subscripted(evaluate(generic, module), inner, module)
        case ast.Name() | ast.Attribute():
            path = definitions.qualified_name(expression, module)
            return _imported(path) if path.partition(".")[0] in IMPORTED else ForwardRef(path)
    return Any


def _subscripted(generic: Any, inner: ast.expr, module: str) -> Any:
    items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if generic is Literal:
        return Literal[*(ast.literal_eval(item) for item in items)]
    if generic is Annotated:
        first = evaluate(items[0], module)
        known = resolve_name(first.__forward_arg__) if isinstance(first, ForwardRef) else first  # bounds of a name
        first = known if get_origin(known) is Annotated else first
        return Annotated[first, *(_bound(item, module) for item in items[1:])]
    if isinstance(generic, ForwardRef):
        return generic
    values = tuple(evaluate(item, module) for item in items)
    try:
        return generic[values if isinstance(inner, ast.Tuple) else values[0]]
    except TypeError:
        return Any


def _bound(expression: ast.expr, module: str) -> Any:
    """A part of `Annotated` next to its type: a bound, a note, or None."""
    match expression:
        case ast.Constant(value=value):
            return value
        case ast.Call(func=function, args=arguments, keywords=[]):
            path = definitions.qualified_name(function, module)
            if path.startswith(("annotated_types.", "vitlab.config.bounds.")):
                return _imported(path)(*map(ast.literal_eval, arguments))
    return None


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name, Any)


@cache
def resolve_name(path: str) -> Any:
    """The value of a name in an annotation: of an alias, of a class an empty one of its name; else `Any`."""
    definition = definitions.find(path)
    if definition is None or isinstance(definition.node, ast.FunctionDef):
        return Any
    if isinstance(definition.node, ast.ClassDef):
        return type(definition.name, (), {})
    return evaluate(definition.node, definition.module)
