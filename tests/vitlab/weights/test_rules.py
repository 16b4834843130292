"""Each transform from a library's tensors to ours is undone by its way back."""

import pytest
import torch

from vitlab.weights.rules import TRANSFORMS

HEADS = 2


FORMS: list[tuple[str, list[tuple[int, ...]], tuple[int, ...]]] = [
    ("same", [(4, 3)], (4, 3)),
    ("stacked", [(4, 4)] * 3, (12, 4)),
    ("halves", [(8, 4)] * 2, (16, 4)),
    ("token", [(4,)], (1, 1, 4)),
    ("table", [(5, 4)], (1, 5, 4)),
    ("transposed", [(4, 7)], (7, 4)),
    ("jax", [(2, 3, 1, 4)], (4, 1, 2, 3)),
    ("jax", [(4, 7)], (7, 4)),
    ("jax_qkv", [(4, HEADS, 2)] * 3, (12, 4)),
    ("jax_qkv_bias", [(HEADS, 2)] * 3, (12,)),
    ("jax_out", [(HEADS, 2, 4)], (4, 4)),
]


@pytest.mark.parametrize(("name", "shapes", "ours"), FORMS)
def test_a_transform_and_its_way_back_keep_every_number(
    name: str, shapes: list[tuple[int, ...]], ours: tuple[int, ...]
) -> None:
    form = TRANSFORMS[name]
    theirs = [torch.randn(shape) for shape in shapes]
    made = form.to(theirs)
    assert tuple(made.shape) == ours
    again = form.back(made, HEADS)
    assert all(torch.equal(one, other) for one, other in zip(theirs, again, strict=True))
    assert sorted(made.flatten().tolist()) == sorted(torch.cat([each.flatten() for each in theirs]).tolist())


def test_every_transform_is_tried() -> None:
    assert {name for name, *_ in FORMS} == set(TRANSFORMS)
