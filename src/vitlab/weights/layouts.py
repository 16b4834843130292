"""The libraries' layouts, read from `layouts.yaml`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from vitlab.weights.rules import TRANSFORMS, Layout, Rule

LAYER = (".weight", ".bias")


def read_layouts(file: Path) -> dict[str, Layout]:
    """The layouts of a table, by name."""
    layouts: dict[str, Layout] = {}
    for name, entry in yaml.safe_load(file.read_text(encoding="utf-8")).items():
        rules = [*read_rules(entry.pop("gated", {}), LAYER, gated=True)]
        rules += read_rules(entry.pop("ungated", {}), LAYER, gated=False)
        rules += [*read_rules(entry.pop("tensors", {}), ("",)), *read_rules(entry.pop("layers", {}), LAYER)]
        layouts[name] = Layout(name=name, rules=tuple(rules), **entry)
    return layouts


def read_rules(section: Mapping[str, Any], ends: tuple[str, ...], *, gated: bool | None = None) -> Iterator[Rule]:
    """The rules of a section, whose names get each of `ends`."""
    for ours, sources in section.items():
        for source in sources if isinstance(sources, list) else [sources]:
            form, theirs = next(iter(source.items())) if isinstance(source, dict) else ("same", source)
            names = [theirs] if isinstance(theirs, str) else theirs
            for end in ends:
                yield Rule(f"{ours}{end}", tuple(f"{name}{end}" for name in names), TRANSFORMS[form], gated)


LAYOUTS = read_layouts(Path(__file__).with_suffix(".yaml"))
