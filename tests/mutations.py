"""Change the source in one place, run the mirrored test file, and count the changes that no test notices.

    python tests/mutations.py                                   300 mutants of models, training, data and weights
    python tests/mutations.py count=40 seed=7 models/flops      40 of one module
    python tests/mutations.py seed=7 out=FILE                   keep the results, and resume from them
    python tests/mutations.py mutant=models/flops.py:137:7:and-for-or    one again, with the tests' output

A mutant is a change of meaning: another comparison, `and` for `or`, a number plus one, a statement left out. The parent
imports torch and forks a process for each mutant, which imports the changed module instead of the file's. It runs the
tests that execute the changed line, the fastest first, and all tests if none does (a line that is executed at import or
in other processes). A mutant survives if all pass. Survivors are gaps in the tests, or changes that compute the same:
those listed in EQUIVALENT, with the reason, are not counted. A seed draws the same mutants when other lines change.
"""

import ast
import hashlib
import importlib
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple, cast

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE, TESTS = ROOT / "src" / "vitlab", ROOT / "tests" / "vitlab"
PACKAGES = ("models", "training", "data", "weights")
LIMIT = 3.0  # times the seconds of the unchanged test file, recorded, and never below 30 s: then the mutant hangs
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip
# mutants that compute the same: a module, the change, a part of the source line, and why
EQUIVALENT = """
data/augment.py | one more | few = max(1, CACHE_SIZE | images that are prepared at once
data/augment_ops.py | one more | -MOST_BLUR - 1, side + MOST_BLUR + 1 | places outside of the box weigh nothing
data/augment_ops.py | another comparison | tall[torch.rand(batch) >= probability] | drawn once in 2**24 times
data/auto_augment.py | another comparison | torch.rand(len(images)) <= step[:, 1] | drawn once in 2**24 times
data/auto_augment.py | another operator | step[:, 2].long()] * signs | signs are 1 and -1
data/auto_augment.py | another operator | level + std * torch.randn | a normal distribution is symmetric
data/crops.py | another comparison | ((part > 0) & (part < length | parts are between integers
data/crops.py | one more | new = [size[0] | both sides are equal
data/crops.py | another comparison | torch.rand(batch, 1).flatten() < 0.5 | 0.5 is drawn once in 2**24 times
data/datamodule.py | one more | buffer=buffer or 0 | without a buffer there are no blocks
data/dataset.py | one more | torch.empty(1).expand(1, height, width) | its height and width alone are used
data/dataset.py | other branch | if torch.rand(()) < 0.5 else | either has the same probability
data/file_list.py | left out | file.parent.mkdir( | filelock makes the folder too
data/jpeg.py | another comparison | metadata.find(tag, at + 1)) >= 0 | the metadata begins with Exif
data/packing/pack.py | one more | - last > 10 | seconds between two lines of the log
data/png.py | another operator | while at + 12 <= len(data) | a part's end is compared as well
data/source.py | another comparison | 2 * len(indices) < len(self.stored) | copied or not, the images are the same
data/splitting.py | one more | * 8 // len(numbers) | classes that are sorted at once
models/attention.py | other truth value | use_reentrant=False | the compiler, which it is for, traces both alike
models/flops.py | one more | size: int = 512 | the speed is that of a product of the size
models/flops.py | another comparison | time.perf_counter() < end | one product more at the exact end
models/init.py | other truth value | recurse=False | only the model itself has parameters of these names
models/layers.py | another comparison | .uniform_() < keep | drawn once in 2**24 times
models/layers.py | another comparison | rate > 0.0 | dropout at rate 0 returns its input
training/averages.py | one more | if self.use_warmup else 1.0 | the decay, which is below 1, is taken
training/classifier.py | one more | len(batch[0]) * ranks | as many labels as images
training/classifier.py | other truth value | compute_groups=False | the update that makes groups isn't called
training/classifier.py | other truth value | copy_state=False | without groups no state is shared
training/distillation.py | one more | images.shape[-2:] != self.size | images of the same size are resized to themselves
training/monitor.py | another comparison | trainer.max_epochs > 0 | 0 is left out before
training/monitor.py | one more | metric._update_count = 1 | any count prevents the warning
training/optimizer.py | one more | max(layers.values(), default=0) | without layers all are in the last one
training/progress_bar.py | one more | self._drawn = 0.0 | a second after the machine was started
training/progress_bar.py | another comparison | self._drawn > 0.1 | the clock never reads exactly that
training/progress_bar.py | one more | self._start or (0.0 | no step is done at that time
training/progress_bar.py | one more | self._writes_lines, self._last_line = False | set where lines are written
training/schedules.py | another comparison | step < warmup_steps | the warm-up's end is at 1, as the decay's beginning
training/schedules.py | another operator | step / warmup_steps) * decay(step) | the decay of a warm-up step is 1
training/schedules.py | one more | torch.zeros(1)], lr=peak | a parameter that is never read
training/schedules.py | one more | build_scheduler(optimizer, 0, factor) | a warm-up of one step is at the peak as well
training/scores.py | another comparison | .bits >= 32 else values.float() | float32 in float32 is the same
training/scores.py | one more | .bits >= 32 else values.float() | float32 in float32 is the same
training/scores.py | one more | fn(torch.empty(0 | its device alone is used
weights/locate.py | one more | @lru_cache(maxsize | the size of a cache
weights/open.py | another comparison | if len(names) > 1 | of one name the only one is chosen anyway
weights/resample.py | another operator | kernel.repeat(1, -(-channels // old), 1, 1) | what is too much is cut off
"""


class Mutant(NamedTuple):
    """A change of a module; of several such changes at a place, the outermost."""

    file: str  # below src/vitlab
    line: int
    column: int
    change: str

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}:{self.column}:{self.change.replace(' ', '-')}"

    @property
    def source(self) -> str:
        return (SOURCE / self.file).read_text().splitlines()[self.line - 1].strip()

    def rank(self, seed: int) -> bytes:
        """A random rank, which depends on no other line."""
        text = f"{seed} {self.file} {self.column} {self.change} {self.source}"
        return hashlib.blake2b(text.encode(), digest_size=8).digest()

    @property
    def is_equivalent(self) -> bool:
        table = [line.split(" | ") for line in EQUIVALENT.strip().splitlines()]
        listed = any(self.file == row[0] and row[1] in self.change and row[2] in self.source for row in table)
        return listed or ("zip(" in self.source and "strict=True" in self.source and "truth" in self.change)


def change_of(node: ast.AST) -> tuple[str, ast.AST | None] | None:
    """The description of a node's change, and what replaces it (None: it is left out); None without a change."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            return "another comparison", ast.Compare(node.left, [COMPARISONS[type(op)]()], node.comparators)
        case ast.BoolOp():
            return "and for or", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        case ast.UnaryOp(op=ast.Not()):
            return "not left out", node.operand
        case ast.BinOp() if type(node.op) in OPERATORS:
            return "another operator", ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
        case ast.Constant(value=bool()):
            return "the other truth value", ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            return "one more", ast.Constant(cast(float, node.value) + 1)
        case ast.IfExp():
            return "the other branch", ast.IfExp(node.test, node.orelse, node.body)
        case ast.Expr() | ast.AugAssign() if not ignored(node):
            return "left out", None
    return None


def ignored(node: ast.AST) -> bool:
    """Whether a node has no effect on results: docstrings, log messages, warnings' filters."""
    if not isinstance(node, ast.Expr):
        return False
    if isinstance(node.value, ast.Constant | ast.Yield | ast.YieldFrom):
        return True
    text = ast.unparse(node)
    return text.startswith(("log.", "warnings.", "logging."))


def sites(tree: ast.Module) -> Iterator[tuple[ast.AST, str, ast.AST | None]]:
    """Every change of a module: the node, the description of the change, the replacement."""
    tables = [node.value for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign) and node.value]
    skipped = {id(inner) for table in tables for inner in ast.walk(table)}  # data: a test could only repeat it
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert) or ignored(node):
            skipped |= {id(inner) for inner in ast.walk(node)}  # messages
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            skipped |= {id(inner) for inner in ast.walk(node.annotation)}
        if id(node) not in skipped and (change := change_of(node)):
            yield node, *change


def mutants(file: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    nodes: Any = sites(ast.parse((SOURCE / file).read_text()))
    return sorted({Mutant(file, node.lineno, node.col_offset, change) for node, change, _ in nodes})


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
    tree: Any = ast.parse(path.read_text())
    for node, change, replacement in sites(tree):
        if (getattr(node, "lineno", 0), getattr(node, "col_offset", 0), change) == mutant[1:]:
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
        loader = SourceFileLoader(name, path := str(SOURCE / self.mutant.file))
        loader.get_code = lambda fullname: mutated(self.mutant)  # type: ignore[method-assign]
        return importlib.util.spec_from_file_location(name, path, loader=loader)


def test_file(file: str) -> Path:
    return TESTS / Path(file).parent / f"test_{Path(file).name}"


class LineRecorder:
    """Records the lines of a module that each test executes in its own thread, as a pytest plugin."""

    def __init__(self, path: str, record: str) -> None:
        self.path, self.record, self.lines = path, Path(record), dict[str, list[int]]()
        self.seconds = dict[str, float]()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: Any) -> Iterator[None]:
        lines: set[int] = set()

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            if frame.f_code.co_filename != self.path:
                return None
            lines.add(frame.f_lineno)
            return trace

        start = time.monotonic()
        sys.settrace(trace)
        yield
        sys.settrace(None)
        self.lines[item.nodeid], self.seconds[item.nodeid] = sorted(lines), time.monotonic() - start
        self.record.write_text(
            json.dumps({test: self.lines[test] for test in sorted(self.lines, key=lambda test: self.seconds[test])})
        )


def record_lines(file: str) -> tuple[dict[str, list[int]] | None, float]:
    """The lines of a module that each of its tests executes, the fastest first, and the seconds of its test file.

    None instead of the lines if a test fails.
    """
    with tempfile.NamedTemporaryFile() as record:
        recorder = LineRecorder(str(SOURCE / file), record.name)
        passed, seconds = run_tests([str(test_file(file))], None, 1800, plugins=[recorder])
        return json.load(record) if passed else None, seconds


def run_tests(
    tests: list[str], mutant: Mutant | None, limit: float, *, show: bool = False, plugins: Sequence[object] = ()
) -> tuple[bool, float]:
    """Whether tests pass within `limit` seconds, and their seconds; the first failure ends them."""
    seconds = 0.0  # counted, not measured: this process may be stopped for a while
    child = os.fork()
    if child == 0:
        os.setsid()
        if not show:
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        if mutant is not None:
            sys.meta_path.insert(0, Finder(mutant))
        options = ["-x", "-q", "-m", "not long", "-p", "no:cacheprovider", "--assert=plain"]
        os._exit(int(pytest.main([*tests, *options], plugins=plugins)))
    while seconds < limit:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return status == 0, seconds
        time.sleep(0.02)
        seconds += 0.02
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False, seconds


def verdict(mutant: Mutant, lines: dict[str, list[int]], limit: float) -> tuple[str, float]:
    """`killed`, `hangs` (killed as well) or `SURVIVED`, and the seconds of the tests."""
    covering = [test for test, executed in lines.items() if mutant.line in executed]
    survived, seconds = run_tests(covering or [*lines], mutant, limit)
    return "SURVIVED" if survived else "hangs" if seconds >= limit else "killed", seconds


def modules(names: list[str]) -> list[str]:
    """The modules of packages, or those named, that have a mirrored test file."""
    files = [file for name in names for file in sorted((SOURCE / name).rglob("*.py")) or [SOURCE / f"{name}.py"]]
    return [name for file in files if test_file(name := str(file.relative_to(SOURCE))).is_file()]


def preload() -> None:
    """Import what every test file needs, and nothing of vitlab."""
    for name in ("hydra", "lightning", "timm", "torchmetrics", "torchvision", "wandb"):
        importlib.import_module(name)
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
        print(f"{chosen.name}: {chosen.source}")
        return int(run_tests([str(test_file(file))], chosen, 3600, show=True)[0])
    seed = int(options.get("seed", random.randrange(10**6)))
    every = [mutant for file in modules(names) for mutant in mutants(file)]
    drawn = sorted(every, key=lambda mutant: mutant.rank(seed))[: int(options.get("count", 300))]
    print(f"seed={seed}: {len(drawn)} of {len(every)} mutants")
    out = Path(options.get("out", os.devnull))
    out.touch()
    results = {line.split()[1]: line.split()[0] for line in out.read_text().splitlines()}
    lines: dict[str, tuple[dict[str, list[int]] | None, float]] = {}
    for mutant in sorted(drawn):
        if mutant.is_equivalent:
            results[mutant.name] = "equivalent"
        if mutant.name in results:
            continue
        if mutant.file not in lines:
            lines[mutant.file] = record_lines(mutant.file)
        executed, seconds = lines[mutant.file]
        if not executed:
            continue
        results[mutant.name], seconds = verdict(mutant, executed, max(30.0, LIMIT * seconds))
        text = f"{results[mutant.name]:8} {mutant.name} {seconds:.1f} s: {mutant.source}"
        print(text, flush=True)
        with out.open("a") as stream:
            print(text, file=stream)
    for file in sorted({mutant.file for mutant in drawn if mutant.name not in results}):
        print(f"{file}: not counted, its tests fail without a change")
    counts = Counter(results.get(mutant.name) for mutant in drawn)
    killed, survived = counts["killed"] + counts["hangs"], sorted(m for m in drawn if results.get(m.name) == "SURVIVED")
    print(f"seed={seed}: {killed} of {killed + len(survived)} killed, {counts['equivalent']} equivalent")
    for mutant in survived:
        print(f"  survived: {mutant.name}: {mutant.source}")
    return int(killed < 0.95 * (killed + len(survived)) or counts[None] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
