"""Read the YAML files of runs, which somebody else may have written, within limits."""

from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from vitlab.config.allowlist import MOST_VALUES

MOST_BYTES = 10_000_000


class UnreadableYaml(yaml.YAMLError, ValueError):
    """A file isn't YAML, or has more values than a run's."""


if yaml.__with_libyaml__:
    from yaml._yaml import CParser

    class Loader(Composer, CParser, SafeConstructor, Resolver):
        """libyaml's parser, six times as fast, with Python's composer: libyaml's overflows the stack of a deep file."""

        def __init__(self, text: str) -> None:
            CParser.__init__(self, text)
            Composer.__init__(self)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)

else:
    Loader = yaml.SafeLoader  # type: ignore[misc,assignment]


def read_yaml(file: Path) -> Any:
    """The content of a file. Raises `UnreadableYaml`, and `OSError` for a file that can't be opened.

    Aliases count as often as they are used: a few lines of them can stand for more values than a memory holds.
    """
    if file.stat().st_size > MOST_BYTES:
        raise UnreadableYaml(f"{file.name} has {file.stat().st_size:,} bytes; a run's has fewer than {MOST_BYTES:,}")
    try:
        loader = Loader(file.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        if count_values(node, {}) > MOST_VALUES:
            raise UnreadableYaml(f"{file.name} has more than {MOST_VALUES:,} values, as its aliases repeat others")
        return loader.construct_document(node)
    except UnreadableYaml:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # the last of encodings, dates and numbers
        raise UnreadableYaml(f"{file.name} can't be read: {' '.join(str(error).split())}") from error


def count_values(node: yaml.Node, known: dict[int, float]) -> float:
    """The values of a node, with each alias counted again; infinitely many where it contains itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # until it is counted
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        is_leaf = isinstance(node, yaml.ScalarNode)
        known[id(node)] = 1 if is_leaf else 1 + sum(count_values(part, known) for part in inner)
    return known[id(node)]
