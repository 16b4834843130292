"""Read signatures from source files: composing, `--help` and error messages must not import torch."""

import ast
import importlib
from functools import cache
from inspect import Parameter
from typing import Annotated, Any, ForwardRef, Literal, Union, cast, get_origin

from vitlab.config import definitions
from vitlab.config.definitions import Definition

# Modules of annotations are imported; other names stay names until a value is compared with them.
IMPORTED = ("builtins", "typing", "types", "collections", "pathlib", "datetime", "os", "numbers", "annotated_types")
WITHOUT_INIT = ("builtins.object", "abc.ABC", "typing.Generic", "typing.Protocol")
NO_INIT = cast(ast.FunctionDef, ast.parse("def __init__(self): ...").body[0])


def parameters(target: str) -> dict[str, Parameter] | None:
    """The parameters of a class or function, without `self` and `*args`; None if they are not in source files.

    A default is an expression of the source.
    """
    if (definition := definitions.find(target)) is None:
        return None
    if _is_dataclass(definition):
        return {name: _parameter(name, *field) for name, field in _fields(definition).items()}
    if (function := _function_of(definition)) is None:
        return None
    assert isinstance(function.node, ast.FunctionDef)
    given, module = function.node.args, function.module
    positional = [*given.posonlyargs, *given.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults))
    pairs = list(zip(positional, [*missing, *given.defaults], strict=True))[function != definition :]
    pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
    known = [_parameter(argument.arg, argument.annotation, default, module) for argument, default in pairs]
    known += [Parameter(given.kwarg.arg, Parameter.VAR_KEYWORD)] if given.kwarg else []
    return {parameter.name: parameter for parameter in known}


def _parameter(name: str, annotation: ast.expr | None, default: ast.expr | None, module: str) -> Parameter:
    kind = evaluate(annotation, module) if annotation else Any
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default or Parameter.empty, annotation=kind)


def _decorators(definition: Definition) -> list[str]:
    assert isinstance(definition.node, ast.ClassDef)
    nodes = [node.func if isinstance(node, ast.Call) else node for node in definition.node.decorator_list]
    return [definitions.qualified_name(node, definition.module) for node in nodes]


def _is_dataclass(definition: Definition) -> bool:
    """Whether the constructor of a class is the one that `@dataclass` makes."""
    if not isinstance(definition.node, ast.ClassDef) or _decorators(definition) != ["dataclasses.dataclass"]:
        return False
    return not {"__init__", "__new__"} & {n.name for n in definition.node.body if isinstance(n, ast.FunctionDef)}


def _fields(definition: Definition) -> dict[str, tuple[ast.expr, ast.expr | None, str]]:
    """Annotation, default and module of each field of a dataclass, those of its bases first."""
    fields: dict[str, tuple[ast.expr, ast.expr | None, str]] = {}
    assert isinstance(definition.node, ast.ClassDef)
    for base in definition.node.bases:
        above = definitions.find(definitions.qualified_name(base, definition.module))
        fields |= _fields(above) if above and _is_dataclass(above) else {}
    for item in definition.node.body:
        match item:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=default):
                if "ClassVar" not in ast.unparse(annotation):
                    fields[name] = annotation, default, definition.module
    return fields


def _function_of(definition: Definition) -> Definition | None:
    """The function that is called: of a class its `__init__`, or a base's; None if it is not in source files."""
    if isinstance(definition.node, ast.FunctionDef):
        return definition
    if not isinstance(definition.node, ast.ClassDef) or definition.node.keywords or _is_dataclass(definition):
        return None
    own = {item.name: item for item in definition.node.body if isinstance(item, ast.FunctionDef)}
    if "__new__" in own or set(_decorators(definition)) - {"dataclasses.dataclass"}:
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


def defaults(target: str) -> dict[str, Any]:
    """`{"_target_": target, parameter: default, ...}` of a callable whose defaults are literals."""
    if (known := parameters(target)) is None:
        raise LookupError(f"{target} is not defined in a source file")
    given = {n: ast.literal_eval(p.default) for n, p in known.items() if p.default is not Parameter.empty}
    return {"_target_": target, **{k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}}


def evaluate(expression: ast.expr, module: str) -> Any:
    """An annotation's value, with `ForwardRef`s of dotted paths as its names; `Any` for what is no type."""
    try:
        return _evaluate(expression, module)
    except (TypeError, ValueError, ImportError, SyntaxError):
        return Any


def _evaluate(expression: ast.expr, module: str) -> Any:
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
            return _subscript(evaluate(generic, module), inner, module)
        case ast.Name() | ast.Attribute():
            path = definitions.qualified_name(expression, module)
            return _import_path(path) if path.partition(".")[0] in IMPORTED else ForwardRef(path)
    return Any


def _subscript(generic: Any, inner: ast.expr, module: str) -> Any:
    items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if generic is Literal:
        return Literal[*(ast.literal_eval(item) for item in items)]
    if generic is Annotated:
        first = evaluate(items[0], module)
        known = resolve_name(first.__forward_arg__) if isinstance(first, ForwardRef) else first  # bounds of a name
        first = known if get_origin(known) is Annotated else first
        return Annotated[first, *(_read_limit(item, module) for item in items[1:])]
    if isinstance(generic, ForwardRef):
        return generic
    values = tuple(evaluate(item, module) for item in items)
    return generic[values if isinstance(inner, ast.Tuple) else values[0]]


def _read_limit(expression: ast.expr, module: str) -> Any:
    """A bound or a note in `Annotated`; None for others."""
    match expression:
        case ast.Constant(value=value):
            return value
        case ast.Call(func=function, args=arguments, keywords=[]):
            path = definitions.qualified_name(function, module)
            if path.startswith(("annotated_types.", "vitlab.config.bounds.")):
                return _import_path(path)(*map(ast.literal_eval, arguments))
    return None


def _import_path(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name, Any)


@cache
def resolve_name(path: str) -> Any:
    """The value of a name in an annotation: of an alias, of a class an empty one of its name; else `Any`."""
    passed = set[str]()
    while path not in passed:
        passed.add(path)
        definition = definitions.find(path)
        if definition is None or isinstance(definition.node, ast.FunctionDef):
            return Any
        if isinstance(definition.node, ast.ClassDef):
            return type(definition.name, (), {})
        value = evaluate(definition.node, definition.module)
        if not isinstance(value, ForwardRef):
            return value
        path = value.__forward_arg__  # an alias of an alias
    return Any
