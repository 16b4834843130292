"""Put programs, configuration and experiments into the wheel. An editable install reads them where they are."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILES = {"programs": ("src", "*.py"), "conf": ("conf", "**/*.yaml"), "experiments": ("experiments", "*.*")}


class Wheel(BuildHookInterface):
    """`force-include` in pyproject.toml would copy the files in an editable install too, where they become stale."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        for name, (folder, pattern) in FILES.items() if version == "standard" else ():
            base = Path(self.root, folder)
            for file in base.glob(pattern):
                build_data["force_include"][str(file)] = f"vitlab/{name}/{file.relative_to(base).as_posix()}"
