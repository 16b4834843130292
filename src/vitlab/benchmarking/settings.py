"""What is wrong with a benchmark's settings beside their types, before anything is measured."""

from collections.abc import Iterator
from typing import Any

import torch

from vitlab.schema import resolve, suggest

LISTS = {
    "advice": ("sets", "changes"),
    "devices": ("counts", "kinds", "strategies"),
    "loading": ("interpolations",),
    "networks": ("sizes", "tasks", "precisions", "modes", "batches"),
    "scaling": ("axes", "names", "tokens", "width", "depth", "batch"),
}
# What `devices.settings` can't say, as the part does, and what says it instead.
SAID = {
    "trainer": "devices.strategies",
    "trainer.strategy": "devices.strategies",
    "trainer.devices": "devices.counts",
    "trainer.accelerator": "accelerator",
    "trainer.max_steps": "devices.steps",
    "trainer.max_epochs": "devices.steps",
    "trainer.log_every_n_steps": "devices.steps",
    "batch_size": "devices.batch_size",
    "model": "devices.model",
    "image_size": "devices.image_size",
}
COUNTS = ("networks.batches", "scaling.width", "scaling.depth", "scaling.batch", "devices.counts")


def problems(read: Any) -> Iterator[str]:
    """`read` gives a value by its dotted path, or None (`reader.Reader`)."""
    parts = read("parts", list[str])
    if parts is None:
        return
    if not parts or len(set(parts)) < len(parts):
        yield f"parts={parts} must name at least one part, and each once"
    if (rounds := read("rounds", int)) is not None and rounds < 1:
        yield f"rounds={rounds} must be at least 1"
    if (seconds := read("seconds", float)) is not None and not 0 <= seconds < float("inf"):
        yield f"seconds={seconds} must be 0 (a single call) or more"
    if (threads := read("threads", int)) is not None and threads < 1:
        yield f"threads={threads} must be at least 1, or null for as many as torch takes"
    if read("accelerator") == "gpu" and not torch.cuda.is_available():
        yield "accelerator=gpu: torch sees no GPU here; use accelerator=cpu, or auto"
    for part, names in LISTS.items():
        for name in names:
            chosen = read(f"{part}.{name}", list[Any])
            if part in parts and chosen is not None and (not chosen or len(set(chosen)) < len(chosen)):
                yield f"{part}.{name}={chosen} must have at least one entry, and each once"
    for path in COUNTS:
        if any(count < 1 for count in read(path, list[int]) or ()):
            yield f"{path}={read(path)} must be at least 1 each"
    yield from scaling_problems(read)
    if "devices" in parts:
        yield from devices_problems(read)
    for part in parts:
        yield from part_problems(part, read)


def part_problems(part: str, read: Any) -> Iterator[str]:
    """What a part's constructor says to its settings, and if that is nothing, what it says to the runs it makes."""
    node = read(part, dict) or {}
    if "_target_" not in node or f"{part}._target_" in read.bad:
        return
    wrong = {bad.split(".")[1] for bad in read.bad if bad.startswith(f"{part}.")}
    try:  # what is wrong by its type is as if it weren't set: the others are told at the same time
        made = resolve(str(node["_target_"]))(
            **{key: value for key, value in node.items() if not key.startswith("_") and key not in wrong}
        )
    except ValueError as error:
        yield from str(error).splitlines()
        return
    if not wrong:
        gpu = torch.cuda.is_available() and read("accelerator", str) != "cpu"
        yield from made.problems("cuda" if gpu else "cpu")


def scaling_problems(read: Any) -> Iterator[str]:
    for axis in read("scaling.axes", list[str]) or ():
        if len(read(f"scaling.{axis}", list[int]) or (1, 2)) < 2:
            yield f"scaling.{axis}={read(f'scaling.{axis}')} has one size: an exponent needs two"
    at = read("scaling.at", list[int])
    if at is not None and any(value < 1 for value in at):
        yield f"scaling.at={at} must be at least 1 each: tokens, width, depth, batch"
        return
    for path, counts in {"scaling.tokens": read("scaling.tokens", list[int]), "scaling.at": at and at[:1]}.items():
        for count in counts or ():
            if count < 2 or round((count - 1) ** 0.5) ** 2 != count - 1:
                side = max(1, round(max(count - 1, 1) ** 0.5))
                yield f"{path}: {count} tokens are not [cls] and a square of patches; the nearest is {1 + side**2}"
    for path, widths in {"scaling.width": read("scaling.width", list[int]), "scaling.at": at and at[1:2]}.items():
        for width in widths or ():
            if width > 64 and width % 64:
                yield f"{path}: a width of {width} is not a multiple of 64, the width of a head"


def devices_problems(read: Any) -> Iterator[str]:
    """What its own settings say, and then what `train.py` would say to the programs that they make."""
    from vitlab.benchmarking.devices import NETWORKS, ROW, Devices

    node = {key: value for key, value in (read("devices", dict) or {}).items() if not key.startswith("_")}
    counts, kinds = read("devices.counts", list[int]), read("devices.kinds", list[str]) or ["weak", "strong"]
    gpus = torch.cuda.device_count() if read("accelerator", str) != "cpu" else 0
    device = "cuda" if gpus else "cpu"
    found = []
    for line in read("devices.settings", list[str]) or ():
        key = line.partition("=")[0].lstrip("+")
        if key in SAID:
            found.append(f"devices.settings: {line} is for the part to set; use {SAID[key]}")
        elif key.partition(".")[0] == "hydra":
            found.append(
                f"devices.settings: {line} is for the part to set, which says where each run goes; leave it out"
            )
    for key, least in (("batch_size", 1), ("image_size", 1), ("warmup", 0), ("steps", 2 * ROW), ("rounds", 1)):
        value = read(f"devices.{key}", int)
        if value is not None and value < least:
            found.append(f"devices.{key}={value} must be at least {least}")
    wrong = counts is not None and (min(counts, default=0) < 1 or len(set(counts)) < len(counts))  # already told
    if wrong:
        counts = None
    if counts and gpus and max(counts) > gpus:
        remedy = f"use {gpus} at most, or accelerator=cpu for processes that share its cores"
        found.append(f"devices.counts={counts}: this machine has {gpus} GPU{'s' if gpus > 1 else ''}; {remedy}")
    images = read("devices.batch_size", int) or NETWORKS[device][2]
    if counts and "strong" in kinds and images * min(counts) < max(counts):
        least = -(-max(counts) // min(counts))
        remedy = f"use {least} or more, or devices.kinds=[weak]"
        found.append(f"devices.batch_size={images} leaves nothing for some of {max(counts)} devices; {remedy}")
    yield from found
    if not (found or wrong or any(bad.startswith("devices") for bad in read.bad)):
        part = Devices(**node)
        programs = dict.fromkeys(program for row in part.table(device).values() for program in row)
        told = [problem for program in programs for problem in train_problems(part.line(program, device))]
        yield from (f"devices: train.py would say: {problem.splitlines()[0]}" for problem in dict.fromkeys(told))


def train_problems(lines: list[str]) -> list[str]:
    """What is wrong with a command line of `train.py`, whose file lists all root keys, and not all of those below."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from vitlab import command, grammar

    with command.composing():
        try:
            overrides = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(lines)
        except HydraException as error:
            return [str(error)]
        groups = [grammar.group_options(override) for override in overrides]
        pairs = list(zip(overrides, groups, strict=True))
        found = [problem for override, options in pairs for problem in grammar.option_problems(override, options)]
        known = command.compose("train", [])
        for override, options in pairs:
            key = override.key_or_group
            if not options and "." not in key and key not in known.keys():  # noqa: SIM118 (`in` overlooks what is ???)
                found.append(f"{override.input_line}: there is no such setting{suggest(key, map(str, known))}")
        if found:
            return found
        spelt = [line for override, options in pairs for line in grammar.spellings(override, bool(options), False)]
        return command.composed_problems("train", lambda **settings: settings, spelt, sweep=False)
