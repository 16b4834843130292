"""Change the source in one place, run the mirrored test file, and count the changes that no test notices.

    python tests/mutations.py                                   300 mutants of models, training, data and weights
    python tests/mutations.py count=40 seed=7 models/flops      40 of one module
    python tests/mutations.py seed=7 out=FILE                   keep the results, and resume from them
    python tests/mutations.py mutant=data/sampler.py:57:9:1     one again, with the tests' output

A mutant is a change of meaning: another comparison, `and` for `or`, a number plus one, a statement left out. The parent
imports torch and forks a process for each mutant, which imports the changed module instead of the file's. The tests
that execute the changed line come first, the complete file only if they pass. A mutant survives if all pass. Survivors
are gaps in the tests, or changes that compute the same: those listed in EQUIVALENT, with the reason, are not counted.
"""

import ast
import copy
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple, cast

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE, TESTS = ROOT / "src" / "vitlab", ROOT / "tests" / "vitlab"
PACKAGES = ("models", "training", "data", "weights")
LIMIT = 4.0  # times the seconds of the unchanged test file, and never below 30 s: then the mutant hangs
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip
# mutants that compute the same, by module, change, and the source line without spaces around it -> why
EQUIVALENT: dict[tuple[str, str, str], str] = {}


class Mutant(NamedTuple):
    """A change of a module: the line and column of the changed node, and the number of the change there."""

    file: str  # below src/vitlab
    line: int
    column: int
    number: int
    change: str

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}:{self.column}:{self.number}"


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    """Descriptions of the changes of a node, and what replaces it; None: it is left out."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        other = copy.deepcopy(node)
        other.ops = [COMPARISONS[type(node.ops[0])]()]
        yield "another comparison", other
    elif isinstance(node, ast.BoolOp):
        other_op = copy.deepcopy(node)
        other_op.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and for or", other_op
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not left out", node.operand
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        binary = copy.deepcopy(node)
        binary.op = OPERATORS[type(node.op)]()
        yield "another operator", binary
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "the other truth value", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield "one more", ast.Constant(node.value + 1)
    elif isinstance(node, ast.IfExp):
        yield "the other branch", ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Expr | ast.AugAssign) and not ignored(node):
        yield "left out", None


def ignored(node: ast.AST) -> bool:
    """Whether a node has no effect on results: docstrings, log messages, warnings' filters."""
    if not isinstance(node, ast.Expr):
        return False
    if isinstance(node.value, ast.Constant | ast.Yield | ast.YieldFrom):
        return True
    text = ast.unparse(node)
    return text.startswith(("log.", "warnings.", "logging."))


def sites(tree: ast.Module) -> Iterator[tuple[ast.AST, int, str, ast.AST | None]]:
    """Every change of a module: the node, the number of the change, its description, the replacement."""
    tables = [node.value for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign) and node.value]
    skipped = {id(inner) for table in tables for inner in ast.walk(table)}  # data: a test could only repeat it
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert) or ignored(node):
            skipped |= {id(inner) for inner in ast.walk(node)}  # messages
        if isinstance(node, ast.FunctionDef | ast.AnnAssign):
            parts = [node.annotation] if isinstance(node, ast.AnnAssign) else [a.annotation for a in arguments(node)]
            skipped |= {id(inner) for part in parts if part for inner in ast.walk(part)}
        if id(node) not in skipped:
            for number, (change, replacement) in enumerate(changes(node)):
                yield node, number, change, replacement


def arguments(node: ast.FunctionDef) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def mutants(file: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    tree = ast.parse((SOURCE / file).read_text())
    found = [
        Mutant(file, getattr(node, "lineno", 0), getattr(node, "col_offset", 0), number, change)
        for node, number, change, _ in sites(tree)
    ]
    return sorted(set(found))


class Replace(ast.NodeTransformer):
    """Replaces one node of a tree."""

    def __init__(self, node: ast.AST, replacement: ast.AST | None) -> None:
        self.node, self.replacement = node, replacement

    def visit(self, node: ast.AST) -> ast.AST:
        if node is not self.node:
            return self.generic_visit(node)
        return ast.copy_location(self.replacement if self.replacement is not None else ast.Pass(), node)


def mutated(mutant: Mutant) -> CodeType:
    """The code of the changed module."""
    path = SOURCE / mutant.file
    tree = ast.parse(path.read_text())
    for node, number, change, replacement in sites(tree):
        place = (getattr(node, "lineno", 0), getattr(node, "col_offset", 0), number, change)
        if place == (mutant.line, mutant.column, mutant.number, mutant.change):
            changed = cast(ast.Module, Replace(node, replacement).visit(tree))
            return compile(ast.fix_missing_locations(changed), str(path), "exec")
    raise ValueError(f"there is no mutant {mutant.name}")


class Finder:
    """Imports the changed module in place of the file's."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.module = ".".join(["vitlab", *Path(mutant.file).with_suffix("").parts])

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name != self.module:
            return None
        code = mutated(self.mutant)

        class Loader(SourceFileLoader):
            def get_code(self, fullname: str) -> CodeType:
                return code

        path = str(SOURCE / self.mutant.file)
        return importlib.util.spec_from_file_location(name, path, loader=Loader(name, path))


def test_file(file: str) -> Path:
    return TESTS / Path(file).parent / f"test_{Path(file).name}"


class LineRecorder:
    """Records the lines of a module that each test executes, as a pytest plugin."""

    def __init__(self, path: str) -> None:
        self.path, self.lines = path, dict[str, list[int]]()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: Any) -> Iterator[None]:
        lines: set[int] = set()

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            if frame.f_code.co_filename != self.path:
                return None
            lines.add(frame.f_lineno)
            return trace

        sys.settrace(trace)
        threading.settrace(trace)
        yield
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        self.lines[item.nodeid] = sorted(lines)


def record_lines(file: str) -> tuple[dict[str, list[int]] | None, float]:
    """The lines of a module that each of its tests executes, None if one fails; and the seconds of its test file."""
    _, seconds = run_tests([str(test_file(file))], None, 900)
    with tempfile.NamedTemporaryFile() as record:
        passed, _ = run_tests([str(test_file(file))], None, 1800, record=(str(SOURCE / file), record.name))
        return json.load(record) if passed else None, seconds


def run_tests(
    tests: list[str], mutant: Mutant | None, limit: float, *, show: bool = False, record: tuple[str, str] | None = None
) -> tuple[bool, float]:
    """Whether tests pass within `limit` seconds, and their seconds; the first failure ends them."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        if not show:
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        if mutant is not None:
            sys.meta_path.insert(0, Finder(mutant))
        recorder = LineRecorder(record[0]) if record else None
        options = ["-x", "-q", "-m", "not long", "-p", "no:cacheprovider", "--assert=plain"]
        status = pytest.main([*tests, *options], plugins=[recorder] if recorder else [])
        if record and recorder:
            Path(record[1]).write_text(json.dumps(recorder.lines))
        os._exit(int(status))
    while time.monotonic() - start < limit:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return status == 0, time.monotonic() - start
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False, time.monotonic() - start


def verdict(mutant: Mutant, lines: dict[str, list[int]], limit: float) -> tuple[str, float]:
    """`killed`, `hangs` (killed as well) or `SURVIVED`, and the seconds of the tests."""
    covering = [test for test, executed in lines.items() if mutant.line in executed]
    survived, seconds = run_tests(covering, mutant, limit) if covering else (True, 0.0)
    if survived and len(covering) < len(lines):
        survived, more = run_tests([str(test_file(mutant.file))], mutant, limit)
        seconds += more
    return "SURVIVED" if survived else "hangs" if seconds > limit else "killed", seconds


def source_line(mutant: Mutant) -> str:
    return (SOURCE / mutant.file).read_text().splitlines()[mutant.line - 1].strip()


def modules(names: list[str]) -> list[str]:
    """The modules of packages, or those named, that have a mirrored test file."""
    files = [path for name in names for path in sorted((SOURCE / name).rglob("*.py"))]
    files += [SOURCE / f"{name}.py" for name in names if (SOURCE / f"{name}.py").is_file()]
    relative = [str(path.relative_to(SOURCE)) for path in files]
    return [file for file in relative if test_file(file).is_file()]


def preload() -> None:
    """Import what every test file needs, and nothing of vitlab."""
    import hydra
    import lightning
    import timm
    import torchmetrics
    import torchvision
    import wandb

    assert all((hydra, lightning, timm, torchmetrics, torchvision, wandb))
    assert "vitlab" not in sys.modules


def main(argv: list[str]) -> int:
    options = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    names = [argument for argument in argv if "=" not in argument] or list(PACKAGES)
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    preload()
    if "mutant" in options:
        file = options["mutant"].split(":")[0]
        (chosen,) = [mutant for mutant in mutants(file) if mutant.name == options["mutant"]]
        print(f"{chosen.name}: {chosen.change}")
        return int(run_tests([str(test_file(file))], chosen, 3600, show=True)[0])
    seed = int(options.get("seed", random.randrange(10**6)))
    every = [mutant for file in modules(names) for mutant in mutants(file)]
    every = [mutant for mutant in every if (mutant.file, mutant.change, source_line(mutant)) not in EQUIVALENT]
    drawn = random.Random(seed).sample(every, min(int(options.get("count", 300)), len(every)))
    print(f"seed={seed}: {len(drawn)} of {len(every)} mutants")
    out = Path(options["out"]) if "out" in options else None
    former = out.read_text().splitlines() if out and out.is_file() else []
    results = {name: result for result, _, _, name, *_ in (line.split() for line in former)}
    limits: dict[str, float] = {}
    lines: dict[str, dict[str, list[int]] | None] = {}
    for mutant in sorted(drawn):
        if mutant.name in results:
            continue
        if mutant.file not in lines:
            lines[mutant.file], seconds = record_lines(mutant.file)
            limits[mutant.file] = max(30.0, LIMIT * seconds)
        executed = lines[mutant.file]
        if executed is None:
            results[mutant.name] = "untested"
            continue
        results[mutant.name], seconds = verdict(mutant, executed, limits[mutant.file])
        text = f"{results[mutant.name]:8} {seconds:5.1f} s  {mutant.name}  {mutant.change}: {source_line(mutant)}"
        print(text, flush=True)
        if out:
            with out.open("a") as stream:
                print(text, file=stream)
    for file in sorted({mutant.file for mutant in drawn if results[mutant.name] == "untested"}):
        print(f"{file}: not counted, its tests fail without a change")
    tested = [mutant for mutant in drawn if results[mutant.name] != "untested"]
    survivors = sorted(mutant for mutant in tested if results[mutant.name] == "SURVIVED")
    killed = len(tested) - len(survivors)
    print(f"seed={seed}: {killed} of {len(tested)} killed, {killed / max(1, len(tested)):.1%}")
    for mutant in survivors:
        print(f"  survived: {mutant.name}  {mutant.change}: {source_line(mutant)}")
    return int(killed < 0.95 * len(tested) or len(tested) < len(drawn))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
