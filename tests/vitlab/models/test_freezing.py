"""Patterns freeze parameters and modules; frozen parts compute as in evaluation."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from vitlab.models.freezing import ALL_BUT_HEAD, freeze, frozen_names, head_names, set_frozen_to_eval
from vitlab.models.vit import VisionTransformer


def toy(**knobs: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "dim": 16, "depth": 12, "heads": 2, "num_classes": 3, "in_channels": 1}
    return VisionTransformer(**{**sizes, **knobs})


def modules_of(names: list[str]) -> set[str]:
    """`blocks.3` for a parameter of a block, else the first part of its name."""
    return {".".join(name.split(".")[: 2 if name.startswith("blocks") else 1]) for name in names}


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ("patch_embed", {"patch_embed"}),
        (("patch_embed", "blocks.[0-5]"), {"patch_embed", *(f"blocks.{i}" for i in range(6))}),
        (("blocks.[0-5].*",), {f"blocks.{i}" for i in range(6)}),
        (("blocks.1?",), {"blocks.10", "blocks.11"}),
        (("blocks", "!blocks.1[01]"), {f"blocks.{i}" for i in range(10)}),
        (("*", "!blocks", "!head"), {"cls_token", "pos_embed", "patch_embed", "norm"}),
        ("*_*", {"cls_token", "pos_embed", "patch_embed"}),
    ],
)
def test_a_pattern_names_parameters_or_modules_with_all_that_is_in_them(
    patterns: str | tuple[str, ...], frozen: set[str]
) -> None:
    network = toy()
    names = frozen_names(network, patterns)
    assert modules_of(names) == frozen
    assert [name for name, _ in network.named_parameters() if modules_of([name]) <= frozen] == names, "with all of it"


def test_a_pattern_may_pick_parameters_out_of_modules() -> None:
    names = frozen_names(toy(), ("*", "!*.bias", "!head"))
    assert names
    assert not [name for name in names if name.endswith("bias") or name.startswith("head")]


def test_frozen_parameters_get_no_gradient_and_the_others_do() -> None:
    network = toy(depth=2)
    freeze(network, ("patch_embed", "blocks.0"))
    network(torch.randn(2, 1, 8, 8)).sum().backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert modules_of(without) == {"patch_embed", "blocks.0"}


@pytest.mark.parametrize(
    ("make", "head"),
    [
        (toy, {"head.weight", "head.bias"}),
        (lambda: timm.create_model("resnet18", num_classes=3), {"fc.weight", "fc.bias"}),
        (lambda: timm.create_model("convnext_atto", num_classes=3), {"head.fc.weight", "head.fc.bias"}),
    ],
)
def test_all_but_the_head_knows_what_the_head_is(make: Any, head: set[str]) -> None:
    network = make()
    freeze(network, ALL_BUT_HEAD)
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == head


def test_a_distilled_model_has_two_heads() -> None:
    with torch.device("meta"):
        assert head_names(timm.create_model("deit_tiny_distilled_patch16_224")) == ("head", "head_dist")


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("blok.0", r"classifier\.freeze=blok\.0: no parameter or module has such a name; did you mean 'blocks\.0'"),
        ("all_but_head", "did you mean 'all-but-head'"),
        (("blocks", "blocks.12"), r"classifier\.freeze=blocks\.12: no parameter or module has such a name"),
        ("!head", "classifier.freeze=!head: no pattern before it freezes that"),
        (("blocks", "!head"), "classifier.freeze=!head: no pattern before"),
        (("*",), r"classifier\.freeze=\['\*'\] leaves nothing to train; .* src/evaluate\.py with probe=linear"),
    ],
)
def test_a_pattern_that_has_no_effect_or_too_much_is_an_error(patterns: str | tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        freeze(toy(), patterns)


def test_a_network_of_a_single_parameter_or_none_at_all_is_no_exception() -> None:
    with pytest.raises(ValueError, match="leaves nothing to train"):
        freeze(nn.Linear(2, 2, bias=False), "weight")
    freeze(nn.Identity(), ALL_BUT_HEAD)
    set_frozen_to_eval(nn.Identity())


# ---------------------------------------------------------------------------------------------------------- at rest


def test_frozen_blocks_drop_nothing_and_the_others_do() -> None:
    network = toy(depth=4, dropout=0.5, drop_path=0.5, pool="avg").train()
    freeze(network, ("cls_token", "pos_embed", "patch_embed", "blocks.[0-2]"))
    set_frozen_to_eval(network)
    images = torch.randn(4, 1, 8, 8)
    resting = [network.forward_features(images, layers=[2])[0] for _ in range(2)]
    assert torch.equal(*resting)
    assert not torch.equal(*(network.forward_features(images, layers=[3])[0] for _ in range(2)))


def test_with_all_but_the_head_frozen_the_features_are_those_of_evaluation() -> None:
    for network in (
        toy(depth=2, dropout=0.5, drop_path=0.5, position_dropout=0.5),
        timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=3, pos_drop_rate=0.5, drop_path_rate=0.5),
    ):
        freeze(network, ALL_BUT_HEAD)
        ours = isinstance(network, VisionTransformer)
        images = torch.randn(2, 1, 8, 8) if ours else torch.randn(2, 3, 224, 224)
        expected = network.eval()(images)
        set_frozen_to_eval(network.train())
        assert torch.equal(network(images), expected)
        assert network.get_submodule("head").training


def test_frozen_batch_norm_keeps_its_statistics_and_uses_them() -> None:
    network = timm.create_model("resnet18", num_classes=3)
    freeze(network, ("conv1", "bn1", "layer1"))
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    set_frozen_to_eval(network.train())
    network(torch.randn(4, 3, 32, 32) + 1)
    changed = {name.split(".")[0] for name, buffer in network.named_buffers() if not torch.equal(buffer, before[name])}
    assert changed == {"layer2", "layer3", "layer4"}


def test_a_module_without_parameters_follows_its_parent() -> None:
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    network[0].requires_grad_(False)
    set_frozen_to_eval(network.train())
    training = {name for name, module in network.named_modules() if module.training}
    assert training == {"", "1", "1.0", "1.1"}
