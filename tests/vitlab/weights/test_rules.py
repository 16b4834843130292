"""Each transform from a library's tensors to ours is undone by its way back."""

import dataclasses

import pytest
import torch

from vitlab.weights import rules
from vitlab.weights.layouts import LAYOUTS
from vitlab.weights.rules import Transform

HEADS = 2


@pytest.mark.parametrize(
    ("form", "shapes", "ours"),
    [
        (rules.SAME, [(4, 3)], (4, 3)),
        (rules.STACKED, [(4, 4)] * 3, (12, 4)),
        (rules.HALVES, [(8, 4)] * 2, (16, 4)),
        (rules.TOKEN, [(4,)], (1, 1, 4)),
        (rules.TABLE, [(5, 4)], (1, 5, 4)),
        (rules.TRANSPOSED, [(4, 7)], (7, 4)),
        (rules.JAX, [(2, 3, 1, 4)], (4, 1, 2, 3)),
        (rules.JAX, [(4, 7)], (7, 4)),
        (rules.JAX_QKV, [(4, HEADS, 2)] * 3, (12, 4)),
        (rules.JAX_QKV_BIAS, [(HEADS, 2)] * 3, (12,)),
        (rules.JAX_OUT, [(HEADS, 2, 4)], (4, 4)),
    ],
)
def test_a_transform_and_its_way_back_keep_every_number(
    form: Transform, shapes: list[tuple[int, ...]], ours: tuple[int, ...]
) -> None:
    theirs = [torch.randn(shape) for shape in shapes]
    made = form.to(theirs)
    assert tuple(made.shape) == ours
    again = form.back(made, HEADS)
    assert all(torch.equal(one, other) for one, other in zip(theirs, again, strict=True))
    assert sorted(made.flatten().tolist()) == sorted(torch.cat([each.flatten() for each in theirs]).tolist())


def test_rules_are_written_for_weight_and_bias() -> None:
    (weight, bias) = rules.weight_and_bias("norm", "layernorm")
    assert (weight.ours, weight.theirs, bias.ours) == ("norm.weight", ("layernorm.weight",), "norm.bias")
    (rule, _) = rules.block_layers("layer.{i}", mlp_fc1="dense", gated=True)
    assert (rule.ours, rule.theirs, rule.gated) == ("blocks.{i}.mlp.fc1.weight", ("layer.{i}.dense.weight",), True)


def test_a_table_that_all_share_can_not_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        LAYOUTS["timm"].anchor = "x"  # type: ignore[misc]
