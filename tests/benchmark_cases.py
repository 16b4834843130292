"""Measurements as the benchmark takes them, without anything measured."""

from vitlab.diagnostics.timing import Measurement


def measured(name: str, *seconds: float, peer: bool = True, items: float = 1.0, **figures: float) -> Measurement:
    return Measurement(name=name, seconds=seconds, items=items, peer=peer, figures=figures)
