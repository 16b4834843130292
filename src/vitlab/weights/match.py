"""Match weights to a model; differences other than in grid, patch, channels and classes are problems of the report."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from vitlab.config.printable import format_names
from vitlab.models.vit import VisionTransformer
from vitlab.weights.configuration import Preprocessing
from vitlab.weights.infer import patch_grid
from vitlab.weights.open import WeightSource
from vitlab.weights.resample import Slot, change_channels, change_positions

TOKENS = ("cls_token", "dist_token", "reg_token")  # in the order of the prefix
HEADS = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
# arguments that shapes can't show, with our model's defaults
UNSHAPED = {"heads": 12, "activation": "gelu", "norm_eps": 1e-6}
PATCHES = "patch_embed.proj.weight"

Shapes = Mapping[str, tuple[int, ...]]


class StateDictMatcher:
    """The source of each tensor of a network (on any device) in weights; `report` lists it."""

    def __init__(
        self, network: VisionTransformer, arguments: Mapping[str, Any], weights: WeightSource, title: str
    ) -> None:
        self.network, self.weights, self.report = network, weights, Report(title)
        self.expected: Shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        self.readers: dict[str, Callable[[], Tensor]] = {}  # by our names; they read and adapt the tensors
        self.used: set[str] = set()  # our names of the weights' tensors that are read or reported as unused
        self.match_heads()
        self.match_positions()
        self.match_patches()
        self.match_others()
        self.compare_settings(arguments)

    def match_heads(self) -> None:
        """The classification heads, which are new if the classes differ."""
        shapes, network, report = self.weights.shapes, self.network, self.report
        classes, why = self.weights.architecture.arguments["num_classes"], ""
        hidden = "pre_logits.weight" in shapes and "pre_logits.weight" not in self.expected
        if not network.num_classes:
            why = "the model has no head"
        elif not classes:
            why = "the weights have no head"
        elif classes != network.num_classes:
            why = f"{network.num_classes} classes, and {classes} in the weights"
        elif hidden:
            width = shapes["pre_logits.weight"][0]
            why = f"the weights' head reads a hidden layer of width {width}, and the model has none"
            report.problems.append(f"{why}: set model.pre_logits_dim={width}")
        elif shapes["head.weight"] != self.expected["head.weight"] and not self.match_half_head():
            reads, has = shapes["head.weight"][1], self.expected["head.weight"][1]
            why = f"the weights' head reads {reads} numbers ([cls] and the patches' mean?), and the model's {has}"
            report.problems.append(why)
        for name in HEADS if why else ():
            if name in self.expected:
                report.new[name] = why
            if name in shapes:
                self.skip(name, why)
        if hidden and why:
            for end in ("weight", "bias"):
                self.skip(f"pre_logits.{end}", "the hidden layer belongs to the head")
        if not why and "head.bias" not in shapes:
            report.new["head.bias"] = "the weights' head has none"

    def match_half_head(self) -> bool:
        """Use the half of a head over [cls] and the patches' mean that the model's pooling feeds, if the other is 0."""
        reads, has = self.weights.shapes["head.weight"][1], self.expected["head.weight"][1]
        halves = {"cls": (slice(0, has), slice(has, reads)), "avg": (slice(has, reads), slice(0, has))}
        if reads != 2 * has or self.network.pool not in halves:
            return False
        head, (half, other) = self.weights.read("head.weight"), halves[self.network.pool]
        if head[:, other].any():
            return False
        self.readers["head.weight"] = lambda: head[:, half]
        self.used.add("head.weight")
        self.report.resampled["head.weight"] = f"{reads} -> {has} numbers: the others are zero"
        return True

    def match_positions(self) -> None:
        """Prefix and positions, if the grid differs, or the tokens that have a position."""
        shapes, expected, name = self.weights.shapes, self.expected, "pos_embed"
        if name not in shapes or name not in expected:
            return
        arguments = self.weights.architecture.arguments
        old, new = patch_grid(arguments["image_size"], arguments["patch_size"]), self.network.grid
        theirs, slots = prefix_tokens(shapes), prefix_tokens(expected)
        before, covered = shapes[name][1] - math.prod(old), expected[name][1] - math.prod(new)
        if (old, before) == (new, covered) or theirs != slots or shapes[name][2] != expected[name][2]:
            return  # equal, or a problem that `match_others` reports
        prefix = {token: self.weights.read(token) for token in TOKENS if token in expected}
        table = self.weights.read(name)
        changed = change_positions(prefix, table, old=old, new=new, slots=slots, covered=covered)
        self.readers |= {token: lambda value=value: value for token, value in changed.items()}  # type: ignore[misc]
        self.used |= changed.keys()
        if old != new:
            how = f"{format_grid(old)} -> {format_grid(new)} patches (bicubic, antialiased)"
            library = " (transformers doesn't antialias them: its numbers differ slightly)"
            hugging_face = self.weights.network.layout.name.startswith("hf_")
            self.report.resampled[name] = how + (library if hugging_face else "")
        if covered != before:
            how = f"positions of {before} -> {covered} tokens before the patches; the network computes the same"
            self.report.resampled["the prefix"] = how

    def match_patches(self) -> None:
        """The patch projection, if patch size or channels differ."""
        (width, channels, *size), (dim, ours, *our_size) = self.weights.shapes[PATCHES], self.expected[PATCHES]
        if width != dim or (channels, size) == (ours, our_size):
            return

        def read() -> Tensor:
            from timm.layers.patch_embed import resample_patch_embed  # FlexiViT, https://arxiv.org/abs/2212.08013

            kernel = change_channels(self.weights.read(PATCHES), ours)
            return cast(Tensor, resample_patch_embed(kernel, our_size))

        self.readers[PATCHES] = read
        self.used.add(PATCHES)
        changes = []
        if size != our_size:
            changes.append(f"{format_grid(size)} -> {format_grid(our_size)} pixels (pseudo-inverse of resizing)")
        if channels != ours:
            changes.append(f"{channels} -> {ours} channels ({'summed' if ours == 1 else 'repeated in turn'})")
        self.report.resampled[PATCHES] = ", ".join(changes)

    def match_others(self) -> None:
        """Tensors of equal shape, and those that are missing, unused or of another shape."""
        shapes, report, source = self.weights.shapes, self.report, {name: name for name in self.expected}
        for one, two in (("norm", "fc_norm"), ("fc_norm", "norm")):
            if f"{one}.weight" in shapes and f"{one}.weight" not in self.expected and f"{two}.weight" not in shapes:
                source |= {f"{two}.{end}": f"{one}.{end}" for end in ("weight", "bias")}
                report.resampled[one] = f"{one} -> {two}: pooling and norm change places"
        missing, misshapen = [], []
        for name, shape in self.expected.items():
            theirs = source[name]
            if name in self.readers or name in report.new:
                continue
            if theirs not in shapes:
                missing.append(name)
                continue
            self.used.add(theirs)
            if shapes[theirs] == shape:
                self.readers[name] = lambda theirs=theirs: self.weights.read(theirs)  # type: ignore[misc]
                report.matched.append(name)
            else:
                both = f"{format_grid(shapes[theirs])} in the weights, {format_grid(shape)} in the model"
                misshapen.append(f"{name} {both}")
                report.new[name] = "of another shape in the weights"
        plan, network = self.weights.plan, self.weights.network
        unplaced = [name for name in shapes if name not in self.used]
        for names, what in (
            (missing, "missing in the weights"),
            (misshapen, "of another shape"),
            (unplaced, "in the weights, without a place in the model"),
            (plan.unknown, f"in the file, and unknown to {network.layout.title}"),
        ):
            if names:
                report.problems.append(f"{what}: {format_names(names)}")
        report.new |= dict.fromkeys(missing, "not in the weights")
        for name in unplaced:
            self.skip(name, "the model has no place for it")
        report.unused |= dict.fromkeys(plan.unknown, "unknown") | plan.skipped
        report.unused |= dict.fromkeys(network.others, f"not part of the network {network.prefix.rstrip('./')}")

    def compare_settings(self, arguments: Mapping[str, Any]) -> None:
        """Compare arguments that shapes can't show with those in training."""
        architecture, report = self.weights.architecture, self.report
        for key, default in UNSHAPED.items():
            ours, theirs = arguments.get(key, default), architecture.arguments[key]
            text = f"{key}={ours} in the model, {theirs} in the weights ({architecture.origin})"
            if ours == theirs or key in architecture.assumed:
                continue
            if key == "norm_eps":
                report.notes.append(f"{text}; model.norm_eps={theirs} gives their numbers")
            else:
                report.problems.append(f"{text}: set model.{key}={theirs}")
        for key, why in architecture.assumed.items():
            value = f"{key}={architecture.arguments[key]}{f' ({why})' if why else ''}"
            report.notes.append(f"assumed {value}: no configuration has it; set model.{key} to change it")
        if architecture.assumed:
            report.notes.append("assumed norms before attention and MLP: their order isn't in the tensors")

    def skip(self, name: str, why: str) -> None:
        """Report a tensor of the weights, by our name, as unused."""
        self.used.add(name)
        self.report.unused |= dict.fromkeys(self.weights.plan.sources[name][1], why)


def prefix_tokens(shapes: Shapes) -> list[Slot]:
    return [(name, index) for name in TOKENS if name in shapes for index in range(shapes[name][1])]


@dataclass
class Report:
    """The source of every tensor of a model, and the use of every tensor of a file."""

    title: str
    matched: list[str] = field(default_factory=list)
    numbers: int = 0  # in all tensors that were matched or resampled
    resampled: dict[str, str] = field(default_factory=dict)  # our name -> the change
    new: dict[str, str] = field(default_factory=dict)  # our name of a newly initialized tensor -> the reason
    unused: dict[str, str] = field(default_factory=dict)  # name in the file -> the reason
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # errors if the load is strict

    def table(self) -> str:
        """A line for each kind and reason."""
        lines = [self.title, f"  matched      {len(self.matched)} tensors as they are; {self.numbers:,} numbers in all"]
        for kind, entries in (
            ("resampled", [f"{name}: {how}" for name, how in self.resampled.items()]),
            ("new", names_by_reason(self.new)),
            ("unused", names_by_reason(self.unused)),
            ("note", [*self.notes, *self.problems]),
        ):
            lines += [f"  {kind:<12} {entry}" for entry in entries or (["none"] if kind != "note" else [])]
        return "\n".join(lines)


def format_grid(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def names_by_reason(entries: Mapping[str, str]) -> list[str]:
    grouped: dict[str, list[str]] = {}
    for name, why in entries.items():
        grouped.setdefault(why, []).append(name)
    return [f"{format_names(names)}: {why}" for why, names in grouped.items()]
