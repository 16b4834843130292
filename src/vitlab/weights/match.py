"""How weights fit a model: what each of its tensors is read from, adapted where the two differ.

What differs is explained by the model's arguments (grid, patch, channels, classes), or it is a problem.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from vitlab.models.vit import VisionTransformer
from vitlab.models.vit_validation import pair
from vitlab.weights import resample
from vitlab.weights.open import WeightSource
from vitlab.weights.report import Report, format_grid, format_names
from vitlab.weights.resample import Slot

TOKENS = ("cls_token", "dist_token", "reg_token")  # the prefix, in its order
HEADS = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
# What shapes can't show: a model has these by default.
TRAINED_WITH = {"heads": 12, "activation": "gelu", "norm_eps": 1e-6}
PATCHES = "patch_embed.proj.weight"

Readers = dict[str, Callable[[], Tensor]]
Shapes = Mapping[str, tuple[int, ...]]


class StateDictMatcher:
    """What the tensors of a network (on any device) are read from, as far as weights have them.

    Attributes:
        readers: Our name -> the tensor, adapted.
        report: What became of every tensor of the network and of the weights.
    """

    def __init__(
        self, network: VisionTransformer, arguments: Mapping[str, Any], weights: WeightSource, title: str
    ) -> None:
        self.network, self.weights, self.report = network, weights, Report(title)
        self.wanted: Shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        self.readers: Readers = {}
        self.used: set[str] = set()  # names of the weights (ours) that are made use of, or told of
        self.heads()
        self.positions()
        self.patches()
        self.rest()
        self.settings(arguments)

    def heads(self) -> None:
        """The classification heads, which are replaced where the classes differ."""
        shapes, network, report = self.weights.shapes, self.network, self.report
        classes, why = self.weights.architecture.arguments["num_classes"], ""
        hidden = "pre_logits.weight" in shapes and "pre_logits.weight" not in self.wanted
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
        elif shapes["head.weight"] != self.wanted["head.weight"] and not self.half_head():
            reads, has = shapes["head.weight"][1], self.wanted["head.weight"][1]
            why = f"the weights' head reads {reads} numbers ([cls] and the patches' mean?), and ours {has}"
            report.problems.append(why)
        for name in HEADS if why else ():
            if name in self.wanted:
                report.anew[name] = why
            if name in shapes:
                self.leave(name, why)
        if hidden and why:
            for end in ("weight", "bias"):
                self.leave(f"pre_logits.{end}", "the hidden layer goes with the head")
        if not why and "head.bias" not in shapes:
            report.anew["head.bias"] = "the weights' head has none"

    def half_head(self) -> bool:
        """Takes the half of a head over [cls] and the patches' mean that our pooling feeds, where the other is zero."""
        reads, has = self.weights.shapes["head.weight"][1], self.wanted["head.weight"][1]
        halves = {"cls": slice(0, has), "avg": slice(has, reads)}
        if reads != 2 * has or self.network.pool not in halves:
            return False
        head, mine = self.weights.read("head.weight"), halves[self.network.pool]
        others = next(half for half in halves.values() if half != mine)
        if head[:, others].any():
            return False
        self.readers["head.weight"] = lambda: head[:, mine]
        self.used.add("head.weight")
        self.report.resampled["head.weight"] = f"{reads} -> {has} numbers: those of the others are zero"
        return True

    def positions(self) -> None:
        """Prefix and positions, where the grid differs, or which tokens have a position."""
        shapes, wanted, name = self.weights.shapes, self.wanted, "pos_embed"
        if name not in shapes or name not in wanted:
            return
        old, new = patch_grid(self.weights.architecture.arguments), self.network.grid
        theirs, slots = prefix_tokens(shapes), prefix_tokens(wanted)
        before, covered = shapes[name][1] - math.prod(old), wanted[name][1] - math.prod(new)
        if (old, before) == (new, covered) or theirs != slots or shapes[name][2] != wanted[name][2]:
            return  # as it is; or so different that it is a problem, and told as such
        prefix = {token: self.weights.read(token) for token in TOKENS if token in wanted}
        changed = resample.change_positions(
            prefix, self.weights.read(name), old=old, new=new, slots=slots, covered=covered
        )
        self.readers |= {token: lambda value=value: value for token, value in changed.items()}  # type: ignore[misc]
        self.used |= changed.keys()
        if old != new:
            self.report.resampled[name] = f"{format_grid(old)} -> {format_grid(new)} patches (bicubic, antialiased)"
        if covered != before:
            how = f"positions of {before} -> {covered} tokens before the patches; the network computes the same"
            self.report.resampled["the prefix"] = how

    def patches(self) -> None:
        """The projection of patches, where their size or the channels differ."""
        (width, channels, *size), (dim, asked, *asked_size) = self.weights.shapes[PATCHES], self.wanted[PATCHES]
        if width != dim or (channels, size) == (asked, asked_size):
            return

        def adapted() -> Tensor:
            kernel = resample.change_channels(self.weights.read(PATCHES), asked)
            return resample.resample_patches(kernel, (asked_size[0], asked_size[1]))

        self.readers[PATCHES] = adapted
        self.used.add(PATCHES)
        changes = (
            [f"{format_grid(size)} -> {format_grid(asked_size)} pixels (pseudo-inverse of resizing)"]
            if size != asked_size
            else []
        )
        if channels != asked:
            changes.append(f"{channels} -> {asked} channels ({'summed' if asked == 1 else 'repeated in turn'})")
        self.report.resampled[PATCHES] = ", ".join(changes)

    def rest(self) -> None:
        """All that fits as it is, and what doesn't fit at all."""
        shapes, report, source = self.weights.shapes, self.report, {name: name for name in self.wanted}
        for one, two in (("norm", "fc_norm"), ("fc_norm", "norm")):
            if f"{one}.weight" in shapes and f"{one}.weight" not in self.wanted and f"{two}.weight" not in shapes:
                source |= {f"{two}.{end}": f"{one}.{end}" for end in ("weight", "bias")}
                report.resampled[one] = f"{one} -> {two}: pooling and norm change places"
        missing, misshapen = [], []
        for name, shape in self.wanted.items():
            theirs = source[name]
            if name in self.readers or name in report.anew:
                continue
            if theirs not in shapes:
                missing.append(name)
                continue
            self.used.add(theirs)
            if shapes[theirs] == shape:
                self.readers[name] = lambda theirs=theirs: self.weights.read(theirs)  # type: ignore[misc]
                report.matched.append(name)
            else:
                misshapen.append(
                    f"{name} {format_grid(shapes[theirs])} in the weights, {format_grid(shape)} in the model"
                )
                report.anew[name] = "of another shape in the weights"
        left = [name for name in shapes if name not in self.used]
        unknown = self.weights.plan.unknown
        normed = any("q_norm" in name or "k_norm" in name for name in unknown)
        why = " (it norms queries and keys, which our model doesn't)" if normed else ""
        for names, what in (
            (missing, "missing in the weights"),
            (misshapen, "of another shape"),
            (left, "in the weights, without a place in the model"),
            (unknown, f"in the file, and unknown to {self.weights.found.layout.title}{why}"),
        ):
            if names:
                report.problems.append(f"{what}: {format_names(names)}")
        report.anew |= dict.fromkeys(missing, "not among the weights")
        for name in left:
            self.leave(name, "the model has no place for it")
        report.unused |= dict.fromkeys(unknown, "unknown") | self.weights.plan.left_out
        beside = f"beside {self.weights.found.prefix.rstrip('./')}, no part of this network"
        report.unused |= dict.fromkeys(self.weights.found.beside, beside)

    def settings(self, arguments: Mapping[str, Any]) -> None:
        """What weights were trained with and the model has otherwise, where shapes can't show it."""
        architecture = self.weights.architecture
        for key, default in TRAINED_WITH.items():
            now, then = arguments.get(key, default), architecture.arguments[key]
            text = f"{key}={now} in the model, {then} in the weights ({architecture.origin})"
            if now == then or key in architecture.assumed:
                continue
            if key == "norm_eps":
                self.report.notes.append(f"{text}; model.norm_eps={then} gives their numbers")
            else:
                self.report.problems.append(f"{text}: set model.{key}={then}")
        guesses = [
            f"{key}={architecture.arguments[key]}{f' ({why})' if why else ''}"
            for key, why in architecture.assumed.items()
        ]
        if guesses:
            self.report.notes.append(
                f"nothing beside the weights tells these, set model.KEY if they are otherwise: {', '.join(guesses)}"
            )

    def leave(self, name: str, why: str) -> None:
        """Notes that a tensor of ours that the weights have is made no use of."""
        self.used.add(name)
        self.report.unused |= dict.fromkeys(self.weights.plan.made[name][1], why)


def prefix_tokens(shapes: Shapes) -> list[Slot]:
    """The tokens of the prefix, in their order."""
    return [(name, index) for name in TOKENS if name in shapes for index in range(shapes[name][1])]


def patch_grid(arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of patches."""
    image, patch = pair(arguments["image_size"]), pair(arguments["patch_size"])
    return image[0] // patch[0], image[1] // patch[1]
