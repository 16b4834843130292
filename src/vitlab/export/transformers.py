"""Export a folder that transformers' `AutoModelForImageClassification.from_pretrained` loads.

The class is the plainest that has all parts: ViT; DeiT for a distillation token; DINOv2, with or without registers,
for LayerScale, gated MLPs and average pooling.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitlab.config.schema import Node
from vitlab.export.checkpoint import ExportModel, network_tensors, unit_scales
from vitlab.export.folder import write_json, write_tensors
from vitlab.models.vit_validation import pair
from vitlab.weights.layouts import LAYOUTS
from vitlab.weights.mapping import from_ours

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "swiglu": "silu"}
RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's constants
LARGEST_RATIO = 16  # of an MLP's hidden width to the token width


class Family(NamedTuple):
    """One of transformers' Vision Transformers."""

    model_type: str
    architecture: str
    layout: str
    inner: str  # prefix of the backbone in its classifier


VIT = Family("vit", "ViTForImageClassification", "hf_vit", "vit.")
DEIT = Family("deit", "DeiTForImageClassificationWithTeacher", "hf_deit_with_teacher", "deit.")
DINOV2 = Family("dinov2", "Dinov2ForImageClassification", "hf_dinov2", "dinov2.")
REGISTERS = Family(
    "dinov2_with_registers", "Dinov2WithRegistersForImageClassification", "hf_dinov2", "dinov2_with_registers."
)


def family(arguments: Node) -> Family:
    """The plainest class that has all parts."""
    if arguments["distilled"]:
        return DEIT
    if arguments["num_registers"]:
        return REGISTERS
    scaled, gated = arguments["layer_scale"] is not None, arguments["activation"] == "swiglu"
    return DINOV2 if scaled or gated or arguments["pool"] == "avg" else VIT


def unsupported_parts(arguments: Node) -> list[str]:
    """Parts of vitlab's Vision Transformer that transformers' don't have."""
    problems, kind = [], family(arguments)

    def refuse(name: str, reason: str) -> None:
        value = arguments[name]
        problems.append(f"model.{name}={str(value).lower() if isinstance(value, bool) else value}: {reason}")

    if not arguments["class_token"]:
        refuse("class_token", "transformers' ViT, DeiT and DINOv2 always have one")
    if arguments["pre_norm"]:
        refuse("pre_norm", "of transformers' classifiers only CLIP's has it, without a final norm")
    if arguments["pre_logits_dim"] is not None:
        refuse("pre_logits_dim", "transformers' classifiers have no layer before their head")
    if arguments["pool"] == "avg" and arguments["fc_norm"] is not False:
        refuse("pool", "transformers' DINOv2 normalizes before pooling, as model.fc_norm=false does")
    if kind is DEIT and arguments["num_registers"]:
        refuse("num_registers", "transformers' DeiT has none")
    if kind is DEIT and arguments["layer_scale"] is not None:
        refuse("layer_scale", "transformers' DeiT has no LayerScale")
    if kind is DEIT and arguments["activation"] == "swiglu":
        refuse("activation", "transformers' DeiT has no gated MLPs")
    if kind in (DINOV2, REGISTERS):
        for name in ("image_size", "patch_size"):
            height, width = pair(arguments[name])
            if height != width:
                problems.append(f"{name}=[{height},{width}]: transformers' DINOv2 needs a square grid of patches")
        if mlp_ratio(arguments) is None:
            gated = ", gated ones two thirds of it" if arguments["activation"] == "swiglu" else ""
            refuse("mlp_ratio", f"the MLPs of transformers' DINOv2 have an integer ratio{gated}")
    return problems


def mlp_ratio(arguments: Node) -> int | None:
    """DINOv2's `mlp_ratio` for the hidden width of the MLPs; None if there is none."""
    dim, hidden = arguments["dim"], int(arguments["dim"] * arguments["mlp_ratio"])
    for ratio in range(1, LARGEST_RATIO + 1):
        gated = 2 * ((int(dim * ratio * 2 / 3) + 7) // 8 * 8)  # two thirds, up to a multiple of 8; gate and value
        if hidden == (gated if arguments["activation"] == "swiglu" else dim * ratio):
            return ratio
    return None


def transformers_state(trained: ExportModel) -> dict[str, Tensor]:
    """The tensors under transformers' names."""
    arguments, kind = trained.arguments, family(trained.arguments)
    ours = network_tensors(trained, covered=2 if kind is DEIT else 1)
    if kind in (DINOV2, REGISTERS) and arguments["layer_scale"] is None:
        ours |= unit_scales(arguments)
    theirs = from_ours(ours, LAYOUTS[kind.layout], heads=arguments["heads"], inner=kind.inner)
    if kind in (DINOV2, REGISTERS):  # its head takes [cls] and the patches' mean, concatenated
        weight, zeros = theirs["classifier.weight"], torch.zeros_like(theirs["classifier.weight"])
        parts = [weight, zeros] if arguments["pool"] == "cls" else [zeros, weight]
        theirs["classifier.weight"] = torch.cat(parts, dim=1)
    return theirs


def transformers_config(trained: ExportModel) -> Node:
    """The content of config.json, in transformers' format."""
    arguments, kind = trained.arguments, family(trained.arguments)
    config: Node = {
        "architectures": [kind.architecture],
        "model_type": kind.model_type,
        "hidden_size": arguments["dim"],
        "num_hidden_layers": arguments["depth"],
        "num_attention_heads": arguments["heads"],
        "hidden_act": ACTIVATIONS[arguments["activation"]],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": arguments["norm_eps"],
        "image_size": size_setting(arguments["image_size"]),
        "patch_size": size_setting(arguments["patch_size"]),
        "num_channels": trained.channels,
        "qkv_bias": arguments["qkv_bias"],
        "id2label": {str(i): name for i, name in enumerate(trained.classes)},
        "label2id": {name: i for i, name in enumerate(trained.classes)},
        "problem_type": "multi_label_classification" if trained.loss == "sigmoid" else "single_label_classification",
    }
    if kind in (VIT, DEIT):
        return config | {"intermediate_size": int(arguments["dim"] * arguments["mlp_ratio"])}
    config |= {
        "mlp_ratio": mlp_ratio(arguments),
        "layerscale_value": 1.0 if arguments["layer_scale"] is None else arguments["layer_scale"],
        "use_swiglu_ffn": arguments["activation"] == "swiglu",
    }
    return config | ({"num_register_tokens": arguments["num_registers"]} if kind is REGISTERS else {})


def size_setting(size: int | tuple[int, int]) -> int | list[int]:
    """A square's side, or height and width."""
    height, width = pair(size)
    return height if height == width else [height, width]


def preprocessor_config(trained: ExportModel) -> Node:
    """The content of preprocessor_config.json: squash to the size, or resize the short side and crop the center."""
    size = dict(zip(("height", "width"), trained.image_size, strict=True))
    config: Node = {
        "do_resize": True,
        "resample": RESAMPLE[trained.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(trained.mean),
        "image_std": list(trained.std),
    }
    if trained.crop_fraction is None:
        return {"image_processor_type": "ViTImageProcessor", "size": size, **config}
    shortest = int(min(trained.image_size) / trained.crop_fraction)
    crop = {"size": {"shortest_edge": shortest}, "do_center_crop": True, "crop_size": size}
    return {"image_processor_type": "BitImageProcessor", **crop, **config}


def write_transformers(trained: ExportModel, folder: Path, *, fold: bool) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors."""
    write_tensors(folder / "model.safetensors", transformers_state(trained))
    write_json(folder / "config.json", transformers_config(trained))
    write_json(folder / "preprocessor_config.json", preprocessor_config(trained))


def load_transformers(folder: Path, trained: ExportModel) -> Callable[[Tensor], Tensor]:
    from transformers import AutoModelForImageClassification
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    network: Any = AutoModelForImageClassification.from_pretrained(folder).eval()
    return lambda images: network(pixel_values=images).logits


def load_processor(folder: Path) -> Callable[[Any], Tensor]:
    from transformers import AutoImageProcessor

    processor: Any = AutoImageProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]
