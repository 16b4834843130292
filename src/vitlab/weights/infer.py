"""Infer a network's architecture from its weights: the arguments of our model.

Shapes give most of them. Heads, activation and the norms' epsilon come from `hints`, or are assumed and reported.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from vitlab.models.vit_validation import SIZES, pair
from vitlab.weights.configuration import config_hints
from vitlab.weights.files import UnreadableWeights
from vitlab.weights.locate import WeightFiles
from vitlab.weights.mapping import is_gated
from vitlab.weights.rules import Layout

HEAD_WIDTH = 64  # of nearly every published ViT
WIDTH_HEADS = {1152: 16, 1408: 16, 1664: 16}  # of the others: so400m, g and G ("Scaling Vision Transformers")


class Architecture(NamedTuple):
    """The arguments of our model for the weights."""

    arguments: dict[str, Any]
    assumed: dict[str, str]  # arguments that are not known -> the reason for their value
    origin: str  # of the arguments that shapes don't give


def infer_architecture(
    ours: Mapping[str, Tensor],
    layout: Layout,
    files: WeightFiles,
    requested: Mapping[str, Any],
    image_size: int | tuple[int, int] | None = None,
) -> Architecture:
    """The architecture of tensors under our names, on any device.

    `requested`: arguments that the user has set, used if neither shapes nor a configuration give them. `image_size`:
    the size in training, if the user has set it. Raises `UnreadableWeights` if our model can't have the tensors.
    """
    hints, origin = config_hints(files)
    hints = {**(layout.settings or {}), **hints}
    depth = len({name.split(".")[1] for name in ours if name.startswith("blocks.")})
    check_is_vit(ours, depth, files.source)
    patches = ours["patch_embed.proj.weight"]
    dim, patch, fc_norm = patches.shape[0], (patches.shape[2], patches.shape[3]), "fc_norm.weight" in ours
    arguments: dict[str, Any] = {
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "in_channels": patches.shape[1],
        "num_classes": ours["head.weight"].shape[0] if "head.weight" in ours else 0,
        "dim": dim,
        "depth": depth,
        "mlp_ratio": mlp_ratio(ours["blocks.0.mlp.fc1.weight"].shape[0], dim),
        "class_token": "cls_token" in ours,
        "num_registers": ours["reg_token"].shape[1] if "reg_token" in ours else 0,
        "distilled": "dist_token" in ours,
        "layer_scale": hints.get("layer_scale", 1e-5) if "blocks.0.ls1.gamma" in ours else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in ours,
        "pre_norm": "norm_pre.weight" in ours,
        "pre_logits_dim": ours["pre_logits.weight"].shape[0] if "pre_logits.weight" in ours else None,
        "fc_norm": fc_norm,
    }
    if is_gated(ours):
        arguments["activation"] = "swiglu"
    size = {} if image_size is None else {"image_size": image_size}
    arguments |= infer_positions(ours, arguments, layout, files.source, {**requested, **hints, **size})
    assumed: dict[str, str] = {}
    for key, (value, why) in default_arguments(arguments).items():
        if key in hints:
            arguments.setdefault(key, hints[key])
        elif key not in arguments:
            is_set = requested.get(key) is not None
            arguments[key], assumed[key] = (requested[key], "") if is_set else (value, why)
    if not arguments["heads"] or dim % arguments["heads"]:
        raise UnreadableWeights(f"{files.source}: the number of heads is unknown for dim={dim}; set model.heads")
    if arguments["pool"] == "avg" and not fc_norm:
        arguments["fc_norm"] = False
    elif fc_norm == (arguments["pool"] == "avg"):
        arguments["fc_norm"] = None
    return Architecture(arguments, assumed, origin)


def check_is_vit(ours: Mapping[str, Tensor], depth: int, source: str) -> None:
    """Raise `UnreadableWeights` for tensors that our model can't have."""
    for name in ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"):
        if name not in ours:
            raise UnreadableWeights(f"there is no {name} in the weights; they are not of a plain Vision Transformer")
    if (dimensions := ours["patch_embed.proj.weight"].ndim) != 4:
        raise UnreadableWeights(f"{source}: patch_embed.proj.weight has {dimensions} dimensions, not 4")
    for index in range(depth):
        if (name := f"blocks.{index}.mlp.fc1.weight") not in ours:
            raise UnreadableWeights(f"{source}: {name} is missing: blocks are numbered from 0 without a gap")
    if "fc_norm.weight" not in ours and "norm.weight" not in ours:
        raise UnreadableWeights(f"{source} has no norm after its last block, but our model always has one")
    if ("norm_pre.weight" in ours) == ("patch_embed.proj.bias" in ours):
        raise UnreadableWeights(f"{source} must have either a bias of the patches or a norm before the blocks")


def default_arguments(arguments: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Likely values of the arguments that shapes don't give, each with its reason."""
    dim = arguments["dim"]
    known = next((heads for (width, depth, heads) in SIZES if (width, depth) == (dim, arguments["depth"])), None)
    heads = known or WIDTH_HEADS.get(dim) or (dim // HEAD_WIDTH if dim % HEAD_WIDTH == 0 else 0)
    pool = "avg" if arguments["fc_norm"] or not arguments["class_token"] else "cls"
    return {
        "heads": (heads, f"{dim // heads} channels each" if heads else ""),
        "activation": ("gelu", ""),
        "norm_eps": (1e-5 if arguments["pre_norm"] else 1e-6, ""),
        "pool": (pool, "by its tokens and norms"),
    }


def infer_positions(
    ours: Mapping[str, Tensor], arguments: dict[str, Any], layout: Layout, source: str, hints: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of the positions, and the image size, from the table's length and the known image size."""
    size, patch = hints.get("image_size"), pair(arguments["patch_size"])
    if "pos_embed" not in ours:
        if "pos_embed" not in hints:
            raise UnreadableWeights(
                f"{source} has no table of positions, and no configuration says whether they are fixed, rotary "
                f"(which vitlab's model does not have) or none; if you know it, set model.pos_embed=sincos2d or none"
            )
        return {"pos_embed": hints["pos_embed"], "image_size": size or patch[0] * 14}
    length = ours["pos_embed"].shape[1]
    classes = int(arguments["class_token"]) + int(arguments["distilled"])
    covers = {"all": classes + arguments["num_registers"], "class": classes, "patches": 0}
    order = [layout.positions] if layout.positions else ["all", "class", "patches"]
    if hints.get("pos_embed_on_patches_only") is True:
        order = ["patches"]
    grids: list[tuple[str, tuple[int, int]]] = []
    for which in order:
        count = length - covers[which]
        if size is not None and math.prod(grid := patch_grid(size, patch)) == count:
            grids.insert(0, (which, grid))  # a known image size before a square grid
        elif count > 0 and math.isqrt(count) ** 2 == count:
            grids.append((which, (math.isqrt(count), math.isqrt(count))))
    if not grids:
        other = f" or that of images of {size}" if size is not None else ""
        remedy = "set weights.image_size=[HEIGHT,WIDTH] to the image size in training"
        raise UnreadableWeights(f"{source}: pos_embed has {length} positions, not a square grid{other}; {remedy}")
    which, (rows, columns) = grids[0]
    image = (rows * patch[0], columns * patch[1])
    inferred: dict[str, Any] = {"image_size": image[0] if image[0] == image[1] else image}
    if which == "patches" and covers["all"]:
        inferred["pos_embed_on_patches_only"] = True
    if which == "class" and arguments["num_registers"]:
        inferred["pos_embed_on_registers"] = False
    return inferred


def patch_grid(image_size: int | tuple[int, int], patch_size: int | tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of complete patches in an image."""
    (height, width), patch = pair(image_size), pair(patch_size)
    return height // patch[0], width // patch[1]


def mlp_ratio(hidden: int, dim: int) -> float:
    """A ratio for which `int(dim * ratio)` is `hidden`."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)
