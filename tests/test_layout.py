"""The house is in order: tests mirror the source, files are named by their subject, nothing names a machine."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*SOURCES, *PAGES, *sorted((ROOT / "conf").rglob("*.yaml")), *sorted((ROOT / "experiments").rglob("*.[jmy]*"))]

# Tests of what is no module: the configuration files, the programs of `make`, the README, the wheel, the layout itself.
NO_SOURCE = {
    Path(f"test_{name}.py")
    for name in (
        *("benchmark", "conf", "examples", "faults", "golden_curves", "language", "layout", "legacy_runs", "lightning"),
        *("mutations", "own_code", "readme", "recipes", "results", "scale", "wheel"),
    )
}


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_the_files_are_found() -> None:
    assert len(SOURCES) > 15
    assert len(TESTS) > 10
    assert {file.suffix for file in TEXTS} >= {".py", ".yaml"}


def test_every_module_has_its_tests_and_every_test_its_module() -> None:
    modules = {file.relative_to(ROOT / "src") for file in SOURCES if file.name != "__init__.py"}
    expected = {module.with_name(f"test_{module.name}") for module in modules}
    there = {file.relative_to(ROOT / "tests") for file in TESTS}
    assert sorted(map(str, expected - there)) == [], "modules without tests"
    assert sorted(map(str, there - expected - NO_SOURCE)) == [], "tests without a module"
    assert there >= NO_SOURCE, "an exception that is no longer one"


def test_no_other_file_names_a_data_set() -> None:
    """A set is one file and one YAML."""
    folder = ROOT / "src" / "vitlab"
    sets = {file.stem for file in (ROOT / "conf" / "data").glob("*.yaml")} - {"base", "shards"}  # as files have them
    name = re.compile(rf"(.*\.)?({'|'.join(sets)})|.*data\.sets\.\w.*")
    found = []
    for file in folder.rglob("*.py"):
        if file.is_relative_to(folder / "data" / "sets") or file.stem == "renamed":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if isinstance(node, ast.ImportFrom | ast.Import):
                text = ast.unparse(node)
            if name.fullmatch(text):
                found.append(f"{named(file)} says {text}")
    assert found == []


@pytest.mark.parametrize("word", ["util", "helper", "common", "misc", "tools", "base"])
def test_no_module_is_named_by_what_it_is_not_about(word: str) -> None:
    words = [(file, part) for file in [*SOURCES, *TESTS] for part in re.split(r"[^a-z]+", named(file).lower())]
    assert [named(file) for file, part in words if part in (word, f"{word}s")] == []


def test_every_file_says_what_it_is_and_a_package_holds_no_more_than_that() -> None:
    trees = {file: ast.parse(file.read_text()) for file in [*SOURCES, *TESTS]}
    assert [named(file) for file, tree in trees.items() if not ast.get_docstring(tree)] == []
    root = ROOT / "src" / "vitlab" / "__init__.py"  # what `import vitlab` offers
    packages = [file for file in trees if file.name == "__init__.py" and file != root]
    assert packages
    assert [named(file) for file in packages if len(trees[file].body) > 1] == []


def test_the_library_prints_nothing_and_imports_no_program() -> None:
    programs = {program.stem for program in (ROOT / "src").glob("*.py")}
    found = []
    for file in (ROOT / "src" / "vitlab").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            prints = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            if prints and not any(k.arg == "file" for k in node.keywords):  # type: ignore[attr-defined]
                found.append(f"{named(file)}:{node.lineno} prints; log it")  # type: ignore[attr-defined]
            found += [f"{named(file)} imports {program}" for program in programs & set(imported)]
    assert found == []


def test_no_file_names_a_folder_of_one_machine() -> None:
    machines = re.compile(r"(?:/home|/root|/work|/Users|/mnt|/tmp|[A-Z]:\\)\b[/\\]?\w*")
    found = {named(file): machines.findall(file.read_text()) for file in TEXTS}
    assert {file: names for file, names in found.items() if names} == {}
