"""Check the settings of the doctor and of a plan."""

import re
from collections.abc import Iterator

from vitlab.config.schema import format_value
from vitlab.config.view import ConfigView


def doctor_problems(read: ConfigView) -> Iterator[str]:
    if (ranks := read.ranks()) > 1 and (batch := read("batch_size", int)) is not None:
        share = f"use trainer.devices=1 trainer.num_nodes=1 batch_size={max(1, batch // ranks)}, the share of one"
        yield f"trainer.devices={format_value(read('trainer.devices'))}: the doctor measures one device; {share}"


def plan_problems(read: ConfigView) -> Iterator[str]:
    if (device := read("device", str)) in (None, "here"):
        return
    from vitlab.models.flops import PEAKS, peak_flops

    if peak_flops(device, precision := str(read("trainer.precision"))) is None:
        names = ", ".join(re.sub(r"[^\w |]", "", pattern.replace("\\b", "")) for pattern, _ in PEAKS)
        yield f"device={device}: its FLOPs per second in trainer.precision={precision} are unknown; known are {names}"
