"""The explanations of arguments are read from docstrings in source files, ours and those of libraries."""

from pathlib import Path

import pytest

from vitlab.config.docstrings import argument_lines, parse_arguments

GOOGLE = """Do something.

Text with a colon: no argument.

Args:
    size: Side in pixels,
        or [height, width].

    rate (float, optional): Rate: 0 is off.
    **kwargs: Passed on.
    empty:

Returns:
    nothing: really.
"""


def test_an_entry_is_one_line_without_its_type() -> None:
    assert parse_arguments(GOOGLE) == {
        "size": "Side in pixels, or [height, width].",
        "rate": "Rate: 0 is off.",
        "kwargs": "Passed on.",
        "empty": "",
    }
    assert parse_arguments("") == {}


@pytest.mark.parametrize(
    ("target", "name", "line"),
    [
        ("lightning.Trainer", "max_epochs", "Stop training once this number of epochs is reached."),
        ("torch.optim.AdamW", "weight_decay", "weight decay coefficient"),  # `AdamW.__doc__ = ...`
        ("torch.optim.AdamW", "fused", "whether the fused implementation is used."),  # a name in an f-string
        ("timm.optim.Lion", "lr", "learning rate"),  # of `__init__`
        ("optuna.samplers.TPESampler", "seed", "Seed for random number generator."),
        ("vitlab.training.schedules.warmup_linear", "final_fraction", "Rate at the end, as a fraction of the peak."),
    ],
)
def test_the_docstrings_of_libraries_are_read_in_source(target: str, name: str, line: str) -> None:
    assert argument_lines(target)[name] == line


def test_a_class_inherits_the_lines_of_its_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
class Base:
    '''Base.

    Args:
        size: Of the base. Not shown for a library.
        rate: Of the base.
    '''

class Derived(Base):
    def __init__(self, size, rate):
        '''Make it.

        Args:
            size: Of :class:`~a.B`, in ``pixels`` (default: 3). More.
        '''

value = 3
"""
    (tmp_path / "some_library.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert argument_lines("some_library.Derived") == {"size": "Of `a.B`, in `pixels`.", "rate": "Of the base."}
    assert argument_lines("some_library.value") == {}
    assert argument_lines("some_library.missing") == {}
