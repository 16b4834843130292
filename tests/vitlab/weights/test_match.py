"""What each tensor of a model is read from, and what of that is a problem."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import parity
from vitlab.models.vit import VisionTransformer
from vitlab.weights.infer import patch_grid
from vitlab.weights.layouts import LAYOUTS
from vitlab.weights.mapping import from_ours
from vitlab.weights.match import Report, StateDictMatcher, format_grid, names_by_reason, prefix_tokens
from vitlab.weights.open import open_weights

BASE: dict[str, Any] = {"image_size": 16, "patch_size": 4, "dim": 24, "depth": 1, "heads": 2, "num_classes": 5}


def fit(tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> StateDictMatcher:
    model = VisionTransformer(**BASE | theirs)
    parity.fill(model)
    file = tmp_path / str(len(list(tmp_path.iterdir())))  # a new one: a file changed within a clock tick is cached
    save_file(model.state_dict(), file)
    weights = open_weights(str(file), requested=BASE | theirs)
    with torch.device("meta"):
        network = VisionTransformer(**BASE | ours)
    return StateDictMatcher(network, BASE | ours, weights, "title")


def test_a_network_like_theirs_is_read_tensor_by_tensor(tmp_path: Path) -> None:
    found = fit(tmp_path, {"num_registers": 2}, {"num_registers": 2})
    assert set(found.readers) == set(found.expected) == set(found.report.matched)
    report = found.report
    assert (report.problems, report.new, report.unused, report.resampled) == ([], {}, {}, {})


@pytest.mark.parametrize(
    ("theirs", "ours", "problem"),
    [
        ({"num_registers": 2}, {}, "without a place in the model: reg_token"),
        ({}, {"num_registers": 2}, "missing in the weights: reg_token"),
        ({"distilled": True}, {}, "without a place in the model: dist_token, head_dist.weight, head_dist.bias"),
        (
            {"num_registers": 2},
            {"num_registers": 3},
            "of another shape: reg_token 1x2x24 in the weights, 1x3x24 in the model",
        ),
        ({}, {"pos_embed": "sincos2d"}, "without a place in the model: pos_embed"),
        ({"pos_embed": "none"}, {}, "missing in the weights: pos_embed"),
        ({"layer_scale": 0.1}, {}, "without a place in the model: blocks.0.ls1.gamma, blocks.0.ls2.gamma"),
        ({"dim": 12}, {}, "of another shape: cls_token 1x1x12 in the weights, 1x1x24 in the model"),
        ({"qkv_bias": False}, {}, "missing in the weights: blocks.0.attn.qkv.bias"),
        ({"activation": "swiglu"}, {}, "blocks.0.mlp.fc2.weight 24x48 in the weights, 24x96 in the model"),
    ],
    ids=str,
)
def test_what_the_arguments_dont_explain_is_a_problem(
    theirs: dict[str, Any], ours: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    assert any(problem in found for found in fit(tmp_path, theirs, ours).report.problems)


@pytest.mark.parametrize(
    ("theirs", "ours", "new", "unused"),
    [
        ({}, {"num_classes": 3}, ["head.weight", "head.bias"], ["head.weight", "head.bias"]),
        ({"num_classes": 0}, {}, ["head.weight", "head.bias"], []),
        ({}, {"num_classes": 0}, [], ["head.weight", "head.bias"]),
        (
            {"distilled": True},
            {"distilled": True, "num_classes": 3},
            ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"],
            ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"],
        ),
    ],
    ids=str,
)
def test_heads_are_explained_by_the_classes(
    theirs: dict[str, Any], ours: dict[str, Any], new: list[str], unused: list[str], tmp_path: Path
) -> None:
    report = fit(tmp_path, theirs, ours).report
    assert report.problems == []
    assert (list(report.new), list(report.unused)) == (new, unused)


def test_the_prefix_is_counted_in_its_order_and_the_grid_in_patches() -> None:
    shapes = {"reg_token": (1, 2, 8), "cls_token": (1, 1, 8)}
    assert prefix_tokens(shapes) == [("cls_token", 0), ("reg_token", 0), ("reg_token", 1)]
    assert patch_grid((32, 48), 16) == (2, 3)


def fit_changed(tmp_path: Path, arguments: dict[str, Any], changed: dict[str, Tensor]) -> StateDictMatcher:
    """Fit a network to its own weights with some of them replaced or added."""
    model = VisionTransformer(**BASE | arguments)
    file = tmp_path / str(len(list(tmp_path.iterdir())))
    save_file(model.state_dict() | changed, file)
    weights = open_weights(str(file), requested=BASE | arguments)
    return StateDictMatcher(model, BASE | arguments, weights, "title")


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_of_a_head_over_cls_and_mean_the_half_is_used_that_the_pooling_feeds(pool: str, tmp_path: Path) -> None:
    half, zeros = torch.rand(5, 24), torch.zeros(5, 24)
    both = torch.cat([half, zeros] if pool == "cls" else [zeros, half], dim=1)
    used = fit_changed(tmp_path, {"pool": pool}, {"head.weight": both})
    assert used.report.problems == []
    assert torch.equal(used.readers["head.weight"](), half)
    assert used.report.resampled == {"head.weight": "48 -> 24 numbers: the others are zero"}
    for column in (0, 23, 24, 47):
        mixed = both.clone()
        mixed[0, column] = 1.0
        report = fit_changed(tmp_path, {"pool": pool}, {"head.weight": mixed}).report
        own = (column < 24) == (pool == "cls")
        assert report.problems == ([] if own else [HALVES]), column


HALVES = "the weights' head reads 48 numbers ([cls] and the patches' mean?), and the model's 24"


def test_a_head_of_another_width_is_a_problem(tmp_path: Path) -> None:
    both = {"head.weight": torch.zeros(5, 48)}
    assert fit_changed(tmp_path, {"pool": "none"}, both).report.problems == [HALVES]
    third = {"head.weight": torch.zeros(5, 72)}
    assert fit_changed(tmp_path, {}, third).report.problems == [HALVES.replace("48", "72")]


def test_changed_positions_are_reported_by_their_grid_and_prefix(tmp_path: Path) -> None:
    resampled = fit(tmp_path, {"image_size": 24}, {}).report.resampled
    assert resampled == {"pos_embed": "6x6 -> 4x4 patches (bicubic, antialiased)"}
    registers = {"num_registers": 2}
    moved = fit(tmp_path, registers, registers | {"pos_embed_on_registers": False})
    assert moved.report.resampled == {
        "the prefix": "positions of 3 -> 1 tokens before the patches; the network computes the same"
    }
    assert moved.report.problems == []
    assert fit(tmp_path, {"image_size": 24, "dim": 12}, {}).report.resampled == {}


def test_a_tensor_of_unknown_name_is_a_problem_and_unused(tmp_path: Path) -> None:
    report = fit_changed(tmp_path, {}, {"blocks.0.attn.extra": torch.zeros(1)}).report
    assert report.unused == {"blocks.0.attn.extra": "unknown"}
    assert len(report.problems) == 1
    assert report.problems[0].startswith("in the file, and unknown to timm")


def test_settings_that_shapes_dont_show_are_compared_where_the_layout_knows_them(tmp_path: Path) -> None:
    for name, ours, notes, problems in (
        ("hf_vit", {"norm_eps": 1e-12}, [], []),
        ("hf_vit", {}, ["norm_eps=1e-06 in the model, 1e-12 in the weights"], []),
        (
            "hf_clip",
            {"pre_norm": True, "norm_eps": 1e-5},
            [],
            ["activation=gelu in the model, quick_gelu in the weights"],
        ),
    ):
        model = VisionTransformer(**BASE | ours)
        state = {key: value for key, value in model.state_dict().items() if name != "hf_clip" or key != "head.bias"}
        file = tmp_path / str(len(list(tmp_path.iterdir())))
        save_file(from_ours(state, LAYOUTS[name], heads=2), file)
        weights = open_weights(str(file), requested=BASE)
        report = StateDictMatcher(model, BASE | ours, weights, "title").report
        known = [note for note in report.notes if not note.startswith("assumed ")]
        assumed = [note for note in report.notes if note not in known]
        assert len(assumed) > 1
        assert assumed[-1] == "assumed norms before attention and MLP: their order isn't in the tensors"
        assert all("no configuration has it; set model." in note for note in assumed[:-1])
        assert [note.split(" (")[0] for note in known] == notes
        assert [problem.split(" (")[0] for problem in report.problems] == problems


def test_the_table_has_a_line_for_each_kind_even_if_it_is_none() -> None:
    report = Report("weights from x", matched=["a", "b"], numbers=1234)
    assert report.table().splitlines() == [
        "weights from x",
        "  matched      2 tensors as they are; 1,234 numbers in all",
        "  resampled    none",
        "  new          none",
        "  unused       none",
    ]


def test_names_that_share_a_reason_share_a_line() -> None:
    report = Report("t", new={"head.weight": "9 classes", "head.bias": "9 classes", "reg_token": "not there"})
    report.resampled["pos_embed"] = "14x14 -> 24x24"
    report.notes.append("assumed")
    report.problems.append("missing")
    lines = report.table().splitlines()
    assert "  new          head.weight, head.bias: 9 classes" in lines
    assert "  new          reg_token: not there" in lines
    assert "  resampled    pos_embed: 14x14 -> 24x24" in lines
    assert lines[-2:] == ["  note         assumed", "  note         missing"]


def test_long_lists_are_cut_and_counted() -> None:
    assert names_by_reason(dict.fromkeys(map(str, range(8)), "x")) == ["0, 1, 2, 3, 4, 5 and 2 more: x"]
    assert names_by_reason({"a": "x", "b": "y", "c": "x"}) == ["a, c: x", "b: y"]
    assert format_grid((14, 7)) == "14x7"


@pytest.mark.parametrize(
    ("ours", "how"),
    [
        ({"patch_size": 2, "image_size": 8}, ["4x4 -> 2x2 pixels (pseudo-inverse of resizing)"]),
        ({"in_channels": 1}, ["3 -> 1 channels (summed)"]),
        ({"in_channels": 4}, ["3 -> 4 channels (repeated in turn)"]),
        (
            {"in_channels": 1, "patch_size": 2, "image_size": 8},
            ["4x4 -> 2x2 pixels (pseudo-inverse of resizing)", "3 -> 1 channels (summed)"],
        ),
    ],
)
def test_how_the_patch_projection_is_changed_is_reported(ours: dict[str, Any], how: list[str], tmp_path: Path) -> None:
    assert fit(tmp_path, {}, ours).report.resampled["patch_embed.proj.weight"] == ", ".join(how)


def test_tensors_that_are_not_of_the_network_are_unused(tmp_path: Path) -> None:
    state = {f"encoder.{name}": tensor for name, tensor in VisionTransformer(**BASE).state_dict().items()}
    save_file({**state, "decoder.weight": torch.zeros(3)}, tmp_path / "both")
    with torch.device("meta"):
        network = VisionTransformer(**BASE)
    weights = open_weights(str(tmp_path / "both"), requested=BASE)
    report = StateDictMatcher(network, BASE, weights, "title").report
    assert report.unused == {"decoder.weight": "not part of the network encoder"}
