"""What a training step computes, module by module: where its first number comes from that isn't finite.

Modules are watched from outside, by torch's hooks on all modules at once: a hook on a module itself would make
`vitlab.models.vit` call layers as a whole that it else computes a part of, and the step would not be the same any more.
So a layer that the network uses without calling it is seen as a part of the module that does.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._pytree import tree_leaves


class TensorStats(NamedTuple):
    """The finite numbers' least and largest, and how many there are that are not."""

    low: float
    high: float
    size: int
    infinite: int
    nan: int

    @property
    def finite(self) -> bool:
        return not self.infinite and not self.nan

    def __str__(self) -> str:
        wrong = [f"{count:,} {word}" for count, word in ((self.infinite, "inf"), (self.nan, "nan")) if count]
        if not wrong:
            return f"{self.low:.3g} .. {self.high:.3g}, all {self.size:,} finite"
        of = f"{' and '.join(wrong)} of {self.size:,}"
        between = f", the others {self.low:.3g} .. {self.high:.3g}" if self.low <= self.high else ""
        return of + between


def tensor_stats(value: Any) -> TensorStats:
    """The range of all floating-point tensors in a value."""
    low, high, size, infinite, nan = float("inf"), float("-inf"), 0, 0, 0
    for tensor in tree_leaves(value):
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
            numbers = tensor.detach()
            finite = numbers[numbers.isfinite()]
            size += numbers.numel()
            nan += int(numbers.isnan().sum())
            infinite += int(numbers.isinf().sum())
            if finite.numel():
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return TensorStats(low, high, size, infinite, nan)


@dataclass
class ModuleCall:
    """A module's part in a forward pass. `origin`: it, or the innermost module around it whose input was finite."""

    name: str
    kind: str
    input: TensorStats
    output: TensorStats
    origin: str


@dataclass
class Gradient:
    """A gradient as it came out of a backward pass: of a parameter, or of a module's output or input.

    `origin`: the module whose backward pass made it.
    """

    of: str
    range: TensorStats
    origin: str
    tensor: int


@dataclass
class ModuleTrace:
    """Notes the calls of a network's modules, and the gradients, in the order in which they happened."""

    network: nn.Module
    calls: list[ModuleCall] = field(default_factory=list)
    gradients: list[Gradient] = field(default_factory=list)
    watched: list[Tensor] = field(default_factory=list)  # held, so that no two have the same id

    def first_output(self) -> ModuleCall | None:
        """The first module whose output isn't finite."""
        return next((call for call in self.calls if not call.output.finite), None)

    def first_gradient(self) -> Gradient | None:
        """The first gradient, in the order of the backward pass, that isn't finite.

        Of the names of one tensor (output of a module, input of the next, and of a layer in that) it has the last: the
        layer that the gradient comes from.
        """
        first = next((gradient for gradient in self.gradients if not gradient.range.finite), None)
        return None if first is None else [g for g in self.gradients if g.tensor == first.tensor][-1]

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Watches the forward pass inside, and prepares the notes of the backward pass that follows it."""
        names = {id(module): name or "network" for name, module in self.network.named_modules()}
        stack: list[tuple[str, TensorStats]] = []

        def enter(module: nn.Module, inputs: Any) -> None:
            if id(module) in names:
                name = names[id(module)]
                self._watch(inputs, f"input of {name}", origin=name)
                stack.append((name, tensor_stats(inputs)))

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            if id(module) in names:
                name, given = stack.pop()
                finite = [outer for outer, range_ in stack if range_.finite]
                origin = name if given.finite or not finite else finite[-1]
                self.calls.append(ModuleCall(name, type(module).__name__, given, tensor_stats(output), origin))
                # what reads it is watched too, unless it is the arithmetic of the module around
                self._watch(output, f"output of {name}", origin=stack[-1][0] if stack else "loss")

        handles = [hooks.register_module_forward_pre_hook(enter), hooks.register_module_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Watches the backward pass inside."""
        handles = []
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:

                def note(parameter: Tensor, name: str = name) -> None:
                    owner = name.rpartition(".")[0] or "network"
                    self.gradients.append(Gradient(name, tensor_stats(parameter.grad), owner, id(parameter)))

                handles.append(parameter.register_post_accumulate_grad_hook(note))  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, value: Any, of: str, *, origin: str) -> None:
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                self.watched.append(tensor)

                def note(gradient: Tensor, tensor: int = id(tensor)) -> None:
                    self.gradients.append(Gradient(of, tensor_stats(gradient), origin, tensor))

                tensor.register_hook(note)  # type: ignore[no-untyped-call]


def parameter_stats(network: nn.Module, name: str) -> dict[str, TensorStats]:
    """Ranges of the parameters of a module and of those in it, by their names in the network."""
    module = network if name == "network" else network.get_submodule(name)
    prefix = "" if name == "network" else f"{name}."
    return {prefix + inner: tensor_stats(parameter) for inner, parameter in module.named_parameters()}


def nonfinite_tensors(state: Mapping[str, Tensor]) -> dict[str, TensorStats]:
    """Those of a network's tensors that hold a number that isn't finite."""
    ranges = {name: tensor_stats(value) for name, value in state.items()}
    return {name: range_ for name, range_ in ranges.items() if not range_.finite}


def gradient_norm(network: nn.Module) -> float:
    """The norm over all gradients, as clipping takes it."""
    return float(torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None]))
