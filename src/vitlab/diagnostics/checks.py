"""Check the settings of the doctor, of a plan and of a replay."""

import re
from collections.abc import Iterator
from pathlib import Path

from vitlab.config.schema import format_value
from vitlab.config.view import ConfigView
from vitlab.runs.folder import CONFIG


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


def replay_problems(read: ConfigView) -> Iterator[str]:
    capture, rank = read("capture", str), read("rank", int)
    if capture is None or rank is None:
        return
    from vitlab.training import nonfinite

    folder = Path(capture)
    if not (folder / nonfinite.INFO).is_file():
        inside = sorted(map(str, folder.glob(f"captures/*/{nonfinite.INFO}")))
        there = f"; that run has {', '.join(str(Path(file).parent) for file in inside)}" if inside else ""
        yield f"capture={capture} is not a captured step: it has no {nonfinite.INFO}{there}"
    elif not (folder / CONFIG).is_file():
        yield f"capture={capture} has no {CONFIG}, the configuration of the network; copy the run's there"
    elif not (folder / f"rank{rank}" / nonfinite.PARTS).is_file():
        there = ", ".join(sorted(part.name.removeprefix("rank") for part in folder.glob("rank*")))
        yield f"rank={rank}: {capture} has no part of this rank; it has those of {there}"
