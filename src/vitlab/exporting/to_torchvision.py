"""A file that torchvision's VisionTransformer takes by `load_state_dict`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitlab.exporting import equivalent, writing
from vitlab.exporting.trained import Trained
from vitlab.models.vit_validation import pair
from vitlab.resolvers import SIZES
from vitlab.schema import Node, shown
from vitlab.weights.layouts import LAYOUTS
from vitlab.weights.mapping import from_ours

NORM_EPS = 1e-6


def refusals(arguments: Node) -> list[str]:
    """What of our Vision Transformer torchvision's has no place for."""
    rules = (
        ("in_channels", arguments["in_channels"] == 3, "has images of 3 channels"),
        ("class_token", arguments["class_token"], "always has one"),
        ("pool", arguments["pool"] == "cls", "reads the [cls] token"),
        ("registers", not arguments["registers"], "has none"),
        ("distilled", not arguments["distilled"], "has one head"),
        ("layer_scale", arguments["layer_scale"] is None, "has no LayerScale"),
        ("activation", arguments["activation"] == "gelu", "has GELU in its MLPs"),
        ("pre_norm", not arguments["pre_norm"], "has no norm before its blocks"),
        ("qkv_bias", arguments["qkv_bias"], "always has these biases"),
        ("image_size", square(arguments["image_size"]), "has square images"),
        ("patch_size", square(arguments["patch_size"]), "has square patches"),
    )
    return [
        f"model.{name}={shown(arguments[name])}: torchvision's VisionTransformer {reason}"
        for name, holds, reason in rules
        if not holds
    ]


def square(size: int | tuple[int, int]) -> bool:
    height, width = pair(size)
    return height == width


def call(arguments: Node) -> tuple[str, Node]:
    """The function of torchvision.models that makes the network, and its arguments."""
    size = SIZES.get((arguments["dim"], arguments["depth"], arguments["heads"]))
    hidden, patch = int(arguments["dim"] * arguments["mlp_ratio"]), pair(arguments["patch_size"])[0]
    chosen: Node = {"image_size": pair(arguments["image_size"])[0], "num_classes": arguments["num_classes"]}
    if arguments["representation"] is not None:
        chosen["representation_size"] = arguments["representation"]
    if (size, patch) in PUBLISHED and hidden == 4 * arguments["dim"]:
        name = f"vit_{size}_{patch}"
    else:
        name = "VisionTransformer"
        shape = {"patch_size": patch, "num_layers": arguments["depth"], "num_heads": arguments["heads"]}
        chosen = {**shape, "hidden_dim": arguments["dim"], "mlp_dim": hidden, **chosen}
    return name, chosen


PUBLISHED = {("b", 16), ("b", 32), ("l", 16), ("l", 32), ("h", 14)}


def write(trained: Trained, folder: Path, *, fold: bool) -> None:
    """model.pth, a state_dict."""
    ours = equivalent.tensors(trained, covered=1)
    state = from_ours(ours, LAYOUTS["torchvision"], heads=trained.arguments["heads"])
    writing.torch_file(folder / "model.pth", state)


def load(folder: Path, trained: Trained) -> Callable[[Tensor], Tensor]:
    """The network as torchvision makes it, with the weights."""
    from torchvision import models

    name, arguments = call(trained.arguments)
    network: Any = getattr(models, name)(**arguments, **norms(trained.arguments))
    network.load_state_dict(torch.load(folder / "model.pth", weights_only=True))
    loaded: Callable[[Tensor], Tensor] = network.eval()
    return loaded


def norms(arguments: Node) -> Node:
    """The argument that says what the norms are, where they aren't torchvision's own."""
    from functools import partial

    other = arguments["norm_eps"] != NORM_EPS
    return {"norm_layer": partial(torch.nn.LayerNorm, eps=arguments["norm_eps"])} if other else {}


def usage(trained: Trained) -> str:
    """How to load it."""
    name, arguments = call(trained.arguments)
    written = [f"{key}={value}" for key, value in arguments.items()]
    lines = ["import torch", "import torchvision", ""]
    if norms(trained.arguments):
        lines.insert(0, "from functools import partial\n")
        written.append(f"norm_layer=partial(torch.nn.LayerNorm, eps={trained.arguments['norm_eps']})")
    lines += [
        f"model = torchvision.models.{name}({', '.join(written)})",
        'model.load_state_dict(torch.load("FOLDER/model.pth", weights_only=True))',
        "model.eval()",
    ]
    return "\n".join(lines)
