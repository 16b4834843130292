"""Networks of other libraries compute the same and come back bit for bit; incompatible weights are refused."""

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import parity
from vitlab.models.vit import VisionTransformer
from vitlab.weights.layouts import LAYOUTS
from vitlab.weights.load import IncompatibleWeights, load_network, load_pretrained
from vitlab.weights.locate import cached_read
from vitlab.weights.mapping import from_ours
from vitlab.weights.open import open_weights

TOY: dict[str, Any] = {"image_size": 24, "patch_size": 8, "dim": 24, "depth": 2, "heads": 3, "num_classes": 5}
toy = partial(VisionTransformer, **TOY)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes a state_dict as safetensors: the file."""

    def save(state: dict[str, Tensor], name: str = "weights.safetensors") -> Path:
        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / name)
        return tmp_path / name

    return save


def filled(**arguments: Any) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(**TOY | arguments).eval()
    parity.fill(model)
    return model


# ------------------------------------------------------------------------------------------------------------- parity


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", parity.ROWS, ids=lambda row: f"{row.family}-{row.architecture}-{row.option}")
def test_other_libraries_networks_compute_the_same_and_come_back_bit_for_bit(row: parity.Row, tmp_path: Path) -> None:
    model, source = row.make(tmp_path)
    weights = open_weights(source)
    ours, report = load_pretrained(weights)
    assert report.problems == list(report.resampled) == list(report.new) == []
    assert weights.network.others == weights.plan.unknown == []
    found = parity.difference(row, model, ours.eval())
    assert found.tokens < parity.TOLERANCE
    assert found.logits is None or found.logits < parity.TOLERANCE
    back = from_ours(ours.state_dict(), weights.network.layout, heads=ours.heads)
    for name, real in weights.network.names.items():
        if real not in weights.plan.skipped:
            assert torch.equal(back[name], weights.stored[real].read()), name


def test_the_matrix_has_all_families() -> None:
    families = {row.family for row in parity.ROWS}
    assert len(parity.ROWS) >= 12
    assert families >= {"timm ViT", "DeiT", "DeiT III", "CLIP in timm", "DINO", "DINOv2", "MAE", "AugReg .npz", "SBB"}
    assert families >= {"HF ViT", "HF DeiT", "HF DINOv2", "torchvision"}


# -------------------------------------------------------------------------------------------------- what is adapted


@pytest.mark.parametrize(("std", "bias"), [(0.0, 0.0), (2e-5, -10.0)])
def test_a_new_head_is_as_it_was_set_and_the_weights_own_head_stays(
    std: float, bias: float, saved: Callable[..., Path]
) -> None:
    model = filled(num_classes=200, distilled=True)
    source = str(saved(model.state_dict()))
    settings = {**TOY, "distilled": True, "head_std": std, "head_bias": bias}
    new, report = load_network({**settings, "num_classes": 300}, source)
    assert report.new.keys() == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    for head in ("head", "head_dist"):
        assert float(new.get_parameter(f"{head}.weight").detach().std()) == pytest.approx(std, rel=0.05)
        assert set(new.get_parameter(f"{head}.bias").tolist()) == {bias}
    same, _ = load_network({**settings, "num_classes": 200}, source)
    for name in ("head.weight", "head.bias", "head_dist.weight"):
        assert torch.equal(same.get_parameter(name), model.get_parameter(name))


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_a_head_over_cls_and_patches_is_read_where_one_half_is_zero(saved: Callable[..., Path], pool: str) -> None:
    model = filled(pool=pool, fc_norm=False)
    state, head = dict(model.state_dict()), model.state_dict()["head.weight"]
    zero, images = torch.zeros_like(head), torch.rand(2, 3, 24, 24)
    state["head.weight"] = torch.cat([head, zero] if pool == "cls" else [zero, head], dim=1)
    loaded, report = load_network(TOY | {"pool": pool, "fc_norm": False}, str(saved(state)))
    assert torch.equal(loaded.eval()(images), model(images))
    assert report.resampled == {"head.weight": "48 -> 24 numbers: the others are zero"}
    state["head.weight"] = torch.cat([head, head], dim=1)
    with pytest.raises(IncompatibleWeights, match="the weights' head reads 48 numbers"):
        load_network(TOY | {"pool": pool, "fc_norm": False}, str(saved(state, "both.safetensors")))


def test_a_model_of_another_grid_patch_channels_and_classes_is_adapted_and_the_table_says_so(
    saved: Callable[..., Path],
) -> None:
    model = filled()
    weights = open_weights(str(saved(model.state_dict())), requested={"heads": 3})
    ours, report = load_pretrained(weights, image_size=(32, 48), patch_size=16, in_channels=1, num_classes=9)
    assert ours(torch.zeros(1, 1, 32, 48)).shape == (1, 9)
    assert torch.equal(ours.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)
    assert set(report.new) == {"head.weight", "head.bias"}
    table = report.table()
    assert "pos_embed: 3x3 -> 2x3 patches" in table
    assert (
        "patch_embed.proj.weight: 8x8 -> 16x16 pixels (pseudo-inverse of resizing), 3 -> 1 channels (summed)" in table
    )
    assert "head.weight, head.bias: 9 classes, and 5 in the weights" in table
    assert re.search(r"matched +\d+ tensors as they are; [\d,]+ numbers", table)


@pytest.mark.parametrize("change", [{"pos_embed_on_registers": False}, {"pos_embed_on_patches_only": True}])
def test_positions_move_into_the_tokens_where_the_model_has_no_place_for_them(
    saved: Callable[..., Path], change: dict[str, bool]
) -> None:
    model = filled(num_registers=2)
    images = torch.randn(2, 3, 24, 24)
    ours, report = load_pretrained(open_weights(str(saved(model.state_dict())), requested=TOY), **change)
    assert torch.allclose(ours.eval()(images), model(images), atol=1e-5)
    assert "the network computes the same" in report.resampled["the prefix"]


def test_new_heads_are_fresh_and_repeatable(saved: Callable[..., Path]) -> None:
    weights = open_weights(str(saved(filled().state_dict())), requested=TOY)
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(load_pretrained(weights, num_classes=9)[0].state_dict()["head.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert float(heads[0].std()) == pytest.approx(0.02, rel=0.3)


def test_fixed_positions_are_computed_again(saved: Callable[..., Path]) -> None:
    model = filled(pos_embed="sincos2d")
    ours, report = load_network(TOY | {"pos_embed": "sincos2d"}, str(saved(model.state_dict())))
    assert report.problems == []
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(ours.eval()(images), model(images))


def test_norm_and_pooling_change_places(saved: Callable[..., Path]) -> None:
    model = filled()
    ours, report = load_network(TOY | {"pool": "avg"}, str(saved(model.state_dict())))
    assert torch.equal(ours.fc_norm.weight, model.norm.weight)  # type: ignore[arg-type]
    assert "norm -> fc_norm" in report.resampled["norm"]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_loaded_as_float32(saved: Callable[..., Path], kind: torch.dtype) -> None:
    model = filled()
    state = {key: value.to(kind) for key, value in model.state_dict().items()}
    ours, report = load_network(TOY, str(saved(state)))
    assert str(kind).removeprefix("torch.") in report.title
    for key, value in ours.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key].float()), key


# ----------------------------------------------------------------------------------------------------- what is refused


def test_weights_of_another_size_are_refused_with_the_shapes(saved: Callable[..., Path]) -> None:
    source = str(saved(filled(dim=36).state_dict()))
    with pytest.raises(IncompatibleWeights) as refused:
        load_network(TOY, source)
    assert "of another shape: cls_token 1x1x36 in the weights, 1x1x24 in the model" in str(refused.value)
    assert "model=auto takes the model from the weights" in str(refused.value)


def test_missing_and_needless_tensors_are_named_unless_strict_is_off(saved: Callable[..., Path]) -> None:
    state = filled(layer_scale=0.1).state_dict()
    del state["blocks.1.norm1.bias"]
    source = str(saved(state | {"blocks.0.adapter": torch.ones(3)}))
    with pytest.raises(IncompatibleWeights) as refused:
        load_network(TOY, source)
    for line in (
        "missing in the weights: blocks.1.norm1.bias",
        "in the weights, without a place in the model: blocks.0.ls1.gamma",
        "unknown to timm's names (DeiT's, DINO's and MAE's too): blocks.0.adapter",
    ):
        assert line in str(refused.value)
    ours, report = load_network(TOY, source, strict=False)
    assert report.new == {"blocks.1.norm1.bias": "not in the weights"}
    assert report.unused["blocks.0.adapter"] == "unknown"
    assert torch.equal(ours.blocks[1].norm1.bias, torch.zeros(24))  # type: ignore[arg-type]
    assert torch.equal(ours.blocks[1].attn.qkv.weight, state["blocks.1.attn.qkv.weight"])


def test_missing_blocks_are_initialized_each_by_its_own_numbers(saved: Callable[..., Path]) -> None:
    ours, report = load_network(TOY | {"depth": 4}, str(saved(filled().state_dict())), strict=False)
    assert all(name.startswith(("blocks.2.", "blocks.3.")) for name in report.new)
    assert not torch.equal(ours.blocks[2].mlp.fc1.weight, ours.blocks[3].mlp.fc1.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(saved: Callable[..., Path], value: float) -> None:
    state = filled().state_dict()
    state["blocks.0.mlp.fc2.weight"][3, 1] = value
    with pytest.raises(IncompatibleWeights, match=r"NaN or infinity in blocks\.0\.mlp\.fc2\.weight"):
        load_network(TOY, str(saved(state)), strict=False)
    theirs = from_ours(state, LAYOUTS["hf_vit"], heads=3)
    with pytest.raises(IncompatibleWeights, match=r"NaN or infinity in \S*layer\.0\.output\.dense\.weight"):
        load_network(TOY, str(saved(theirs, "theirs.safetensors")), strict=False)


def test_finite_numbers_whose_sum_overflows_are_weights(saved: Callable[..., Path]) -> None:
    state = filled().state_dict()
    state["blocks.0.mlp.fc2.weight"][3, :2] = 3e38
    ours, report = load_network(TOY, str(saved(state)))
    assert torch.equal(ours.blocks[0].mlp.fc2.weight, state["blocks.0.mlp.fc2.weight"])
    assert report.numbers == sum(value.numel() for value in state.values())
    assert cached_read.cache_info().currsize == 0, "the file is released"


def test_a_tensor_that_moves_is_refused_by_our_name(saved: Callable[..., Path]) -> None:
    state = filled().state_dict()
    state["norm.bias"][0] = float("nan")
    with pytest.raises(IncompatibleWeights, match=r"NaN or infinity in fc_norm\.bias; take other"):
        load_network(TOY | {"pool": "avg"}, str(saved(state)))


def test_the_network_of_the_weights_with_another_argument_must_fit_too(saved: Callable[..., Path]) -> None:
    weights = open_weights(str(saved(filled().state_dict())), requested=TOY)
    with pytest.raises(IncompatibleWeights, match=r"missing in the weights: blocks\.2\."):
        load_pretrained(weights, depth=3)


def test_known_heads_and_activation_must_be_the_models(tmp_path: Path) -> None:
    row = next(row for row in parity.ROWS if row.architecture == "vit_base_patch32_clip_quickgelu_224")
    _, source = row.make(tmp_path)
    arguments = open_weights(source).architecture.arguments
    assert arguments["activation"] == "quick_gelu"
    with pytest.raises(
        IncompatibleWeights, match=r"activation=gelu in the model, quick_gelu in the weights \(timm's model"
    ):
        load_network({**arguments, "activation": "gelu"}, source)
    with pytest.raises(IncompatibleWeights, match=r"heads=6 in the model, 12 in the weights .*set model\.heads=12"):
        load_network({**arguments, "heads": 6}, source)
    _, report = load_network({**arguments, "norm_eps": 1e-6}, source)
    assert any("norm_eps=1e-06 in the model, 1e-05 in the weights" in note for note in report.notes)


def test_a_head_with_a_hidden_layer_needs_it_or_is_replaced(saved: Callable[..., Path]) -> None:
    source = str(saved(filled(pre_logits_dim=10).state_dict()))
    with pytest.raises(IncompatibleWeights, match=r"hidden layer of width 10.*set model\.pre_logits_dim=10"):
        load_network(TOY, source)
    _, report = load_network(TOY | {"num_classes": 7}, source)
    assert report.unused["pre_logits.weight"] == "the hidden layer belongs to the head"


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's memory statistics")
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_loading_takes_no_more_than_twice_the_files_size(ending: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"image_size": 32, "dim": 640, "depth": 12, "heads": 10, "num_classes": 0}
    parity.write(file := tmp_path / f"weights.{ending}", sizes)
    assert file.stat().st_size > 2e8
    assert parity.growth(file, sizes) < 2.1


def test_a_loaded_model_shares_nothing_with_its_file(saved: Callable[..., Path]) -> None:
    file = saved(filled().state_dict())
    ours, _ = load_network(TOY, str(file))
    with torch.no_grad():
        ours.head.weight.add_(1.0)  # type: ignore[operator]
    assert torch.equal(load_file(file)["head.weight"], filled().state_dict()["head.weight"])
