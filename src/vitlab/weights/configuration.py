"""Our model's arguments, preprocessing, classes and loss, from the configuration next to weights."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch

from vitlab.config.printable import format_names
from vitlab.weights.files import UnreadableWeights
from vitlab.weights.locate import WeightFiles
from vitlab.weights.rules import Layout

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
CLIP_COLORS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # mean and std
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers; the data pipeline has no other interpolation


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
    """Arguments of our model from the image tower in open_clip_config.json; raises `UnreadableWeights` for others."""
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


class Preprocessing(NamedTuple):
    """Known settings of the preprocessing; None is unknown."""

    mean: tuple[float, ...] | None = None  # of each channel, in [0, 1]
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_fraction: float | None = None  # of the resized side that the center crop keeps
    origin: str = ""

    def settings(self) -> dict[str, Any]:
        """By their names in the group `data`."""
        known = {"mean": self.mean, "std": self.std, "interpolation": self.interpolation}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in known.items() if value}


def preprocessing(files: WeightFiles, layout: Layout) -> Preprocessing:
    """The preprocessing from vitlab's record, timm's or transformers' configuration, or the layout's own code."""
    if record := files.record.get("preprocessing"):
        mean, std = mean_and_std(record)
        return Preprocessing(mean, std, record["interpolation"], record["crop_fraction"], "its run")
    if cfg := files.config.get("pretrained_cfg"):
        mean, std = mean_and_std(cfg)
        interpolation = cfg["interpolation"] if cfg.get("interpolation") in RESAMPLE.values() else None
        return Preprocessing(mean, std, interpolation, cfg.get("crop_pct"), "timm's pretrained_cfg")
    if files.preprocessor:
        return from_transformers(files.preprocessor)
    if mean := files.open_clip.get("preprocess_cfg", {}).get("mean"):
        std = files.open_clip["preprocess_cfg"]["std"]
        return Preprocessing(tuple(mean), tuple(std), "bicubic", 1.0, "open_clip_config.json")
    if layout.name in ("hf_clip", "open_clip"):
        return Preprocessing(*CLIP_COLORS, "bicubic", 1.0, "OpenAI's CLIP")
    if layout.name == "google":
        return Preprocessing((0.5,) * 3, (0.5,) * 3, None, None, "Google's code, which scales to -1 .. 1")
    return Preprocessing()


def mean_and_std(config: Mapping[str, Any], prefix: str = "") -> list[tuple[float, ...] | None]:
    return [tuple(config[key]) if config.get(key) else None for key in (f"{prefix}mean", f"{prefix}std")]


def from_transformers(config: Mapping[str, Any]) -> Preprocessing:
    mean, std = mean_and_std(config, "image_")
    if config.get("do_normalize") is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    size, crop = config.get("size"), config.get("crop_size")
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    if isinstance(crop, Mapping):
        crop = crop.get("height")
    fraction = min(1.0, crop / size) if config.get("do_center_crop") and size and crop else 1.0
    return Preprocessing(mean, std, RESAMPLE.get(config.get("resample", -1)), fraction, "preprocessor_config.json")


def class_names(files: WeightFiles, count: int) -> tuple[str, ...] | None:
    """Names of `count` classes: vitlab's record, timm's or transformers' configuration, or timm's for ImageNet."""
    by_id = files.config.get("id2label")
    listed: Any = (files.record.get("data") or {}).get("classes") or files.config.get("label_names")
    if listed is None and isinstance(by_id, dict) and by_id.get("0") != "LABEL_0":  # which is no name
        listed = [by_id[key] for key in sorted(by_id, key=int)]
    if listed is None and files.timm_name is not None:
        from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

        subset = infer_imagenet_subset(files.config["pretrained_cfg"])
        listed = ImageNetInfo(subset).label_descriptions() if subset else None
    return tuple(map(str, listed)) if listed is not None and len(listed) == count else None


def loss_kind(files: WeightFiles) -> Literal["softmax", "sigmoid"]:
    """The loss of the training, which decides how logits become probabilities."""
    if files.record:
        return config_loss(files.record.get("config") or {})
    return "sigmoid" if files.config.get("problem_type") == "multi_label_classification" else "softmax"


def config_loss(config: dict[str, Any]) -> Literal["softmax", "sigmoid"]:
    """The same, of a run's configuration."""
    return "softmax" if (config.get("classifier") or {}).get("loss", "softmax") == "softmax" else "sigmoid"
