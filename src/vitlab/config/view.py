"""A resolved configuration for the rules of the checks, without values that have a problem already."""

from typing import Any

from vitlab.config.bounds import fits
from vitlab.config.schema import Node
from vitlab.distributed import environment


class ConfigView:
    """Values by dotted path; None if a key is missing or has a problem. `remote`: for a cluster's jobs."""

    def __init__(self, config: Node, bad: set[str], *, remote: bool = False) -> None:
        self.config, self.bad, self.remote = config, bad, remote
        self.samples: int | None = None  # to train on, once they are counted

    def __call__(self, path: str, kind: Any = object) -> Any:
        value: Any = self.config
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                return None
            value = value[key]
        return value if path not in self.bad and fits(value, kind) else None

    def has_problem(self, *paths: str) -> bool:
        """Whether one of these paths, or one below it, has a problem."""
        return any(bad == path or bad.startswith(f"{path}.") for bad in self.bad for path in paths)

    def ranks(self) -> int:
        """Number of processes that train, on all nodes."""
        devices, accelerator = self("trainer.devices"), self("trainer.accelerator", str)
        if devices is None or not fits(devices, int | str | list[int]):
            return 1
        return environment.ranks_per_node(devices, accelerator or "auto") * (self("trainer.num_nodes", int) or 1)
