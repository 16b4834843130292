"""From a network's parameters to optimizer groups.

The optimizers themselves are torch's and timm's; `conf/optimizer/` names them.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from vitlab.models.freezing import is_head_parameter, trainable_parameters

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]


def parameter_groups(
    network: nn.Module, *, hidden_apart: bool = False, layer_decay: float = 1.0, head_lr_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Groups named `decay` (matrices and convolution kernels) and `no_decay` (all else, weight decay 0).

    Vectors (biases, norms, LayerScale) and what the network's own `no_weight_decay()` names (timm's protocol: tokens
    and position embeddings) have no decay. Frozen parameters are left out. The `decay` group has the optimizer's
    `weight_decay`.

    `hidden_apart`: for Muon, which updates the matrices between the first and the last layer; parameters outside the
    blocks get `use_fallback` (timm's name for AdamW), their matrices as a third group `decay_ends`.

    With `layer_decay` below 1 each layer has its own groups (`layer3_decay`), with that or a `head_lr_factor` other
    than 1 the head too (`head_decay`). `build_optimizer` multiplies their rate by their `lr_factor`.
    """
    rule: Any = getattr(network, "no_weight_decay", set)
    exempt: set[str] = rule()
    layers = layer_indices(network) if layer_decay != 1 else {}
    head_apart = layer_decay != 1 or head_lr_factor != 1
    last = max(layers.values(), default=0)
    groups: dict[tuple[int, str], dict[str, Any]] = {}
    for name, parameter in trainable_parameters(network):
        kind = "no_decay" if parameter.ndim < 2 or name in exempt else "decay"
        if hidden_apart and kind == "decay" and not name.startswith("blocks."):
            kind = "decay_ends"
        head, layer = head_apart and is_head_parameter(network, name), layers.get(name, last)
        part = "head" if head else f"layer{layer}" if layers else ""
        place = (layer + head, f"{part}_{kind}" if part else kind)
        group = groups.setdefault(place, {"params": [], "part": part})
        group["params"].append(parameter)
        if kind == "no_decay":
            group["weight_decay"] = 0.0
        if hidden_apart:
            group["use_fallback"] = kind != "decay"
        if head_apart:
            group["lr_factor"] = layer_decay ** (last - layer) * (head_lr_factor if head else 1.0)
    return [{"name": name, **groups[layer, name]} for layer, name in sorted(groups)]


def layer_indices(network: nn.Module) -> dict[str, int]:
    """Each parameter's layer: 0 for the embeddings, 1 .. depth for the blocks, depth + 1 for the head.

    From timm's protocol `group_matcher`: a ViT's last norm counts to its last block, `fc_norm` to the head. Raises
    `ValueError` for a network without it.
    """
    from timm.models import group_parameters

    matcher = getattr(network, "group_matcher", None)
    if matcher is None:
        raise ValueError(
            f"classifier.layer_decay: {type(network).__name__} doesn't name its layers (by a method group_matcher, as "
            "timm's models do); set it to 1.0"
        )
    return dict(group_parameters(network, matcher(coarse=False), reverse=True))


def build_optimizer(
    make: OptimizerFactory, network: nn.Module, *, layer_decay: float = 1.0, head_lr_factor: float = 1.0
) -> Optimizer:
    """An optimizer whose groups hold their own peak rates, which a schedule then multiplies."""
    kind = getattr(make, "func", make)
    groups = parameter_groups(
        network,
        hidden_apart=getattr(kind, "__name__", "") == "Muon",
        layer_decay=layer_decay,
        head_lr_factor=head_lr_factor,
    )
    optimizer = make(groups)
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_factor", 1.0)
    return optimizer


def logged_rates(optimizer: Optimizer) -> dict[str, float]:
    """Rates of each group, or with layer decay of the first and the last trained layer: the others are in between,
    in constant proportions.
    """
    groups = optimizer.param_groups
    first, last = groups[0]["part"], groups[-1]["part"]
    if not any(group["part"].startswith("layer") for group in groups):
        return {group["name"]: group["lr"] for group in groups}
    return {group["part"]: group["lr"] for group in groups if group["part"] in (first, last)}


def group_table(network: nn.Module, optimizer: Optimizer) -> list[str]:
    """Aligned lines: each group's name, size, peak rate, weight decay and parameters; the frozen ones last."""
    named = {id(parameter): (name, parameter.numel()) for name, parameter in network.named_parameters()}
    sizes = dict(named.values())

    def row(group: str, lr: str, decay: str, parameters: Iterable[nn.Parameter]) -> tuple[str, ...]:
        members = [named[id(parameter)] for parameter in parameters]
        names = abbreviate_names([name for name, _ in members], sizes)
        return group, f"{sum(size for _, size in members):,}", lr, decay, names

    rows: list[tuple[str, ...]] = [("group", "numbers", "lr", "decay", "parameters")]
    for group in optimizer.param_groups:
        rows.append(row(group["name"], f"{group['lr']:.3g}", f"{group.get('weight_decay', 0):g}", group["params"]))
    if frozen := [p for p in network.parameters() if not p.requires_grad]:
        rows.append(row("frozen", "-", "-", frozen))
    first, *others = (max(len(row[column]) for row in rows) for column in range(4))
    return [
        "  ".join([row[0].ljust(first), *(c.rjust(w) for c, w in zip(row[1:4], others, strict=True)), row[4]])
        for row in rows
    ]


def abbreviate_names(names: list[str], among: Iterable[str], width: int = 60) -> str:
    """Names of parameters, shortened: a complete module by its name, names that differ in a number once, as in
    `blocks.{0..11}.norm1`.
    """
    total, listed = (Counter(prefix for name in some for prefix in name_prefixes(name)) for some in (among, names))
    numbers: dict[str, list[str]] = {}
    for name in dict.fromkeys(next(p for p in name_prefixes(name) if listed[p] == total[p]) for name in names):
        number = re.search(r"(?<=\.)\d+", name)
        pattern = f"{name[: number.start()]}*{name[number.end() :]}" if number else name
        numbers.setdefault(pattern, []).extend([number.group()] if number else [])
    shown = []
    for pattern, span in numbers.items():
        several = "".join(span)
        if len(span) > 1:
            unbroken = len(span) == int(span[-1]) - int(span[0]) + 1
            several = f"{{{span[0]}..{span[-1]}}}" if unbroken else f"{{{','.join(span)}}}"
        shown.append(pattern.replace("*", several))
    text = shown[0]
    for index, name in enumerate(shown[1:], start=1):
        if len(text) + len(name) > width:
            return f"{text} and {len(shown) - index} more"
        text += f", {name}"
    return text


def name_prefixes(name: str) -> list[str]:
    """`blocks`, `blocks.0`, ... and the name itself."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
