"""Freeze parts of a network."""

from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from vitlab.config.schema import suggest

ALL_BUT_HEAD = "all-but-head"


def head_names(network: nn.Module) -> tuple[str, ...]:
    """Names of the modules that compute the logits: `head` and `head_dist`, or those in timm's configuration (`fc`)."""
    cfg: dict[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    names = cfg.get("classifier") or ("head", "head_dist")
    return (names,) if isinstance(names, str) else tuple(names)


def is_head_parameter(network: nn.Module, name: str) -> bool:
    """Whether a parameter belongs to the head."""
    return name.startswith(tuple(f"{head}." for head in head_names(network)))


def frozen_names(network: nn.Module, patterns: str | tuple[str, ...]) -> list[str]:
    """Names of the parameters that patterns (see `Classifier`) freeze.

    Raises `ValueError` if a pattern has no effect, or if no parameter remains to be trained.
    """
    names = [name for name, _ in network.named_parameters()]
    if patterns == ALL_BUT_HEAD:
        frozen = [name for name in names if not is_head_parameter(network, name)]
    else:
        chosen: set[str] = set()
        for entry in [patterns] if isinstance(patterns, str) else patterns:
            pattern = entry.removeprefix("!")
            matched = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
            if not matched:
                modules = (name for name, _ in network.named_modules() if name)
                near = suggest(pattern, [ALL_BUT_HEAD, *modules, *names])
                raise ValueError(f"classifier.freeze={entry}: no parameter or module has such a name{near}")
            if entry.startswith("!") and not matched & chosen:
                raise ValueError(f"classifier.freeze={entry}: no pattern before it freezes that; leave it out")
            chosen = chosen - matched if entry.startswith("!") else chosen | matched
        frozen = [name for name in names if name in chosen]
    if len(frozen) == len(names) > 0:
        value = patterns if isinstance(patterns, str) else list(patterns)
        remedy = "to measure frozen features, use src/evaluate.py with probe=linear"
        raise ValueError(f"classifier.freeze={value} leaves nothing to train; {remedy}")
    return frozen


def freeze(network: nn.Module, patterns: str | tuple[str, ...]) -> None:
    """Freeze the parameters of patterns: no gradients, no optimizer. Raises like `frozen_names`."""
    for name in frozen_names(network, patterns):
        network.get_parameter(name).requires_grad_(False)


def set_frozen_to_eval(network: nn.Module) -> None:
    """Set frozen modules to evaluation mode: no dropout, no stochastic depth, constant BatchNorm statistics.

    A module is frozen if all its own parameters are, or, if it has none, all those of its submodules. A module without
    any parameters (dropout) follows its parent.
    """
    frozen: dict[str, bool] = {}
    for name, module in network.named_modules():
        parameters = list(module.parameters(recurse=False)) or list(module.parameters())
        frozen[name] = not any(p.requires_grad for p in parameters)
        if not parameters:
            frozen[name] = frozen[name.rpartition(".")[0]]
        module.training = not frozen[name]
