"""Open weights: choose a network in a file, map its tensors to ours, and infer its architecture.

Only names, shapes and configuration are read; `WeightSource.read` loads the values of one tensor.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitlab.config.printable import format_names
from vitlab.weights.configuration import Preprocessing, preprocessing
from vitlab.weights.files import StoredTensor, UnreadableWeights
from vitlab.weights.infer import Architecture, infer_architecture
from vitlab.weights.locate import WeightFiles, locate_weights
from vitlab.weights.mapping import MappingPlan, StoredNetwork, plan_mapping, recognize_networks

FLOATS = ("float16", "bfloat16", "float32", "float64")
AVERAGED = ("ema", "teacher")  # words in the names of networks that average others
# tensors of parts without which a network computes something else: they are never ignored
FOREIGN = {
    r"rope|rotary|\bfreqs": "rotary positions",
    r"storage_tokens": "registers of DINOv3's own code",
    r"\.(q|k)_norm\.|\.(query|key)_norm\.|\.(ln|norm)_(q|k)\.": "norms of queries and keys",
    r"relative_position|rel_pos": "relative positions",
    r"attn_pool|attentional_pooler|vision_model\.head\.attention": "attention pooling",
}


class WeightSource(NamedTuple):
    """Opened weights of one network."""

    files: WeightFiles
    part: str  # the network's name, if the file has several
    stored: dict[str, StoredTensor]  # by names in the file
    network: StoredNetwork
    plan: MappingPlan
    shapes: dict[str, tuple[int, ...]]  # by our names
    architecture: Architecture
    preprocessing: Preprocessing

    def read(self, name: str) -> Tensor:
        """One of our tensors, in float32."""
        form, names = self.plan.sources[name]
        return form.to([self.stored[n].read() for n in names]).to(torch.float32)

    def title(self) -> str:
        """Source, file, layout and types for the report."""
        dtypes = sorted({stored.dtype for stored in self.stored.values()})
        part = f", {self.part}" if self.part else ""
        return f"{self.files.source}: {self.files.file.name}{part}, {self.network.layout.title}, {', '.join(dtypes)}"


def open_weights(
    source: str,
    *,
    part: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    requested: Mapping[str, Any] | None = None,
) -> WeightSource:
    """Open the weights of a source without reading their values; see `load_network` for the arguments.

    `requested`: arguments of the model that the user has set, for those that the weights leave open. Raises
    `UnreadableWeights` if there are none, or none that our model has, and `allowlist.NotTrusted` if reading them would
    run code.
    """
    files = locate_weights(source)
    name, stored, network = choose_network(files, part)
    plan = plan_mapping(network)
    if odd := [n for _, names in plan.sources.values() for n in names if stored[n].dtype not in FLOATS]:
        dtype = stored[odd[0]].dtype
        raise UnreadableWeights(f"{source}: {format_names(odd)} is of type {dtype}: quantized weights can't be loaded")
    for pattern, what in FOREIGN.items():
        if foreign := [name for name in plan.unknown if re.search(pattern, name)]:
            has = f"has {what} ({format_names(foreign)}), and vitlab's model has none"
            raise UnreadableWeights(f"{source}, read as {network.layout.title}, {has}")
    meta = {
        ours: form.to([torch.empty(stored[name].shape, device="meta") for name in names])
        for ours, (form, names) in plan.sources.items()
    }
    try:
        architecture = infer_architecture(meta, network.layout, files, requested or {}, image_size)
    except UnreadableWeights as error:
        raise UnreadableWeights(f"{error}; it was read as {network.layout.title}") from error
    shapes = {ours: tuple(tensor.shape) for ours, tensor in meta.items()}
    prepared = preprocessing(files, network.layout)
    return WeightSource(files, name, stored, network, plan, shapes, architecture, prepared)


def choose_network(files: WeightFiles, part: str | None) -> tuple[str, dict[str, StoredTensor], StoredNetwork]:
    """The network `part` of a file, by default the averaged one; its name is "" if there is no other."""
    networks: dict[str, tuple[dict[str, StoredTensor], StoredNetwork]] = {}
    averaged = "current_model_state" in files.content.parts  # Lightning keeps the average in state_dict
    for name, stored in files.content.parts.items():
        label = {"state_dict": "ema", "current_model_state": "raw"}.get(name, name) if averaged else name
        for network in recognize_networks(stored):
            networks[".".join(filter(None, (label, network.prefix.rstrip("./"))))] = (stored, network)
    if not networks:
        names = [name for stored in files.content.parts.values() for name in stored]
        listed = format_names(names)
        raise UnreadableWeights(f"{files.source} holds no Vision Transformer of a known layout; its tensors: {listed}")
    listed = ", ".join(name or "(one without a name)" for name in networks)
    averages = [name for name in networks if not set(re.split(r"[^a-z]+", name.lower())).isdisjoint(AVERAGED)]
    names = list(networks)
    if part is not None:
        names = [name for name in networks if part in (name, *name.split("."))]
        if not names and part in ("ema", "raw"):
            names = [name for name in networks if (part == "ema") == (name in averages)]
        if not names:
            raise UnreadableWeights(f"weights.part={part}: {files.source} has no such network; it has {listed}")
    if len(names) > 1:
        names = [name for name in names if name in averages] or names
    if len(names) > 1:
        raise UnreadableWeights(f"{files.source} holds several networks; choose one with weights.part: {listed}")
    return (names[0] if len(networks) > 1 else "", *networks[names[0]])
