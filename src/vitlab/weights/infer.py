"""What network weights are of: the arguments of our model, from the tensors' shapes and from what lies beside them.

Shapes tell most. What they can't (heads, activation, the norms' epsilon) is taken from a configuration beside the
weights: that of a run of ours, transformers' config.json, or timm's model of the name. What is left is assumed, and
told.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitlab.models.sizes import SIZES
from vitlab.models.vit_validation import pair
from vitlab.weights.files import UnreadableWeights
from vitlab.weights.layouts import Layout
from vitlab.weights.locate import WeightFiles
from vitlab.weights.mapping import is_gated

HEAD_WIDTH = 64  # of nearly every published ViT
ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
}


class Architecture(NamedTuple):
    """The arguments of our model that weights are of, and how they were found."""

    arguments: dict[str, Any]
    assumed: dict[str, str]  # arguments that nothing told: why they are what they are
    origin: str  # what told them


def infer_architecture(
    ours: Mapping[str, Tensor],
    layout: Layout,
    opened: WeightFiles,
    asked: Mapping[str, Any],
    trained_on: int | tuple[int, int] | None = None,
) -> Architecture:
    """The network that tensors (of ours, on any device) are of.

    `asked` is what the user says of the model: it is believed where neither shapes nor a configuration tell.
    `trained_on`: the size of the images, if the user says it.

    Raises:
        CannotRead: the tensors are of no network that ours can be, by name of what it can't.
    """
    said, origin = config_hints(opened)
    said = {**(layout.settings or {}), **said}
    check_is_vit(ours)
    patches = ours["patch_embed.proj.weight"]
    if patches.ndim != 4:
        raise UnreadableWeights(
            f"{opened.source}: patch_embed.proj.weight has {patches.ndim} dimensions, and a ViT's has 4"
        )
    dim, patch = patches.shape[0], (patches.shape[2], patches.shape[3])
    depth = len({name.split(".")[1] for name in ours if name.startswith("blocks.")})
    if missing := [name for i in range(depth) for name in (f"blocks.{i}.mlp.fc1.weight",) if name not in ours]:
        raise UnreadableWeights(
            f"{opened.source}: {', '.join(missing)} is missing: blocks are numbered from 0 without a gap"
        )
    hidden = ours["blocks.0.mlp.fc1.weight"].shape[0] if depth else 0
    registers = ours["reg_token"].shape[1] if "reg_token" in ours else 0
    fc_norm = "fc_norm.weight" in ours
    if not fc_norm and "norm.weight" not in ours:
        raise UnreadableWeights(f"{opened.source} has no norm after its last block, and our model always has one")
    if ("norm_pre.weight" in ours) == ("patch_embed.proj.bias" in ours):
        raise UnreadableWeights(
            f"{opened.source}: a bias of the patches and a norm before the blocks go with each other's absence"
        )
    class_token = "cls_token" in ours
    arguments: dict[str, Any] = {
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "in_channels": patches.shape[1],
        "num_classes": ours["head.weight"].shape[0] if "head.weight" in ours else 0,
        "dim": dim,
        "depth": depth,
        "mlp_ratio": mlp_ratio(hidden, dim),
        "class_token": class_token,
        "num_registers": registers,
        "distilled": "dist_token" in ours,
        "layer_scale": said.get("layer_scale", 1e-5) if "blocks.0.ls1.gamma" in ours else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in ours,
        "pre_norm": "norm_pre.weight" in ours,
        "pre_logits_dim": ours["pre_logits.weight"].shape[0] if "pre_logits.weight" in ours else None,
        "fc_norm": fc_norm,
    }
    if is_gated(ours):
        arguments["activation"] = "swiglu"
    size = {} if trained_on is None else {"image_size": trained_on}
    arguments |= infer_positions(ours, arguments, layout, opened.source, {**asked, **said, **size}, patch)
    assumed: dict[str, str] = {}
    for key, (value, why) in default_heads(arguments).items():
        if key in said:
            arguments.setdefault(key, said[key])
        elif key not in arguments:
            arguments[key] = value if asked.get(key) is None else asked[key]
            assumed[key] = why if asked.get(key) is None else ""
    if not arguments["heads"] or dim % arguments["heads"]:
        raise UnreadableWeights(
            f"{opened.source}: nothing tells the number of heads at a width of {dim}; set model.heads"
        )
    if arguments["pool"] == "avg" and not fc_norm:
        arguments["fc_norm"] = False
    elif fc_norm == (arguments["pool"] == "avg"):
        arguments["fc_norm"] = None
    return Architecture(arguments, assumed, origin)


def default_heads(arguments: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """What is most likely where nothing tells, with the reason."""
    dim = arguments["dim"]
    known = next((heads for (width, depth, heads) in SIZES if (width, depth) == (dim, arguments["depth"])), None)
    heads = known or (dim // HEAD_WIDTH if dim % HEAD_WIDTH == 0 else 0)
    pool = "avg" if arguments["fc_norm"] or not arguments["class_token"] else "cls"
    return {
        "heads": (heads, f"{dim // heads} channels each" if heads else ""),
        "activation": ("gelu", ""),
        "norm_eps": (1e-5 if arguments["pre_norm"] else 1e-6, ""),
        "pool": (pool, "by its tokens and norms"),
    }


def infer_positions(
    ours: Mapping[str, Tensor],
    arguments: dict[str, Any],
    layout: Layout,
    source: str,
    said: Mapping[str, Any],
    patch: tuple[int, int],
) -> dict[str, Any]:
    """The image size, and which tokens have positions, from the table's length and what is said of the image."""
    size = said.get("image_size")
    if "pos_embed" not in ours:
        fixed = said.get("pos_embed", "none")
        return {"pos_embed": fixed, "image_size": size or patch[0] * 14}
    length = ours["pos_embed"].shape[1]
    classes = int(arguments["class_token"]) + int(arguments["distilled"])
    covers = {"all": classes + arguments["num_registers"], "class": classes, "patches": 0}
    order = [layout.positions] if layout.positions else ["all", "class", "patches"]
    if said.get("pos_embed_on_patches_only") is True:
        order = ["patches"]
    grids: list[tuple[str, tuple[int, int]]] = []
    for which in order:
        count = length - covers[which]
        if size is not None and math.prod(told := patch_grid(size, patch)) == count:
            grids.insert(0, (which, told))  # what is said of the images goes before what is only likely
        elif count > 0 and math.isqrt(count) ** 2 == count:
            grids.append((which, (math.isqrt(count), math.isqrt(count))))
    for which, grid in grids:
        image = (grid[0] * patch[0], grid[1] * patch[1])
        found: dict[str, Any] = {"image_size": image[0] if image[0] == image[1] else image}
        if which == "patches" and covers["all"]:
            found["pos_embed_on_patches_only"] = True
        if which == "class" and arguments["num_registers"]:
            found["pos_embed_on_registers"] = False
        return found
    other = f", and images of {size} don't give so many" if size is not None else ""
    raise UnreadableWeights(
        f"{source}: pos_embed has {length} positions, which no square grid gives{other}; say with "
        f"weights.image_size=[HEIGHT,WIDTH] what images they were trained on"
    )


def patch_grid(size: int | tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the whole patches in an image."""
    height, width = pair(size)
    return height // patch[0], width // patch[1]


def mlp_ratio(hidden: int, dim: int) -> float:
    """A number that times `dim`, cut to an integer, is `hidden`."""
    found = hidden / dim
    return found if int(dim * found) == hidden else math.nextafter(found, math.inf)


def check_is_vit(ours: Mapping[str, Tensor]) -> None:
    """Raises where there is no body: what a network without blocks or patches would be is nothing of ours."""
    for name in ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"):
        if name not in ours:
            raise UnreadableWeights(f"there is no {name} among the weights; they are of no plain Vision Transformer")


# --------------------------------------------------------------------------------------------- what is said beside them


def config_hints(opened: WeightFiles) -> tuple[dict[str, Any], str]:
    """Arguments of our model that a configuration beside the weights tells, and what that is."""
    if opened.ours:
        model = dict((opened.ours.get("config") or {}).get("model") or {})
        return {key: value for key, value in model.items() if not key.startswith("_")}, "its run's configuration"
    if name := opened.timm_name or opened.config.get("architecture"):
        return timm_hints(str(name), opened.config.get("model_args") or {}), f"timm's model {name}"
    if "model_type" in opened.config:
        return transformers_hints(opened.config), "config.json"
    return {}, "the tensors' shapes"


def transformers_hints(config: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers' config.json says, in our words."""
    config = {**config, **(config.get("vision_config") or {})}
    names = {"num_attention_heads": "heads", "layer_norm_eps": "norm_eps", "layerscale_value": "layer_scale"}
    said = {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
    # what transformers leaves out is its default
    if config.get("model_type") in ("vit", "deit", "vit_mae", "vit_msn", "dinov2", "dinov2_with_registers"):
        small = 1e-6 if "dinov2" in config["model_type"] or config["model_type"] == "vit_msn" else 1e-12
        said = {"heads": 12, "norm_eps": small, **said}
    if config.get("model_type") in ("clip", "clip_vision_model"):
        said = {"heads": 12, **said}
    if (size := config.get("image_size")) is not None:
        said["image_size"] = tuple(size) if isinstance(size, list | tuple) else size
    act = config.get("hidden_act")
    if act is not None:
        if act not in ACTIVATIONS:
            raise UnreadableWeights(
                f"config.json: hidden_act={act} is none of {', '.join(ACTIVATIONS)}, which our MLPs have"
            )
        said["activation"] = ACTIVATIONS[act]
    return said


def timm_hints(name: str, changed: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's model of a name is, in our words; made without memory, to be looked at."""
    import timm
    from timm.layers.attention import Attention
    from timm.layers.mlp import GluMlp, Mlp
    from timm.layers.norm import LayerNorm
    from timm.models.vision_transformer import Block, VisionTransformer

    if not timm.is_model(name):
        raise UnreadableWeights(f"config.json: timm has no architecture {name}")
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, **changed)
    if not isinstance(model, VisionTransformer):
        raise UnreadableWeights(f"timm's {name} is a {type(model).__name__}, and no plain Vision Transformer")
    block: Any = model.blocks[0]
    norms = [m for m in model.modules() if "Norm" in type(m).__name__]
    parts = {
        "blocks": (type(block), (Block,)),
        "attention": (type(getattr(block, "attn", None)), (Attention,)),
        "MLPs": (type(getattr(block, "mlp", None)), (Mlp, GluMlp)),
        "pooling": (model.global_pool, ("token", "avg", "")),
        "norms": (type(norms[0]), (LayerNorm, torch.nn.LayerNorm)),
    }
    for part, (kind, known) in parts.items():
        if kind not in known:
            kind_name = getattr(kind, "__name__", repr(kind))
            raise UnreadableWeights(f"timm's {name} has {part} of the kind {kind_name}, which our model has not")
    if not isinstance(getattr(block.attn, "q_norm", torch.nn.Identity()), torch.nn.Identity):
        raise UnreadableWeights(f"timm's {name} norms queries and keys (qk_norm), which our model does not")
    said = {
        "heads": block.attn.num_heads,
        "norm_eps": norms[0].eps,
        "pool": {"token": "cls", "avg": "avg", "": "none"}[model.global_pool],
        "image_size": tuple(model.patch_embed.img_size),
        "pos_embed_on_patches_only": bool(model.no_embed_class and model.num_prefix_tokens),
    }
    if isinstance(block.mlp, Mlp):
        kinds = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh", "GELU_": "gelu"}
        act = type(block.mlp.act).__name__
        if act not in kinds:
            raise UnreadableWeights(f"timm's {name} has the activation {act}, which our model has not")
        said["activation"] = kinds[act]
    return said
