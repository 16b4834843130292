"""The configuration next to weights gives arguments that shapes don't show, the preprocessing and the classes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vitlab.weights.configuration import (
    Preprocessing,
    class_names,
    config_hints,
    from_transformers,
    loss_kind,
    open_clip_hints,
    preprocessing,
    timm_hints,
    transformers_hints,
)
from vitlab.weights.files import FileContent, UnreadableWeights
from vitlab.weights.layouts import LAYOUTS
from vitlab.weights.locate import WeightFiles


def test_transformers_config_of_other_kinds_is_used() -> None:
    assert transformers_hints({"model_type": "ijepa"}) == {"pool": "avg", "fc_norm": False}
    nested = {"model_type": "x", "backbone_config": {"model_type": "dinov2", "num_attention_heads": 6}}
    assert transformers_hints(nested) == {"heads": 6, "norm_eps": 1e-6}
    sizes = [transformers_hints({"model_type": "x", "image_size": size}) for size in ([32, 48], 32)]
    assert sizes == [{"image_size": (32, 48)}, {"image_size": 32}]
    with pytest.raises(UnreadableWeights, match="pooler_act=relu: the layer before our model's head has tanh"):
        transformers_hints({"model_type": "vit", "pooler_act": "relu"})


@pytest.mark.parametrize(
    ("kind", "epsilon"),
    [
        *(("vit", 1e-12), ("deit", 1e-12), ("vit_mae", 1e-12), ("vit_msn", 1e-6), ("dinov2", 1e-6)),
        *(("dinov2_with_registers", 1e-6), ("clip", None), ("clip_vision_model", None), ("other", None)),
    ],
)
def test_transformers_defaults_are_those_of_its_classes(kind: str, epsilon: float | None) -> None:
    expected = {} if kind == "other" else {"heads": 12}
    assert transformers_hints({"model_type": kind}) == expected | ({"norm_eps": epsilon} if epsilon else {})


def test_timms_models_are_inspected_and_unsupported_ones_are_refused() -> None:
    said = timm_hints("vit_base_patch32_clip_quickgelu_224", {"depth": 1})
    assert (said["heads"], said["activation"], said["norm_eps"], said["pool"]) == (12, "quick_gelu", 1e-5, "cls")
    for name, message in (
        ("resnet18", r"\(ResNet\) is not a plain Vision Transformer: our model has no .*BasicBlock"),
        ("vit_pwee_patch16_reg1_gap_256", "our model has no ParallelScalingBlock"),
        ("vit_dwee_patch16_reg1_gap_256", "our model has no DiffAttention, RmsNorm"),
        ("vit_so150m_patch16_reg4_map_256", "our model has no AttentionPoolLatent"),
        ("nope", "timm has no architecture nope"),
    ):
        with pytest.raises(UnreadableWeights, match=message):
            timm_hints(name, {} if name in ("resnet18", "nope") else {"depth": 1})


def test_openclips_image_tower_has_its_heads_size_and_activation() -> None:
    tower = {"width": 128, "head_width": 32, "image_size": [32, 48]}
    assert open_clip_hints({"vision_cfg": tower}) == {"activation": "gelu", "heads": 4, "image_size": (32, 48)}
    quick = {"vision_cfg": {"width": 128, "image_size": 32}, "quick_gelu": True}
    assert open_clip_hints(quick) == {"activation": "quick_gelu", "heads": 2, "image_size": 32}
    assert open_clip_hints({}) == {"activation": "gelu"}
    with pytest.raises(UnreadableWeights, match=r"vision_cfg\.attentional_pool is a setting"):
        open_clip_hints({"vision_cfg": {"attentional_pool": True}})


@pytest.mark.parametrize(
    ("changed", "only", "pool"),
    [
        ({}, False, "cls"),
        ({"no_embed_class": True}, True, "cls"),
        ({"no_embed_class": True, "class_token": False, "global_pool": "avg"}, False, "avg"),
        ({"no_embed_class": True, "class_token": False, "global_pool": "", "reg_tokens": 2}, True, "none"),
    ],
)
def test_timms_positions_are_on_patches_only_if_there_are_other_tokens(
    changed: dict[str, Any], only: bool, pool: str
) -> None:
    said = timm_hints("vit_tiny_patch16_224", {"depth": 1, "img_size": (32, 48), **changed})
    assert said["pos_embed_on_patches_only"] is only
    assert (said["pool"], said["image_size"], "pos_embed" in said) == (pool, (32, 48), False)


def test_timms_models_without_positions_have_none() -> None:
    assert timm_hints("vit_tiny_patch16_224", {"depth": 1, "pos_embed": "none"})["pos_embed"] == "none"


def test_the_configuration_of_a_run_comes_first_and_may_be_empty() -> None:
    model = {"_target_": "vitlab.models.vit.VisionTransformer", "heads": 3}
    for record, hints in (({"config": {"model": model}}, {"heads": 3}), ({"config": {}}, {}), ({"step": 1}, {})):
        files: Any = SimpleNamespace(record=record, config={"model_type": "vit"})
        assert config_hints(files) == (hints, "its run's configuration")


def test_hints_are_from_the_first_configuration_that_there_is() -> None:
    vision = {"width": 128, "head_width": 32}
    files = opened(config={"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 4}})
    hints, origin = config_hints(files)
    assert (hints["heads"], origin) == (4, "timm's model vit_tiny_patch16_224")
    named = opened(timm_name="vit_tiny_patch16_224", config={"model_type": "vit"})
    assert config_hints(named)[1] == "timm's model vit_tiny_patch16_224"
    both: dict[str, Any] = {"open_clip": {"model_cfg": {"vision_cfg": vision}}}
    assert config_hints(opened(**both)) == ({"activation": "gelu", "heads": 4}, "open_clip_config.json")
    assert config_hints(opened(config={"model_type": "vit"}, **both))[1] == "config.json"
    assert config_hints(opened(open_clip={"preprocess_cfg": {}})) == ({}, "the tensors' shapes")


def opened(**said: Any) -> WeightFiles:
    nothing: dict[str, Any] = {"config": {}, "preprocessor": {}, "open_clip": {}, "record": {}, "timm_name": None}
    return WeightFiles(source="x", file=Path("x"), content=FileContent({}, {}), **nothing | said)


def test_timms_configuration_is_used() -> None:
    cfg = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "interpolation": "bilinear", "crop_pct": 0.9}
    found = preprocessing(opened(config={"pretrained_cfg": cfg}), LAYOUTS["timm"])
    assert found == Preprocessing((0.5,) * 3, (0.2,) * 3, "bilinear", 0.9, "timm's pretrained_cfg")
    assert found.settings() == {"mean": [0.5] * 3, "std": [0.2] * 3, "interpolation": "bilinear"}


@pytest.mark.parametrize(
    ("said", "crop"),
    [
        ({"size": {"height": 224, "width": 224}}, 1.0),
        (
            {"do_center_crop": True, "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
            0.875,
        ),
        ({"do_center_crop": True, "size": 256, "crop_size": 224}, 0.875),
        ({"do_center_crop": False, "size": 256, "crop_size": 224}, 1.0),
    ],
)
def test_transformers_configuration_is_used(said: dict[str, Any], crop: float) -> None:
    found = from_transformers({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "resample": 3, **said})
    assert found == Preprocessing((0.1, 0.2, 0.3), (1, 1, 1), "bicubic", crop, "preprocessor_config.json")


def test_images_that_were_not_normalized_keep_their_values() -> None:
    found = from_transformers({"do_normalize": False, "image_mean": [0.5] * 3, "resample": 2})
    assert (found.mean, found.std, found.interpolation) == ((0.0,) * 3, (1.0,) * 3, "bilinear")


def test_googles_files_are_of_images_from_minus_one_to_one_and_others_are_unknown() -> None:
    known = preprocessing(opened(), LAYOUTS["google"])
    assert (known.mean, known.std, known.interpolation, known.crop_fraction) == ((0.5,) * 3, (0.5,) * 3, None, None)
    assert preprocessing(opened(), LAYOUTS["torchvision"]) == Preprocessing()


def test_a_runs_own_record_is_used() -> None:
    record = {"preprocessing": {"mean": [0.3], "std": [0.4], "interpolation": "bicubic", "crop_fraction": 0.9}}
    assert preprocessing(opened(record=record), LAYOUTS["timm"]) == Preprocessing(
        (0.3,), (0.4,), "bicubic", 0.9, "its run"
    )


def files(config: dict[str, Any], record: dict[str, Any] | None = None, timm_name: str | None = None) -> WeightFiles:
    return WeightFiles("source", Path("file"), FileContent({}, {}), config, {}, {}, record or {}, timm_name)


@pytest.mark.parametrize(
    ("known", "names"),
    [
        (files({}, {"data": {"classes": ["cat", "dog"]}}), ("cat", "dog")),
        (files({"label_names": ["cat", "dog"]}), ("cat", "dog")),
        (files({"id2label": {"1": "dog", "0": "cat"}}), ("cat", "dog")),
        (files({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}), None),
        (files({"label_names": ["cat", "dog", "bird"]}), None),
        (files({}), None),
    ],
)
def test_names_are_those_next_to_the_weights(known: WeightFiles, names: Any) -> None:
    assert class_names(known, 2) == names


def test_timms_heads_of_imagenets_size_have_its_names() -> None:
    known = files({"pretrained_cfg": {"num_classes": 1000}}, timm_name="vit")
    names = class_names(known, 1000)
    assert names is not None
    assert names[281].startswith("tabby")
    assert class_names(known, 10) is None
    assert class_names(files({"pretrained_cfg": {"num_classes": 10}}, timm_name="vit"), 10) is None


def test_the_loss_is_that_of_the_run_or_of_transformers_problem_type() -> None:
    run = {"config": {"classifier": {"loss": "bce"}}}
    assert loss_kind(files({}, run)) == "sigmoid"
    assert loss_kind(files({"problem_type": "multi_label_classification"})) == "sigmoid"
    assert loss_kind(files({})) == "softmax"
