"""From a library's names and shapes to ours and back, by the tables of `layouts`.

    (found,) = recognise(names)         in which layout, and behind which prefix
    ours = to_ours(state, found)        their tensors -> ours
    theirs = from_ours(ours, LAYOUTS["hf_vit"], heads=12, inner="vit.")

To ours and back is bit-equal, as far as ours has a place for a tensor: `Plan.left_out` says for which it has none.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from vitlab.weights.layouts import BLOCK, LAYOUTS, Layout, Transform

# What wrappers (torch.compile, FSDP, activation checkpointing) put into names, anywhere.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class FoundNetwork(NamedTuple):
    """A network among the names of a file, and how it is written."""

    layout: Layout
    prefix: str  # what stands before its names
    names: dict[str, str]  # the name that the layout has for it -> the name in the file
    beside: list[str]  # names in the file without the prefix: of other networks


class MappingPlan(NamedTuple):
    """What becomes of a network's tensors."""

    made: dict[str, tuple[Transform, list[str]]]  # our tensor -> the form, and the names in the file
    left_out: dict[str, str]  # name in the file -> why it has no place in our model
    unknown: list[str]  # names in the file that the layout doesn't know


def recognize_networks(names: Iterable[str]) -> list[FoundNetwork]:
    """The networks in a list of names, one for each prefix, in the first layout whose marks are all there."""
    plain = {WRAPPERS.sub("", name): name for name in names}
    found: dict[str, FoundNetwork] = {}
    for layout in LAYOUTS.values():
        for anchor in (name for name in plain if name.endswith(layout.anchor)):
            prefix = anchor.removesuffix(layout.anchor)
            if prefix in found or (prefix and prefix[-1] not in "./"):
                continue
            body = {
                layout_name(n.removeprefix(prefix), layout): real for n, real in plain.items() if n.startswith(prefix)
            }
            beside = {name: real for name, real in plain.items() if not name.startswith(prefix)}
            for name in list(beside):  # a head may stand outside of the body
                for head in (shorter for shorter in strip_prefix(name, prefix) if shorter in layout.heads()):
                    if head not in body:
                        body[head] = beside.pop(name)
            if all(any(re.fullmatch(mark, name) for name in body) for mark in layout.marks):
                found[prefix] = FoundNetwork(layout, prefix, body, list(beside.values()))
    return list(found.values())


def layout_name(name: str, layout: Layout) -> str:
    """A name in the layout's own spelling."""
    for pattern, replacement in layout.spellings:
        name = re.sub(pattern, replacement, name)
    return name


def strip_prefix(name: str, prefix: str) -> list[str]:
    """A name without as many of the prefix's parts as it shares, and with each of them: `module.head.bias`."""
    cuts = [0, *(match.end() for match in re.finditer(r"[./]", prefix))]
    return [name[cut:] for cut in cuts if name.startswith(prefix[:cut])]


def plan_mapping(found: FoundNetwork) -> MappingPlan:
    """What each of our tensors is made of, and what no use is made of."""
    made: dict[str, tuple[Transform, list[str]]] = {}
    used: set[str] = set()
    for rule in found.layout.rules:
        pattern = re.compile(re.escape(rule.theirs[0]).replace(re.escape(BLOCK), r"(\d+)"))
        for match in filter(None, map(pattern.fullmatch, found.names)):
            number = match[1] if match.groups() else ""
            ours, *theirs = (name.replace(BLOCK, number) for name in (rule.ours, *rule.theirs))
            if ours not in made and all(name in found.names for name in theirs):
                made[ours] = (rule.form, [found.names[name] for name in theirs])
                used.update(theirs)
    left_out, unknown = {}, []
    for name, real in found.names.items():
        reason = next((why for pattern, why in found.layout.left_out if re.fullmatch(pattern, name)), None)
        if name not in used and reason is not None:
            left_out[real] = reason
        elif name not in used:
            unknown.append(real)
    return MappingPlan(made, left_out, unknown)


def to_ours(state: Mapping[str, Tensor], found: FoundNetwork) -> dict[str, Tensor]:
    """Their tensors under our names and in our shapes; views of theirs where that is possible."""
    return {ours: form.to([state[name] for name in names]) for ours, (form, names) in plan_mapping(found).made.items()}


def from_ours(state: Mapping[str, Tensor], layout: Layout, *, heads: int, inner: str = "") -> dict[str, Tensor]:
    """Our tensors under their names and in their shapes, each contiguous; `inner` comes before the body's names.

    Raises:
        ValueError: the layout has no place for a tensor of ours.
    """
    gated, homeless = is_gated(state), []
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = re.match(r"blocks\.(\d+)\.", name)
        number, general = (block[1], f"blocks.{BLOCK}.{name[block.end() :]}") if block else ("", name)
        rule = next((r for r in layout.rules if r.ours == general and r.gated in (None, gated)), None)
        if rule is None:
            homeless.append(name)
            continue
        for written, part in zip(rule.theirs, rule.form.back(tensor, heads), strict=True):
            before = "" if written in layout.heads() else inner
            theirs[before + written.replace(BLOCK, number)] = part.contiguous()
    if homeless:
        raise ValueError(f"{layout.title} has no place for {', '.join(homeless)}")
    patches = state["patch_embed.proj.weight"]
    for name, shape in (layout.zeros or {}).items():
        theirs[inner + name] = patches.new_zeros([len(patches) if side == "D" else int(side) for side in shape])
    return theirs


def is_gated(state: Mapping[str, Tensor]) -> bool:
    """Whether the MLPs of a model of ours halve what they make: SwiGLU."""
    first, second = (state.get(f"blocks.0.mlp.fc{n}.weight") for n in (1, 2))
    return first is not None and second is not None and first.shape[0] == 2 * second.shape[1]
