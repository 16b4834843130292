"""What a signature says of its arguments' bounds, a call keeps."""

from typing import Annotated

import pytest

from vitlab.config.bounds import Ascending, PositiveFloat, PositiveInt, Rate, Seed, check_bounds


class Kettle:
    @check_bounds
    def __init__(self, name: "NotThere", *, litres: PositiveFloat, cups: PositiveInt | None = None) -> None:  # type: ignore[name-defined]  # noqa: F821
        self.litres = litres


@check_bounds
def boil(seconds: PositiveInt, rate: Rate = 0.5, spread: Annotated[tuple[float, float], Ascending()] = (0, 1)) -> int:
    """Boils."""
    return seconds


def test_a_call_within_bounds_is_made_as_it_is() -> None:
    assert boil(3) == boil(seconds=3, rate=0) == 3
    assert Kettle("x", litres=1.5).litres == 1.5
    assert boil.__doc__ == "Boils."


def test_all_arguments_out_of_bounds_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"^seconds=0 must be at least 1\nrate=1.0 must be at least 0 and below 1$"):
        boil(0, 1.0)
    with pytest.raises(ValueError, match=r"^litres=nan must be above 0\ncups=0 must be at least 1$"):
        Kettle("x", litres=float("nan"), cups=0)
    with pytest.raises(ValueError, match=r"^spread=\(2, 1\) must be \[low, high\] with low <= high$"):
        boil(1, spread=(2, 1))


def test_a_wrong_call_is_refused_as_ever() -> None:
    with pytest.raises(TypeError, match="seconds"):
        boil()  # type: ignore[call-arg]


def test_a_seed_is_what_numpy_takes() -> None:
    @check_bounds
    def sow(seed: Seed) -> int:
        return seed

    assert sow(2**32 - 1) == 4294967295
    with pytest.raises(ValueError, match="seed=4294967296 must be at least 0 and below 4294967296"):
        sow(2**32)
