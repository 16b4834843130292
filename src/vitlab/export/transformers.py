"""A folder that transformers' `AutoModelForImageClassification.from_pretrained` loads, and the hub by its name.

Of transformers' classes the plainest is taken that has a place for everything: ViT; DeiT for a second token with a
head of its own; DINOv2, with or without registers, for LayerScale, gated MLPs and the mean of the patches.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitlab.config.schema import Node
from vitlab.export import reparametrize
from vitlab.export.checkpoint import ExportModel
from vitlab.export.folder import write_json, write_tensors
from vitlab.models.vit_validation import pair
from vitlab.weights.layouts import LAYOUTS
from vitlab.weights.mapping import from_ours

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "swiglu": "silu"}
RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's numbers
LARGEST_RATIO = 16  # of an MLP's hidden width to a token's, that is tried out


class Family(NamedTuple):
    """One of transformers' Vision Transformers."""

    model_type: str
    architecture: str
    layout: str
    inner: str  # what its classifier keeps the body under


VIT = Family("vit", "ViTForImageClassification", "hf_vit", "vit.")
DEIT = Family("deit", "DeiTForImageClassificationWithTeacher", "hf_deit_with_teacher", "deit.")
DINOV2 = Family("dinov2", "Dinov2ForImageClassification", "hf_dinov2", "dinov2.")
REGISTERS = Family(
    "dinov2_with_registers", "Dinov2WithRegistersForImageClassification", "hf_dinov2", "dinov2_with_registers."
)


def family(arguments: Node) -> Family:
    """The plainest class that has a place for everything."""
    if arguments["distilled"]:
        return DEIT
    if arguments["num_registers"]:
        return REGISTERS
    scaled, gated = arguments["layer_scale"] is not None, arguments["activation"] == "swiglu"
    return DINOV2 if scaled or gated or arguments["pool"] == "avg" else VIT


def unsupported(arguments: Node) -> list[str]:
    """What of our Vision Transformer transformers' have no place for."""
    found, kind = [], family(arguments)
    if not arguments["class_token"]:
        found.append("model.class_token=false: transformers' ViT, DeiT and DINOv2 always have one")
    if arguments["pre_norm"]:
        found.append("model.pre_norm=true: of transformers' classifiers CLIP's alone has it, and no norm at its end")
    if arguments["pre_logits_dim"] is not None:
        found.append(
            f"model.pre_logits_dim={arguments['pre_logits_dim']}: transformers' classifiers have no layer before "
            "their head"
        )
    if arguments["pool"] == "avg" and arguments["fc_norm"] is not False:
        found.append("model.pool=avg: transformers' DINOv2 norms before it pools, as model.fc_norm=false does")
    if kind is DEIT and arguments["num_registers"]:
        found.append(f"model.num_registers={arguments['num_registers']}: transformers' DeiT has none")
    if kind is DEIT and arguments["layer_scale"] is not None:
        found.append(f"model.layer_scale={arguments['layer_scale']}: transformers' DeiT has no LayerScale")
    if kind is DEIT and arguments["activation"] == "swiglu":
        found.append("model.activation=swiglu: transformers' DeiT has other MLPs")
    if kind in (DINOV2, REGISTERS):
        for name in ("image_size", "patch_size"):
            height, width = pair(arguments[name])
            if height != width:
                found.append(f"{name}=[{height},{width}]: transformers' DINOv2 takes its grid of patches for a square")
        if mlp_ratio(arguments) is None:
            found.append(
                f"model.mlp_ratio={arguments['mlp_ratio']}: the MLPs of transformers' DINOv2 have a whole ratio"
                f"{', and gated ones two thirds of it' if arguments['activation'] == 'swiglu' else ''}"
            )
    return found


def mlp_ratio(arguments: Node) -> int | None:
    """DINOv2's own setting for the hidden width of our MLPs; None where it has none."""
    dim, hidden = arguments["dim"], int(arguments["dim"] * arguments["mlp_ratio"])
    for ratio in range(1, LARGEST_RATIO + 1):
        gated = 2 * ((int(dim * ratio * 2 / 3) + 7) // 8 * 8)  # two thirds, up to a multiple of 8; gate and value
        if hidden == (gated if arguments["activation"] == "swiglu" else dim * ratio):
            return ratio
    return None


def transformers_state(trained: ExportModel) -> dict[str, Tensor]:
    """The tensors under the names of the class."""
    arguments, kind = trained.arguments, family(trained.arguments)
    ours = reparametrize.network_tensors(trained, covered=2 if kind is DEIT else 1)
    if kind in (DINOV2, REGISTERS) and arguments["layer_scale"] is None:
        ours |= reparametrize.unit_scales(arguments)
    theirs = from_ours(ours, LAYOUTS[kind.layout], heads=arguments["heads"], inner=kind.inner)
    if kind in (DINOV2, REGISTERS):  # its head reads [cls] and the mean of the patches, one after the other
        read, unread = theirs["classifier.weight"], torch.zeros_like(theirs["classifier.weight"])
        parts = [read, unread] if arguments["pool"] == "cls" else [unread, read]
        theirs["classifier.weight"] = torch.cat(parts, dim=1)
    return theirs


def transformers_config(trained: ExportModel) -> Node:
    """config.json, as transformers writes it."""
    arguments, kind = trained.arguments, family(trained.arguments)
    found: dict[str, Any] = {
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
    if kind in (DINOV2, REGISTERS):
        found |= {
            "mlp_ratio": mlp_ratio(arguments),
            "layerscale_value": 1.0 if arguments["layer_scale"] is None else arguments["layer_scale"],
            "use_swiglu_ffn": arguments["activation"] == "swiglu",
        }
        found |= {"num_register_tokens": arguments["num_registers"]} if kind is REGISTERS else {}
    else:
        found["intermediate_size"] = int(arguments["dim"] * arguments["mlp_ratio"])
    return found


def size_setting(size: int | tuple[int, int]) -> int | list[int]:
    """A square's side, or height and width."""
    height, width = pair(size)
    return height if height == width else [height, width]


def preprocessor_config(trained: ExportModel) -> Node:
    """preprocessor_config.json: resized as a whole, or resized by its short side and cropped."""
    height, width = trained.image_size
    found: dict[str, Any] = {
        "do_resize": True,
        "resample": RESAMPLE[trained.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(trained.mean),
        "image_std": list(trained.std),
    }
    if trained.crop_fraction is None:
        size = {"height": height, "width": width}
        return {"image_processor_type": "ViTImageProcessor", "size": size, **found}
    return {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": int(min(height, width) / trained.crop_fraction)},
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        **found,
    }


def write_transformers(trained: ExportModel, folder: Path, *, fold: bool) -> None:
    """config.json, preprocessor_config.json and model.safetensors."""
    write_tensors(folder / "model.safetensors", transformers_state(trained))
    write_json(folder / "config.json", transformers_config(trained))
    write_json(folder / "preprocessor_config.json", preprocessor_config(trained))


def load_transformers(folder: Path, trained: ExportModel) -> Callable[[Tensor], Tensor]:
    """The network as transformers loads it."""
    from transformers import AutoModelForImageClassification
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    network: Any = AutoModelForImageClassification.from_pretrained(folder).eval()
    return lambda images: network(pixel_values=images).logits


def usage(trained: ExportModel, fold: bool) -> str:
    """How to load it."""
    return """from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("FOLDER")
model = AutoModelForImageClassification.from_pretrained("FOLDER").eval()
# logits = model(**processor(image, return_tensors="pt")).logits; model.config.id2label names them"""
