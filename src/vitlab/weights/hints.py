"""Arguments of our model from the configuration next to weights: vitlab's own, transformers' or timm's."""

from collections.abc import Mapping
from typing import Any

import torch

from vitlab.config.printable import format_names
from vitlab.weights.files import UnreadableWeights
from vitlab.weights.locate import WeightFiles

HF_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_tanh")
HF_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", **dict.fromkeys(HF_TANH, "gelu_tanh")}
# of vision_cfg: read, shown by the tensors' shapes, or without effect on what a network computes in evaluation
OPEN_CLIP_KEYS = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio", "ls_init_value"}
OPEN_CLIP_KEYS |= {"patch_dropout"}
TIMM_ACTIVATIONS = {"GELU": "gelu", "GELU_": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh"}
TIMM_LAYERS = {  # all classes of the modules in timm's plain Vision Transformers
    *("VisionTransformer", "VisionTransformerDistilled", "PatchEmbed", "Block", "Attention", "Mlp", "GluMlp", "SiLU"),
    *("Conv2d", "Linear", "LayerNorm", "LayerScale", "Dropout", "DropPath", "Identity", "Sequential"),
    *TIMM_ACTIVATIONS,
}


def config_hints(files: WeightFiles) -> tuple[dict[str, Any], str]:
    """Arguments of our model from the configuration next to the weights, and the name of that configuration."""
    if files.record:
        model = dict((files.record.get("config") or {}).get("model") or {})
        return {key: value for key, value in model.items() if not key.startswith("_")}, "its run's configuration"
    if name := files.timm_name or files.config.get("architecture"):
        return timm_hints(str(name), files.config.get("model_args") or {}), f"timm's model {name}"
    if "model_type" in files.config:
        return transformers_hints(files.config), "config.json"
    if "model_cfg" in files.open_clip:
        return open_clip_hints(files.open_clip["model_cfg"]), "open_clip_config.json"
    return {}, "the tensors' shapes"


def transformers_hints(config: Mapping[str, Any]) -> dict[str, Any]:
    config = {**config, **(config.get("vision_config") or config.get("backbone_config") or {})}
    kind, hints = config.get("model_type"), dict[str, Any]()
    # transformers omits defaults
    if kind in ("vit", "deit", "vit_mae", "vit_msn", "dinov2", "dinov2_with_registers"):
        hints = {"heads": 12, "norm_eps": 1e-6 if "dinov2" in kind or kind == "vit_msn" else 1e-12}
    elif kind in ("clip", "clip_vision_model"):
        hints = {"heads": 12}
    names = {"num_attention_heads": "heads", "layer_norm_eps": "norm_eps", "layerscale_value": "layer_scale"}
    hints |= {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
    if (size := config.get("image_size")) is not None:
        hints["image_size"] = tuple(size) if isinstance(size, list | tuple) else size
    if (act := config.get("pooler_act", "tanh")) != "tanh":
        raise UnreadableWeights(f"config.json: pooler_act={act}: the layer before our model's head has tanh")
    if kind == "ijepa":
        hints |= {"pool": "avg", "fc_norm": False}
    if (act := config.get("hidden_act")) is not None:
        if act not in HF_ACTIVATIONS:
            raise UnreadableWeights(f"config.json: hidden_act={act} is none of {', '.join(HF_ACTIVATIONS)}")
        hints["activation"] = HF_ACTIVATIONS[act]
    return hints


def open_clip_hints(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of our model from the image tower in open_clip_config.json.

    Raises `UnreadableWeights` for a setting that our model can't follow.
    """
    vision = config.get("vision_cfg") or {}
    if refused := sorted(vision.keys() - OPEN_CLIP_KEYS):
        setting = f"vision_cfg.{refused[0]} is a setting that our model doesn't have"
        raise UnreadableWeights(f"open_clip_config.json: {setting}")
    hints: dict[str, Any] = {"activation": "quick_gelu" if config.get("quick_gelu") else "gelu"}
    if "width" in vision:
        hints["heads"] = vision["width"] // vision.get("head_width", 64)
    if (size := vision.get("image_size")) is not None:
        hints["image_size"] = tuple(size) if isinstance(size, list) else size
    return hints


def timm_hints(name: str, changed: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of our model from timm's model of a name, built on the meta device."""
    import timm

    if not timm.is_model(name):
        raise UnreadableWeights(f"config.json: timm has no architecture {name}")
    with torch.device("meta"):
        model: Any = timm.create_model(name, pretrained=False, **changed)
    if others := {type(module).__name__ for module in model.modules()} - TIMM_LAYERS:
        raise UnreadableWeights(
            f"timm's {name} ({type(model).__name__}) is not a plain Vision Transformer: our model has no "
            f"{format_names(sorted(others))}"
        )
    block = model.blocks[0]
    hints = {
        "heads": block.attn.num_heads,
        "norm_eps": block.norm1.eps,
        "pool": {"token": "cls", "": "none"}.get(model.global_pool, model.global_pool),
        "image_size": tuple(model.patch_embed.img_size),
        **({} if model.pos_embed is not None else {"pos_embed": "none"}),
        "pos_embed_on_patches_only": bool(model.no_embed_class and model.num_prefix_tokens),
    }
    if type(block.mlp).__name__ == "Mlp":
        hints["activation"] = TIMM_ACTIVATIONS[type(block.mlp.act).__name__]
    return hints
