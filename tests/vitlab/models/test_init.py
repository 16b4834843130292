"""A fresh model has the documented scales, those of timm's own initializations, and the head that was asked for."""

import math
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from vitlab.models.vit import VisionTransformer

tiny = partial(VisionTransformer, dim=192, heads=3, depth=2)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_fresh_model_has_the_documented_scales() -> None:
    model = VisionTransformer(image_size=32, depth=2, num_registers=4, layer_scale=1e-4, num_classes=100)
    scales = {name: (float(p.mean()), float(p.std())) for name, p in model.state_dict().items()}
    for name, (mean, std) in scales.items():
        if "norm" in name and name.endswith("weight"):
            expected = (1.0, 0.0)
        elif name.endswith("gamma"):
            expected = (1e-4, 0.0)
        elif name.endswith("bias"):
            expected = (0.0, 0.0)
        elif name in ("cls_token", "reg_token"):
            expected = (0.0, 1e-6)
        elif ".attn." in name or ".mlp." in name:  # Xavier: uniform within sqrt(6 / (in + out)), q, k, v apart
            fan_in_and_out = 5 * 768 if ".mlp." in name else 2 * 768
            expected = (0.0, (2 / fan_in_and_out) ** 0.5)
        else:
            expected = (0.0, 768**-0.5 if name == "patch_embed.proj.weight" else 0.02)
        assert (mean, std) == pytest.approx(expected, rel=0.1, abs=1.5e-3 if name == "pos_embed" else 2e-4), name


@torch.no_grad()
def moments(values: Tensor) -> list[float]:
    """Standard deviation, and kurtosis: 1.8 of a uniform distribution, 3 of a normal one, 2.37 cut off at 2 sigma."""
    values = values.detach().double().flatten()
    deviation = float(values.std())
    return [deviation, float((values - values.mean()).pow(4).mean()) / deviation**4 if deviation else 0.0]


@pytest.mark.parametrize(
    ("scheme", "theirs"),
    [
        ("timm", timm.create_model("vit_tiny_patch16_224", depth=2, class_token=True, reg_tokens=4)),
        ("timm", timm.create_model("deit_tiny_distilled_patch16_224", depth=2)),
        ("paper", timm.create_model("vit_tiny_patch16_224", depth=2, weight_init="jax")),
    ],
)
def test_a_scheme_has_the_distributions_of_timms_own(scheme: Any, theirs: nn.Module) -> None:
    names = theirs.state_dict()
    extra: dict[str, Any] = {"distilled": "head_dist.bias" in names, "num_registers": 4 * ("reg_token" in names)}
    ours, checked = tiny(init=scheme, **extra).state_dict(), 0
    for name, expected in theirs.state_dict().items():
        if scheme == "paper" and (name.endswith("qkv.weight") or name == "cls_token"):
            continue  # flax has q, k, v apart, and [cls] begins at 0: the next test
        few = expected.numel() < 1000  # numbers of which the deviation is known to 10 %
        wanted, got = moments(expected), moments(ours[name])
        assert got[0] == pytest.approx(wanted[0], rel=0.3 if few else 0.03), name
        if wanted[0] and not few:
            assert got[1] == pytest.approx(wanted[1], rel=0.06), name
            checked += 1
        assert float(ours[name].mean()) == pytest.approx(float(expected.mean()), abs=3 * wanted[0] / 10), name
    assert checked >= 8


def test_the_papers_scheme_is_that_of_its_code() -> None:
    state = tiny(init="paper", pre_logits_dim=192, head_bias=-10.0).state_dict()
    for name, value in state.items():
        if name.endswith("qkv.weight"):  # flax's dense layers: q, k, v apart
            bound = math.sqrt(6 / (192 + 192))
            assert 0.99 * bound < float(value.abs().max()) <= bound
    assert not state["cls_token"].any()
    assert not state["head.weight"].any()
    assert set(state["head.bias"].tolist()) == {-10.0}
    assert moments(state["pos_embed"]) == pytest.approx([0.02, 3.0], rel=0.03)
    assert moments(state["pre_logits.weight"]) == pytest.approx([192**-0.5, 2.37], rel=0.03)
    assert moments(state["blocks.1.mlp.fc1.bias"])[0] == pytest.approx(1e-6, rel=0.15)
    assert not state["blocks.1.attn.qkv.bias"].any()
    other = tiny(init="big_vision").state_dict()
    assert moments(other["pos_embed"])[0] == pytest.approx(192**-0.5, rel=0.03)


def test_torchvisions_scheme_has_its_distributions() -> None:
    torch.manual_seed(0)
    sizes: dict[str, int] = {"num_layers": 2, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768}
    theirs = torchvision.models.VisionTransformer(image_size=224, patch_size=16, **sizes).state_dict()
    ours = tiny(init="torchvision").state_dict()
    block = "encoder.layers.encoder_layer_1"
    names = {
        **{f"patch_embed.proj.{end}": f"conv_proj.{end}" for end in ("weight", "bias")},
        **{f"blocks.1.attn.qkv.{end}": f"{block}.self_attention.in_proj_{end}" for end in ("weight", "bias")},
        **{f"blocks.1.attn.proj.{end}": f"{block}.self_attention.out_proj.{end}" for end in ("weight", "bias")},
        **{f"blocks.1.mlp.fc1.{end}": f"{block}.mlp.0.{end}" for end in ("weight", "bias")},
        **{f"blocks.1.mlp.fc2.{end}": f"{block}.mlp.3.{end}" for end in ("weight", "bias")},
        **{f"head.{end}": f"heads.head.{end}" for end in ("weight", "bias")},
        "cls_token": "class_token",
        "pos_embed": "encoder.pos_embedding",
    }
    for name, theirs_name in names.items():
        wanted, got = moments(theirs[theirs_name]), moments(ours[name])
        few = ours[name].numel() < 1000
        assert got == pytest.approx(wanted, rel=0.3 if few else 0.05), name
    assert sum(bool(ours[name].any()) for name in names) == 8, "the others are 0"


def test_maes_scheme_draws_patches_and_qkv_as_single_matrices() -> None:
    state = tiny(init="mae", num_classes=1000).state_dict()
    for name, fans in {"patch_embed.proj.weight": 3 * 256 + 192, "blocks.0.attn.qkv.weight": 4 * 192,
                       "blocks.0.mlp.fc2.weight": 5 * 192, "head.weight": 1192}.items():  # fmt: skip
        bound = math.sqrt(6 / fans)
        assert 0.99 * bound < float(state[name].abs().max()) <= bound, name
    assert moments(state["cls_token"])[0] == pytest.approx(0.02, rel=0.2)
    assert float(state["patch_embed.proj.bias"].abs().max()) <= (3 * 256) ** -0.5  # torch's own
    assert state["patch_embed.proj.bias"].any()


@pytest.mark.parametrize("scheme", ["xavier", "paper", "big_vision", "timm", "deit", "mae", "torchvision"])
def test_the_head_has_the_standard_deviation_and_bias_that_were_set(scheme: Any) -> None:
    states = []
    for std in (0.0, 2e-5, 0.3):
        torch.manual_seed(0)
        model = tiny(init=scheme, head_std=std, head_bias=-6.9, distilled=True)
        for head in ("head", "head_dist"):
            assert moments(model.get_parameter(f"{head}.weight"))[0] == pytest.approx(std, rel=0.02)
            assert model.get_parameter(f"{head}.bias").tolist() == pytest.approx([-6.9] * 1000)
        states.append(model.state_dict())
    for name, value in states[0].items():  # the rest of the network is the same
        assert name.startswith("head") or (torch.equal(value, states[1][name]) and torch.equal(value, states[2][name]))


def test_the_default_head_is_0_02_of_a_normal_distribution() -> None:
    torch.manual_seed(0)
    default = tiny()
    torch.manual_seed(0)
    model = tiny(head_std=0.02)
    assert all(torch.equal(one, two) for one, two in zip(default.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("scheme", ["xavier", "paper", "mae", "torchvision"])
def test_a_head_of_a_single_class_has_the_scale_of_any_other(scheme: Any) -> None:
    one, many = (
        tiny(init=scheme, num_classes=classes, head_std=0.1).get_parameter("head.weight") for classes in (1, 9)
    )
    assert moments(one)[0] == pytest.approx(0.1, rel=0.3)
    assert moments(many)[0] == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("std", [-1e-9, math.nan])
def test_a_negative_standard_deviation_of_the_head_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match=rf"head_std={std} must be at least 0, which is a zero head"):
        tiny(head_std=std)
