"""Configurations of other libraries give the arguments that shapes don't show."""

from types import SimpleNamespace
from typing import Any

import pytest

from vitlab.weights.files import UnreadableWeights
from vitlab.weights.hints import config_hints, open_clip_hints, timm_hints, transformers_hints


def test_transformers_config_of_other_kinds_is_used() -> None:
    assert transformers_hints({"model_type": "ijepa"}) == {"pool": "avg", "fc_norm": False}
    nested = {"model_type": "x", "backbone_config": {"model_type": "dinov2", "num_attention_heads": 6}}
    assert transformers_hints(nested) == {"heads": 6, "norm_eps": 1e-6}
    sizes = [transformers_hints({"model_type": "x", "image_size": size}) for size in ([32, 48], 32)]
    assert sizes == [{"image_size": (32, 48)}, {"image_size": 32}]
    with pytest.raises(UnreadableWeights, match="pooler_act=relu: the layer before our model's head has tanh"):
        transformers_hints({"model_type": "vit", "pooler_act": "relu"})


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
