"""Configurations of other libraries give the arguments that shapes don't show."""

import pytest

from vitlab.weights.files import UnreadableWeights
from vitlab.weights.hints import timm_hints, transformers_hints


def test_transformers_config_of_other_kinds_is_used() -> None:
    assert transformers_hints({"model_type": "ijepa"}) == {"pool": "avg", "fc_norm": False}
    nested = {"model_type": "x", "backbone_config": {"model_type": "dinov2", "num_attention_heads": 6}}
    assert transformers_hints(nested) == {"heads": 6, "norm_eps": 1e-6}
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
