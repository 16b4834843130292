"""Map names and shapes of another library to ours and back, by the tables of `layouts`.

    plan = plan_mapping(recognize_networks(names)[0])                       which of their tensors make ours
    theirs = from_ours(ours, LAYOUTS["hf_vit"], heads=12, inner="vit.")

To ours and back is bit-equal, except for the tensors of `MappingPlan.skipped`, which have no place in ours.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from vitlab.weights.layouts import LAYOUTS
from vitlab.weights.rules import BLOCK, Layout, Transform

# inserted into names by torch.compile, FSDP and activation checkpointing, anywhere
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class StoredNetwork(NamedTuple):
    """A network among the names of a file."""

    layout: Layout
    prefix: str  # of its names in the file
    names: dict[str, str]  # the layout's name -> the name in the file
    others: list[str]  # names in the file of other networks


class MappingPlan(NamedTuple):
    """The use of a network's tensors."""

    sources: dict[str, tuple[Transform, list[str]]]  # our tensor -> the transform, and the names in the file
    skipped: dict[str, str]  # name in the file -> the reason why our model has no place for it
    unknown: list[str]  # names in the file that the layout doesn't have


def recognize_networks(names: Iterable[str]) -> list[StoredNetwork]:
    """The networks in a list of names, one per prefix, in the first layout whose marks all exist."""
    plain = {WRAPPERS.sub("", name): name for name in names}
    networks: dict[str, StoredNetwork] = {}
    for layout in LAYOUTS.values():
        for anchor in (name for name in plain if name.endswith(layout.anchor)):
            prefix = anchor.removesuffix(layout.anchor)
            if prefix in networks or (prefix and prefix[-1] not in "./"):
                continue
            inside = [name for name in plain if name.startswith(prefix)]
            body = {layout_name(name.removeprefix(prefix), layout): plain[name] for name in inside}
            others = {name: real for name, real in plain.items() if not name.startswith(prefix)}
            for name in list(others):  # a head may be outside of the body
                for head in (shorter for shorter in strip_prefix(name, prefix) if shorter in layout.heads()):
                    if head not in body:
                        body[head] = others.pop(name)
            if all(any(re.fullmatch(mark, name) for name in body) for mark in layout.marks):
                networks[prefix] = StoredNetwork(layout, prefix, body, list(others.values()))
    return list(networks.values())


def layout_name(name: str, layout: Layout) -> str:
    for pattern, replacement in layout.spellings:
        name = re.sub(pattern, replacement, name)
    return name


def strip_prefix(name: str, prefix: str) -> list[str]:
    """A name without each of the leading parts that it shares with a prefix: `module.head.bias`, `head.bias`."""
    cuts = [0, *(match.end() for match in re.finditer(r"[./]", prefix))]
    return [name[cut:] for cut in cuts if name.startswith(prefix[:cut])]


def plan_mapping(network: StoredNetwork) -> MappingPlan:
    """The sources of each of our tensors, and the tensors without a use."""
    sources: dict[str, tuple[Transform, list[str]]] = {}
    used: set[str] = set()
    for rule in network.layout.rules:
        pattern = re.compile(re.escape(rule.theirs[0]).replace(re.escape(BLOCK), r"(\d+)"))
        for match in filter(None, map(pattern.fullmatch, network.names)):
            number = match[1] if match.groups() else ""
            ours, *theirs = (name.replace(BLOCK, number) for name in (rule.ours, *rule.theirs))
            if ours not in sources and all(name in network.names for name in theirs):
                sources[ours] = (rule.form, [network.names[name] for name in theirs])
                used.update(theirs)
    skipped, unknown = {}, []
    for name in (name for name in network.names if name not in used):
        reason = next((why for pattern, why in network.layout.skipped if re.fullmatch(pattern, name)), None)
        if reason is None:
            unknown.append(network.names[name])
        else:
            skipped[network.names[name]] = reason
    return MappingPlan(sources, skipped, unknown)


def from_ours(state: Mapping[str, Tensor], layout: Layout, *, heads: int, inner: str = "") -> dict[str, Tensor]:
    """Our tensors under their names and in their shapes, contiguous; `inner` is the prefix of the body's names.

    Raises `ValueError` if the layout has no place for a tensor.
    """
    gated, unplaced = is_gated(state), []
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = re.match(r"blocks\.(\d+)\.", name)
        number, general = (block[1], f"blocks.{BLOCK}.{name[block.end() :]}") if block else ("", name)
        rule = next((r for r in layout.rules if r.ours == general and r.gated in (None, gated)), None)
        if rule is None:
            unplaced.append(name)
            continue
        for written, part in zip(rule.theirs, rule.form.back(tensor, heads), strict=True):
            before = "" if written in layout.heads() else inner
            theirs[before + written.replace(BLOCK, number)] = part.contiguous()
    if unplaced:
        raise ValueError(f"{layout.title} has no place for {', '.join(unplaced)}")
    patches = state["patch_embed.proj.weight"]
    for name, shape in (layout.zeros or {}).items():
        theirs[inner + name] = patches.new_zeros([len(patches) if side == "D" else int(side) for side in shape])
    return theirs


def is_gated(state: Mapping[str, Tensor]) -> bool:
    """Whether the MLPs of our model are gated (SwiGLU): the second layer reads half of the first one's output."""
    first, second = (state.get(f"blocks.0.mlp.fc{n}.weight") for n in (1, 2))
    return first is not None and second is not None and first.shape[0] == 2 * second.shape[1]
