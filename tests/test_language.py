"""The project's language: American technical English, the terms of CONTRIBUTING's glossary, and no words of its own."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# a word, and what to write in its place
BANNED = {
    "told|(?<!\\.)tell|tells|telling": "log, report, print, say",
    "anew": "again, new",
    "gone on with|go on with|goes on with|going on with": "resume, continue",
    "of ours|of its own accord": "vitlab's, our",
    "lies|lie|lying": "is stored, is in",
    "beside": "next to, compared with",
    "by itself": "alone, on its own, automatically",
    "what is left": "the rest, the remaining",
    "said": "printed, logged, reported",
    "whole(?! numbers?)": "complete, entire, all of",
    "patience(?!=|: \\d| epochs| of| is|\\b.*(EarlyStopping|early_stopping))": "timeout, grace period",
    "gotten|whilst|amongst": "got, while, among",
    "colour|behaviour|normalis|initialis|optimis|serialis|labell(?!edby)|modell": "the American spelling",
}
WORDS = {
    re.compile(rf"(?<![a-z])(?:{words})" + ("" if "colour" in words else "(?![a-z])"), re.IGNORECASE): instead
    for words, instead in BANNED.items()
}

# participles that don't end in "ed"
IRREGULAR = re.compile(
    "begun|bound|broken|brought|built|caught|chosen|done|drawn|driven|fallen|forgotten|found|given|gone|heard|held"
    "|hidden|kept|known|laid|left|lent|lost|made|met|paid|put|read|said|seen|sent|shown|sought|spelt|spent|spoken"
    "|stuck|sunk|swept|taken|taught|thrown|told|understood|woken|won|written"
)
# functions whose last word looks like a past participle, and why the name is right
ALLOWED_NAMES = {
    "embed": "an imperative verb",
    "seed": "a noun",
    "read": "an imperative verb",
    "put": "an imperative verb",
    "allowed": "require_allowed: what it requires, a state",
    "reseed": "an imperative verb",
    "speed": "a noun",
    "feed": "an imperative verb",
    "need": "a noun",
    "pretrained": "an adjective, as in timm's and transformers' names",
}
PREDICATE = re.compile(r"^_*(is|are|was|has|have|had|can|should|must|all|any|on)_")


def texts() -> Iterator[Path]:
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml"))
    for folder in ("src", "conf", "docs", "experiments", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            test = path.name.startswith("test_")  # their assertions quote libraries
            if path.suffix in {".py", ".yaml", ".md", ".js", ".html", ".css"} and not test:
                yield path


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in texts()])
def test_a_text_uses_the_fields_words(path: Path) -> None:
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        for pattern, instead in WORDS.items():
            found += [f"{number}: {match[0]!r}, write {instead}: {line.strip()}" for match in pattern.finditer(line)]
    assert not found


def misnamed(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            last = node.name.strip("_").split("_")[-1]
            participle = last.endswith("ed") or IRREGULAR.fullmatch(last)
            if participle and not PREDICATE.match(node.name) and last not in ALLOWED_NAMES:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == "found":
            yield f"{path.relative_to(ROOT)}:{node.lineno} the variable found says nothing of its value"


def test_no_function_is_named_by_a_past_participle() -> None:
    assert [name for path in sorted((ROOT / "src").rglob("*.py")) for name in misnamed(path)] == []
