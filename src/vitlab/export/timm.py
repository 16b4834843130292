"""Export a folder that timm loads: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

config.json has timm's architecture and its arguments, the class names and the preprocessing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from vitlab.config.schema import Node
from vitlab.export.checkpoint import ExportModel, network_tensors, unit_scales
from vitlab.export.folder import write_json, write_tensors
from vitlab.models.vit_validation import pair
from vitlab.runs.record import muted_logs

# Architectures by what config.json can't set: the norms' epsilon, the distillation token, the kind of MLP.
PLAIN, CLIP = "vit_base_patch16_224", "vit_base_patch16_clip_224"
DISTILLED, GATED = "deit_base_distilled_patch16_224", "vit_giant_patch14_dinov2"
NORM_EPS = {PLAIN: 1e-6, CLIP: 1e-5, DISTILLED: 1e-6, GATED: 1e-6}


def unsupported_parts(arguments: Node) -> list[str]:
    """Parts of vitlab's Vision Transformer that timm's doesn't have."""
    problems = []
    if arguments["pre_logits_dim"] is not None:
        problems.append(f"model.pre_logits_dim={arguments['pre_logits_dim']}: timm's ViT has no layer before its head")
    if arguments["distilled"] and arguments["num_registers"]:
        problems.append(f"model.num_registers={arguments['num_registers']}: timm's distilled ViT has none")
    if arguments["distilled"] and arguments["activation"] == "swiglu":
        problems.append("model.activation=swiglu: timm's distilled ViT has no gated MLPs")
    name = timm_architecture(arguments)
    if arguments["norm_eps"] != NORM_EPS[name]:
        known = "1e-6 or 1e-5" if name in (PLAIN, CLIP) else "1e-6"
        problems.append(f"model.norm_eps={arguments['norm_eps']}: timm's architectures of this kind have {known}")
    return problems


def timm_architecture(arguments: Node) -> str:
    if arguments["distilled"]:
        return DISTILLED
    if arguments["activation"] == "swiglu":
        return GATED
    return CLIP if arguments["norm_eps"] == NORM_EPS[CLIP] else PLAIN


def model_args(arguments: Node) -> Node:
    averaged = arguments["pool"] == "avg"
    norm_pooled = averaged if arguments["fc_norm"] is None else bool(arguments["fc_norm"]) and averaged
    args: Node = {
        "img_size": list(pair(arguments["image_size"])),
        "patch_size": list(pair(arguments["patch_size"])),
        "in_chans": arguments["in_channels"],
        "embed_dim": arguments["dim"],
        "depth": arguments["depth"],
        "num_heads": arguments["heads"],
        "global_pool": "avg" if averaged else "token",
        "fc_norm": norm_pooled,
        **{name: arguments[name] for name in ("mlp_ratio", "qkv_bias", "pre_norm", "class_token")},
    }
    if not arguments["distilled"]:
        args |= {"reg_tokens": arguments["num_registers"], "no_embed_class": has_positions_on_patches_only(arguments)}
        args["pos_embed"] = "none" if arguments["pos_embed"] == "none" else "learn"
    if arguments["activation"] != "swiglu":
        args["act_layer"] = arguments["activation"]
    if scale := layer_scale(arguments):
        args["init_values"] = scale
    return args


def has_positions_on_patches_only(arguments: Node) -> bool:
    """Whether the prefix has no positions in timm, where all of its tokens have them or none."""
    partly = arguments["num_registers"] and not arguments["pos_embed_on_registers"]
    return bool(arguments["pos_embed_on_patches_only"] or partly)


def layer_scale(arguments: Node) -> float | None:
    """The initial value of LayerScale, which timm's gated architecture always has."""
    if arguments["layer_scale"] is None and timm_architecture(arguments) == GATED:
        return 1.0
    value: float | None = arguments["layer_scale"]
    return value


def timm_state(trained: ExportModel) -> dict[str, Tensor]:
    """The tensors under timm's names."""
    arguments, covered = trained.arguments, None
    if arguments["distilled"]:
        covered = 2
    elif arguments["pos_embed"] != "none":
        prefix = int(arguments["class_token"]) + int(arguments["num_registers"])
        covered = 0 if has_positions_on_patches_only(arguments) else prefix
    ours = network_tensors(trained, covered=covered)
    if layer_scale(arguments) is not None and arguments["layer_scale"] is None:
        ours |= unit_scales(arguments)
    return ours


def timm_config(trained: ExportModel) -> Node:
    """The content of config.json, in timm's format."""
    if trained.weights.kind == "vit":
        name, args = timm_architecture(trained.arguments), model_args(trained.arguments)
        classifier = ["head", "head_dist"] if trained.arguments["distilled"] else "head"
        known: Node = {"first_conv": "patch_embed.proj", "classifier": classifier, "pool_size": None}
        known["fixed_input_size"], width = True, trained.arguments["dim"]
    else:
        network: Any = trained.network
        name, width = network.pretrained_cfg["architecture"], network.num_features
        known = {k: network.pretrained_cfg.get(k) for k in ("first_conv", "classifier", "pool_size")}
        known["fixed_input_size"] = bool(network.pretrained_cfg.get("fixed_input_size"))
        args = {"in_chans": trained.channels}
        args |= {"img_size": list(trained.image_size)} if known["fixed_input_size"] else {}
    crop = trained.crop_fraction
    return {
        "architecture": name,
        "num_classes": len(trained.classes),
        "num_features": width,
        "model_args": args,
        "label_names": list(trained.classes),
        "pretrained_cfg": {
            **known,
            "custom_load": False,
            "input_size": [trained.channels, *trained.image_size],
            "interpolation": trained.interpolation,
            "crop_pct": 1.0 if crop is None else crop,
            "crop_mode": "squash" if crop is None else "center",
            "mean": list(trained.mean),
            "std": list(trained.std),
            "num_classes": len(trained.classes),
        },
    }


def write_timm(trained: ExportModel, folder: Path, *, fold: bool) -> None:
    """Write config.json and model.safetensors."""
    tensors = timm_state(trained) if trained.weights.kind == "vit" else dict(trained.network.state_dict())
    write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", timm_config(trained))


def load_timm(folder: Path, trained: ExportModel) -> Callable[[Tensor], Tensor]:
    import timm

    with muted_logs("timm"):
        network: Callable[[Tensor], Tensor] = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return network


def load_transform(folder: Path) -> Callable[[Any], Tensor]:
    import timm

    data: Any = timm.data  # untyped
    with muted_logs("timm"):
        config = data.resolve_model_data_config(timm.create_model(f"local-dir:{folder}"))
        transform: Callable[[Any], Tensor] = data.create_transform(**config, is_training=False)
    return transform
