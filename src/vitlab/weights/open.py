"""Opened weights: which network in a file they are of, and what each of our tensors is made of.

Names and shapes are looked at, and what lies beside the file; numbers are read by `Weights.read`, tensor by tensor.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitlab.weights.files import StoredTensor, UnreadableWeights
from vitlab.weights.infer import Architecture, infer_architecture
from vitlab.weights.locate import WeightFiles, locate_weights
from vitlab.weights.mapping import FoundNetwork, MappingPlan, plan_mapping, recognize_networks
from vitlab.weights.preprocessing import Preprocessing, preprocessing
from vitlab.weights.report import format_names

FLOATS = ("float16", "bfloat16", "float32", "float64")  # others are integers, or of quantised weights
AVERAGED = ("ema", "teacher")  # in the names of networks that are averages of others


class WeightSource(NamedTuple):
    """Opened weights, understood: which network they are of, and what each of our tensors is made of."""

    opened: WeightFiles
    part: str  # which of several networks in the file, "" if it is the only one
    stored: dict[str, StoredTensor]  # by names in the file
    found: FoundNetwork
    plan: MappingPlan
    shapes: dict[str, tuple[int, ...]]  # by our names
    architecture: Architecture
    preprocessing: Preprocessing

    def read(self, name: str) -> Tensor:
        """One of our tensors, in float32."""
        form, names = self.plan.made[name]
        return form.to([self.stored[n].read() for n in names]).to(torch.float32)


def open_weights(
    source: str,
    *,
    part: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    asked: Mapping[str, Any] | None = None,
) -> WeightSource:
    """Finds weights and says what network they are of; their numbers are not read yet.

    `part` chooses where a file holds several networks: `ema`, `raw`, or a name in the file. `image_size`: what they
    were trained on, where nothing tells. `asked`: arguments of the model that the user has set.

    Raises:
        CannotRead: there are none, they are damaged, or of no network that ours can be.
        allowlist.NotTrusted: the file holds more than weights.
    """
    opened = locate_weights(source)
    chosen, stored, found = choose_network(opened, part)
    made = plan_mapping(found)
    if odd := [n for _, names in made.made.values() for n in names if stored[n].dtype not in FLOATS]:
        raise UnreadableWeights(
            f"{source}: {format_names(odd)} is of type {stored[odd[0]].dtype}: quantised weights can't be loaded"
        )
    meta = {
        ours: form.to([torch.empty(stored[name].shape, device="meta") for name in names])
        for ours, (form, names) in made.made.items()
    }
    try:
        architecture = infer_architecture(meta, found.layout, opened, asked or {}, image_size)
    except UnreadableWeights as error:
        raise UnreadableWeights(f"{error}; it was read as {found.layout.title}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in meta.items()}
    return WeightSource(opened, chosen, stored, found, made, shapes, architecture, preprocessing(opened, found.layout))


def choose_network(opened: WeightFiles, part: str | None) -> tuple[str, dict[str, StoredTensor], FoundNetwork]:
    """One of the networks in a file."""
    networks: dict[str, tuple[dict[str, StoredTensor], FoundNetwork]] = {}
    averaged = "current_model_state" in opened.content.parts  # Lightning keeps the average as the state
    for name, stored in opened.content.parts.items():
        label = {"state_dict": "ema", "current_model_state": "raw"}.get(name, name) if averaged else name
        for found in recognize_networks(stored):
            networks[".".join(filter(None, (label, found.prefix.rstrip("./"))))] = (stored, found)
    source = opened.source
    if not networks:
        names = [name for stored in opened.content.parts.values() for name in stored]
        raise UnreadableWeights(
            f"{source} holds no Vision Transformer that is known; its tensors are named {format_names(names)}"
        )
    there = f"it has {', '.join(name or '(one without a name)' for name in networks)}"
    wanted = list(networks)
    if part is not None:
        wanted = [name for name in networks if part in (name, *name.split("."))] or [
            name for name in networks if (part == "ema") == any(a in name for a in AVERAGED) and part in ("ema", "raw")
        ]
        if not wanted:
            raise UnreadableWeights(f"weights.part={part}: {source} has no such network; {there}")
    if len(wanted) > 1:
        wanted = [name for name in wanted if any(a in name for a in AVERAGED)] or wanted
    if len(wanted) > 1:
        raise UnreadableWeights(f"{source} holds several networks; choose one with weights.part: {there}")
    return (wanted[0] if len(networks) > 1 else "", *networks[wanted[0]])


def format_source(weights: WeightSource) -> str:
    """Where weights come from, in words."""
    kinds = sorted({stored.dtype for stored in weights.stored.values()})
    part = f", {weights.part}" if weights.part else ""
    return (
        f"{weights.opened.source}: {weights.opened.file.name}{part}, {weights.found.layout.title}, {', '.join(kinds)}"
    )
