"""All kinds of faults, in the order of the table: importing a module adds its kinds to the list."""

from faults import damage, inputs, kills, loops, sweeps, untrusted

__all__ = ["damage", "inputs", "kills", "loops", "sweeps", "untrusted"]
