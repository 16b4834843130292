"""The libraries' layouts, read from `layouts.yaml`."""

from collections.abc import Iterator, Mapping
from typing import Any

from vitlab.config.tables import read_table
from vitlab.weights.rules import TRANSFORMS, Layout, Rule

LAYER = (".weight", ".bias")


def read_layout(name: str, entry: dict[str, Any]) -> Layout:
    """The layout of an entry of the table."""
    rules = [*read_rules(entry.pop("gated", {}), LAYER, gated=True)]
    rules += read_rules(entry.pop("ungated", {}), LAYER, gated=False)
    rules += [*read_rules(entry.pop("tensors"), ("",)), *read_rules(entry.pop("layers", {}), LAYER)]
    return Layout(name=name, rules=tuple(rules), **entry)


def read_rules(section: Mapping[str, Any], ends: tuple[str, ...], *, gated: bool | None = None) -> Iterator[Rule]:
    """The rules of a section, whose names get each of `ends`."""
    for ours, sources in section.items():
        for source in sources if isinstance(sources, list) else [sources]:
            form, theirs = next(iter(source.items())) if isinstance(source, dict) else ("same", source)
            names = [theirs] if isinstance(theirs, str) else theirs
            for end in ends:
                yield Rule(f"{ours}{end}", tuple(f"{name}{end}" for name in names), TRANSFORMS[form], gated)


LAYOUTS = {name: read_layout(name, entry) for name, entry in read_table(__file__).items()}
