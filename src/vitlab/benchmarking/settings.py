"""What is wrong with a benchmark's settings beside their types, before anything is measured."""

from collections.abc import Iterator
from typing import Any

import torch

LISTS = {
    "networks": ("sizes", "tasks", "precisions", "modes", "batches"),
    "scaling": ("axes", "names", "tokens", "width", "depth", "batch"),
}
COUNTS = ("networks.batches", "scaling.width", "scaling.depth", "scaling.batch")


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
