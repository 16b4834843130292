"""One of several networks in a file is chosen by name; files without a Vision Transformer are refused."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from vitlab.models.vit import VisionTransformer
from vitlab.weights.files import UnreadableWeights
from vitlab.weights.open import open_weights


def state(value: float, prefix: str = "") -> dict[str, Tensor]:
    model = VisionTransformer(image_size=16, patch_size=8, dim=64, depth=1, heads=1, num_classes=3)
    return {f"{prefix}{key}": torch.full(tensor.shape, value) for key, tensor in model.state_dict().items()}


FILES: dict[str, dict[str, Any]] = {
    "lightning": {
        "state_dict": state(1.0, "network."),
        "current_model_state": state(2.0, "network."),
        "vitlab": {"config": {}},
    },
    "timm": {"state_dict": state(2.0), "state_dict_ema": state(1.0)},
    "dino": {"student": state(2.0, "module.backbone."), "teacher": state(1.0, "backbone.")},
    "one file": state(2.0, "base_encoder.") | state(1.0, "momentum_encoder."),
}


def first(file: Path, part: str | None) -> float:
    return float(open_weights(str(file), part=part).read("cls_token")[0, 0, 0])


@pytest.mark.parametrize(
    ("kind", "part", "value"),
    [
        *((kind, None, 1.0) for kind in ("lightning", "timm", "dino")),
        *((kind, "ema", 1.0) for kind in ("lightning", "timm", "dino")),
        *((kind, "raw", 2.0) for kind in ("lightning", "timm", "dino")),
        ("dino", "student", 2.0),
        ("one file", "base_encoder", 2.0),
        ("one file", "momentum_encoder", 1.0),
    ],
)
def test_averaged_weights_are_taken_and_others_by_name(
    kind: str, part: str | None, value: float, tmp_path: Path
) -> None:
    torch.save(FILES[kind], tmp_path / "file")
    assert first(tmp_path / "file", part) == value


def test_the_choice_is_named_in_the_report_and_asked_for_where_it_is_open(tmp_path: Path) -> None:
    torch.save(FILES["dino"], file := tmp_path / "file")
    assert "file, teacher.backbone, timm's names" in open_weights(str(file)).title()
    with pytest.raises(
        UnreadableWeights, match=r"weights\.part=ema2: .* it has student\.module\.backbone, teacher\.backbone"
    ):
        open_weights(str(file), part="ema2")
    torch.save(FILES["one file"], file)
    with pytest.raises(UnreadableWeights, match=r"choose one with weights\.part: base_encoder, momentum_encoder"):
        open_weights(str(file))


def test_a_network_without_a_name_is_one_of_several(tmp_path: Path) -> None:
    torch.save(state(1.0) | state(2.0, "other."), file := tmp_path / "file")
    with pytest.raises(UnreadableWeights, match=r"choose one with weights\.part: \(one without a name\), other$"):
        open_weights(str(file))
    assert first(file, "other") == 2.0
    torch.save(state(1.0) | state(2.0, "a.") | state(3.0, "ema."), file)
    assert (first(file, None), first(file, "ema"), first(file, "a")) == (3.0, 3.0, 2.0)
    with pytest.raises(UnreadableWeights, match="several networks"):
        first(file, "raw")


def test_the_title_has_the_types_and_a_part_only_of_several(tmp_path: Path) -> None:
    weights = state(1.0)
    torch.save(weights | {"head.bias": weights["head.bias"].half()}, file := tmp_path / "file")
    opened = open_weights(str(file))
    assert opened.title() == f"{file}: file, {opened.network.layout.title}, float16, float32"
    assert opened.part == ""


def test_arguments_that_the_weights_leave_open_are_those_requested(tmp_path: Path) -> None:
    model = VisionTransformer(image_size=16, patch_size=8, dim=24, depth=1, heads=3, num_classes=3)
    torch.save(model.state_dict(), file := tmp_path / "file")
    for heads in (3, 4):
        assert open_weights(str(file), requested={"heads": heads}).architecture.arguments["heads"] == heads


def test_an_average_is_named_by_a_complete_word(tmp_path: Path) -> None:
    torch.save(state(1.0, "semantic.") | state(2.0, "detail."), file := tmp_path / "file")
    with pytest.raises(UnreadableWeights, match=r"choose one with weights\.part: semantic, detail"):
        open_weights(str(file))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("rope_embed.periods", "rotary positions"),
        ("storage_tokens", "registers of DINOv3's own code"),
        ("blocks.0.attn.q_norm.weight", "norms of queries and keys"),
        ("blocks.0.attn.relative_position_bias_table", "relative positions"),
    ],
)
def test_parts_that_the_model_lacks_are_refused_by_name(name: str, part: str, tmp_path: Path) -> None:
    torch.save(state(1.0) | {name: torch.zeros(8)}, file := tmp_path / "file")
    with pytest.raises(UnreadableWeights, match=part) as error:
        open_weights(str(file))
    assert "strict" not in str(error.value)


def test_dinov3s_bare_weights_are_not_taken_for_another_network(tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_small_patch16_dinov3", depth=2).state_dict(), file := tmp_path / "file")
    with pytest.raises(UnreadableWeights, match="no table of positions"):
        open_weights(str(file))


def test_a_run_without_averages_has_no_averages(tmp_path: Path) -> None:
    torch.save({"state_dict": state(2.0, "network."), "vitlab": {"config": {}}}, tmp_path / "file")
    assert first(tmp_path / "file", "raw") == first(tmp_path / "file", None) == 2.0
    with pytest.raises(UnreadableWeights, match=r"weights\.part=ema: .* has no such network"):
        open_weights(str(tmp_path / "file"), part="ema")


def test_another_kind_of_network_is_reported_with_its_names(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.ones(3), "fc.bias": torch.ones(2)}, tmp_path / "resnet.pth")
    with pytest.raises(
        UnreadableWeights, match=r"holds no Vision Transformer of a known layout; its tensors: conv1\.weight"
    ):
        open_weights(str(tmp_path / "resnet.pth"))


def test_integers_are_no_weights(tmp_path: Path) -> None:
    weights = state(1.0)
    weights["blocks.0.mlp.fc1.weight"] = weights["blocks.0.mlp.fc1.weight"].to(torch.int8)
    torch.save(weights, tmp_path / "file")
    with pytest.raises(UnreadableWeights, match=r"blocks\.0\.mlp\.fc1\.weight is of type int8: quantized"):
        open_weights(str(tmp_path / "file"))
