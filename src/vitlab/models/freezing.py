"""Which parts of a network stay as they are while the rest is trained."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from vitlab.config.schema import suggest

ALL_BUT_HEAD = "all-but-head"


def head_names(network: nn.Module) -> tuple[str, ...]:
    """Names of the modules that give the logits: `head`, and `head_dist` where there is one, or what timm notes for a
    model of its own (`fc`).
    """
    noted: dict[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    names = noted.get("classifier") or ("head", "head_dist")
    return (names,) if isinstance(names, str) else tuple(names)


def is_head_parameter(network: nn.Module, name: str) -> bool:
    """Whether a parameter is the head's."""
    return name.startswith(tuple(f"{head}." for head in head_names(network)))


def frozen_names(network: nn.Module, patterns: str | tuple[str, ...]) -> list[str]:
    """Names of the parameters that patterns freeze; see `Classifier` for what a pattern is.

    Raises:
        ValueError: a pattern matches or takes back nothing, or nothing is left to train.
    """
    names = [name for name, _ in network.named_parameters()]
    if patterns == ALL_BUT_HEAD:
        frozen = [name for name in names if not is_head_parameter(network, name)]
    else:
        chosen: set[str] = set()
        for given in [patterns] if isinstance(patterns, str) else patterns:
            pattern = given.removeprefix("!")
            matched = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
            if not matched:
                modules = (name for name, _ in network.named_modules() if name)
                near = suggest(pattern, [ALL_BUT_HEAD, *modules, *names])
                raise ValueError(f"classifier.freeze={given}: no parameter or module has such a name{near}")
            if given.startswith("!") and not matched & chosen:
                raise ValueError(
                    f"classifier.freeze={given} takes back what no pattern before it freezes; leave it out"
                )
            chosen = chosen - matched if given.startswith("!") else chosen | matched
        frozen = [name for name in names if name in chosen]
    if len(frozen) == len(names) > 0:
        raise ValueError(
            f"classifier.freeze={patterns if isinstance(patterns, str) else list(patterns)} leaves nothing to train; "
            f"to measure frozen features, use src/evaluate.py with probe=linear"
        )
    return frozen


def freeze(network: nn.Module, patterns: str | tuple[str, ...]) -> None:
    """Freezes what patterns name: no gradients, no place in the optimizer. Raises as `frozen_names` does."""
    for name in frozen_names(network, patterns):
        network.get_parameter(name).requires_grad_(False)


def set_frozen_to_eval(network: nn.Module) -> None:
    """Sets frozen parts of a network in training mode to evaluation mode: no dropout, no stochastic depth, and
    BatchNorm neither takes up statistics nor uses the batch's.

    A module rests if all parameters of its own are frozen, or, where it has none, all those within it are. What holds
    no parameters at all (dropout) follows the module that it lies in.
    """
    resting: dict[str, bool] = {}
    for name, module in network.named_modules():
        own = list(module.parameters(recurse=False))
        considered = own or list(module.parameters())
        if considered:
            resting[name] = not any(p.requires_grad for p in considered)
        else:
            resting[name] = resting.get(name.rpartition(".")[0], False)
        module.training = not resting[name]


def trainable_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that are trained, by name."""
    return ((name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad)
