"""Check the settings of a plan."""

import re
from collections.abc import Iterator

from vitlab.config.view import ConfigView


def plan_problems(read: ConfigView) -> Iterator[str]:
    if (device := read("device", str)) in (None, "here"):
        return
    from vitlab.models.flops import PEAKS, peak_flops

    if peak_flops(device, precision := str(read("trainer.precision"))) is None:
        names = ", ".join(re.sub(r"[^\w |]", "", pattern.replace("\\b", "")) for pattern, _ in PEAKS)
        yield f"device={device}: its FLOPs per second in trainer.precision={precision} are unknown; known are {names}"
