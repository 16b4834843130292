"""A resolved configuration as the rules of the checks read it: only values that nothing was found wrong with."""

import math
from typing import Any

from vitlab import launch
from vitlab.data.source import Facts, loader_facts, loader_settings
from vitlab.schema import Node, fits


class Reader:
    """Values by dotted path; None where a key is missing or was already found wrong."""

    def __init__(self, config: Node, bad: set[str], *, elsewhere: bool = False) -> None:
        self.config, self.bad, self.elsewhere = config, bad, elsewhere

    def __call__(self, path: str, kind: Any = object) -> Any:
        value: Any = self.config
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                return None
            value = value[key]
        return value if path not in self.bad and fits(value, kind) else None

    def facts(self) -> Facts:
        """What is known of the data without loading it."""
        return loader_facts(self("data.source._target_", str))

    def source_settings(self) -> Node | None:
        """The settings of the data's loader; None if something is wrong with them."""
        if self("data.source", dict) is None or any(path.startswith("data.source") for path in self.bad):
            return None
        return loader_settings(self("data.source"))

    def ranks(self) -> int:
        """Processes that will train, over all nodes."""
        devices, accelerator = self("trainer.devices"), self("trainer.accelerator", str)
        if devices is None or not fits(devices, int | str | list[int]):
            return 1
        return launch.ranks_per_node(devices, accelerator or "auto") * (self("trainer.num_nodes", int) or 1)

    def micro_batches(self) -> int:
        """Parts that a step's batch is cut into."""
        return self.ranks() * (self("trainer.accumulate_grad_batches", int) or 1)

    def train_samples(self) -> int | None:
        """Images left to train on after validation is cut off, where the data's size is known."""
        known, fraction = self.known_samples(), self("data.val_fraction", float)
        if known is None or fraction is None or not 0 < fraction < 1:
            return None
        samples, has_validation = known
        limit = self("data.max_train_samples", int)
        left = samples if has_validation else samples - math.ceil(samples * fraction)
        return int(min(left, limit)) if limit else left

    def known_samples(self) -> tuple[int, bool] | None:
        """Images of the train split, and whether there are others to validate on; None where only loading tells."""
        facts = self.facts()
        if facts.train_samples is not None:
            return facts.train_samples, False
        if facts.count is None or (settings := self.source_settings()) is None:
            return None
        return facts.count(**settings)
