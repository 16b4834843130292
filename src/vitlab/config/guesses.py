"""Settings under the names that other tools give them: what a wrong guess at a name or a value means here."""

import re
from functools import cache

from vitlab.config.tables import read_table


@cache
def guesses() -> dict[str, str]:
    """Patterns for "key=value" as it was typed, and the remedies."""
    table: dict[str, str] = read_table(__file__)
    return table


def advice(line: str) -> str | None:
    """What an override of another tool's name or value means here; None if it is none of these."""
    for pattern, remedy in guesses().items():
        if match := re.fullmatch(pattern, line.lstrip("+")):
            return match.expand(remedy)
    return None


def without_dashes(arguments: list[str], flags: set[str]) -> list[str]:
    """Rewrite `--key=value`, `--key value` and `--key` as Hydra's `key=value`; `flags` are Hydra's own."""
    result, words = list[str](), list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--" or word.partition("=")[0] in flags:
            result.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            follows = bool(words) and not (words[0].startswith("-") or "=" in words[0])
            value = words.pop(0) if follows else "true"
        result.append(f"{name.replace('-', '_')}={value}")
    return result
