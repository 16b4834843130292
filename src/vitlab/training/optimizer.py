"""Parameter groups of an optimizer. The optimizers are torch's and timm's, named in `conf/optimizer/`."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from vitlab.models.freezing import is_head_parameter

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]


def parameter_groups(
    network: nn.Module,
    *,
    hidden_apart: bool = False,
    qkv_apart: bool = False,
    layer_decay: float = 1.0,
    head_lr_factor: float = 1.0,
    decay_all: bool = False,
) -> list[dict[str, Any]]:
    """Groups `decay` (matrices and convolution kernels) and `no_decay`, without the frozen parameters.

    `no_decay`, with weight decay 0, has vectors (biases, norms, LayerScale) and the parameters of the network's
    `no_weight_decay()` (timm's protocol: tokens and position embeddings), as in big_vision, DeiT and MAE. With
    `decay_all` all is in `decay`.

    `hidden_apart`: for Muon, which updates the matrices of the blocks; the other parameters get `use_fallback` (timm's
    name for AdamW), their matrices in a third group `decay_ends`. With `qkv_apart` the blocks' `qkv` matrices are in a
    group `decay_qkv`.

    With `layer_decay` below 1 each layer has its own groups (`layer3_decay`), and so has the head (`head_decay`), also
    with a `head_lr_factor` other than 1. `build_optimizer` multiplies their rate by their `lr_factor`.
    """
    exempt: set[str] = getattr(network, "no_weight_decay", set)()
    layers = layer_indices(network) if layer_decay != 1 else {}
    head_apart = layer_decay != 1 or head_lr_factor != 1
    last = max(layers.values(), default=0)
    groups: dict[tuple[int, str], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.ndim >= 2 and name not in exempt
        kind = "decay" if matrix or decay_all else "no_decay"
        if hidden_apart and kind == "decay":
            inner = "decay_qkv" if qkv_apart and name.endswith(".qkv.weight") else "decay"
            kind = inner if matrix and name.startswith("blocks.") else "decay_ends"
        head, layer = head_apart and is_head_parameter(network, name), layers.get(name, last)
        part = "head" if head else f"layer{layer}" if layers else ""
        place = (layer + head, f"{part}_{kind}" if part else kind)
        group = groups.setdefault(place, {"params": [], "part": part})
        group["params"].append(parameter)
        if kind == "no_decay":
            group["weight_decay"] = 0.0
        if hidden_apart:
            group |= {"use_fallback": kind not in ("decay", "decay_qkv"), "qkv": kind == "decay_qkv"}
        if head_apart:
            group["lr_factor"] = layer_decay ** (last - layer) * (head_lr_factor if head else 1.0)
    return [{"name": name, **groups[layer, name]} for layer, name in sorted(groups)]


def layer_indices(network: nn.Module) -> dict[str, int]:
    """Each parameter's layer by timm's `group_matcher`: 0 for the embeddings, 1 .. depth for the blocks and the last
    norm, depth + 1 for the head and its `fc_norm`. Raises `ValueError` for a network without it.
    """
    from timm.models import group_parameters

    matcher = getattr(network, "group_matcher", None)
    if matcher is None:
        name = type(network).__name__
        raise ValueError(f"classifier.layer_decay: {name} lacks group_matcher (timm's names of layers); set it to 1.0")
    return dict(group_parameters(network, matcher(coarse=False), reverse=True))


def build_optimizer(make: OptimizerFactory, network: nn.Module, *, scale: float = 1.0, **grouping: Any) -> Optimizer:
    """An optimizer whose groups hold their own peak rates, which a schedule multiplies: `scale` times its `lr`."""
    name = getattr(getattr(make, "func", make), "__name__", "")
    apart = {"hidden_apart": name in ("Muon", "MuonQKV"), "qkv_apart": name == "MuonQKV"}
    optimizer = make(parameter_groups(network, **apart, **grouping))
    for group in optimizer.param_groups:
        group["lr"] *= scale * group.get("lr_factor", 1.0)
    return optimizer


def group_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The settings of each parameter group, except its rate, and what the optimizer `counts` in its groups."""
    others = ("params", "lr", *getattr(optimizer, "counts", ()))
    return [{key: value for key, value in group.items() if key not in others} for group in optimizer.param_groups]


def logged_rates(optimizer: Optimizer) -> dict[str, float]:
    """The rate of each group, or with layer decay that of the first and the last trained layer."""
    groups = optimizer.param_groups
    if not any(group["part"].startswith("layer") for group in groups):
        return {group["name"]: group["lr"] for group in groups}
    return {group["part"]: group["lr"] for group in (groups[0], groups[-1])}


def group_table(network: nn.Module, optimizer: Optimizer) -> list[str]:
    """Aligned lines: each group's name, size, peak rate, weight decay and parameters; the frozen ones last."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups = [
        (group["name"], f"{group['lr']:.3g}", f"{group.get('weight_decay', 0):g}", group["params"])
        for group in optimizer.param_groups
    ]
    if frozen := [p for p in network.parameters() if not p.requires_grad]:
        groups.append(("frozen", "-", "-", frozen))
    rows = [("group", "numbers", "lr", "decay", "parameters")]
    for group, lr, decay, parameters in groups:
        ends = [names[parameters[0]], names[parameters[-1]]] if len(parameters) > 1 else [names[parameters[0]]]
        rows.append((group, f"{sum(p.numel() for p in parameters):,}", lr, decay, " .. ".join(ends)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [f"{a:{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}  {e}" for a, b, c, d, e in rows]
