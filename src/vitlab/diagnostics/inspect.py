"""Trace the modules of a training step, to find the first value that isn't finite.

The hooks are torch's global ones. Hooks on a module would make `vitlab.models.vit` compute more of some layers than it
needs, and so change the step. A layer whose weights are used without a call counts as a part of the calling module.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._pytree import tree_leaves


class TensorStats(NamedTuple):
    """Minimum and maximum of the finite values, and counts."""

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
        others = f", the others {self.low:.3g} .. {self.high:.3g}" if self.low <= self.high else ""
        return f"{' and '.join(wrong)} of {self.size:,}{others}"


def tensor_stats(value: Any) -> TensorStats:
    """Statistics of all floating-point tensors in a value, such as a tuple."""
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
    """A module's call in a forward pass. `origin`: the module, or the innermost one around it with a finite input."""

    name: str
    kind: str
    input: TensorStats
    output: TensorStats
    origin: str


@dataclass
class ModuleTrace:
    """Records the calls of a network's modules, in order of execution."""

    network: nn.Module
    calls: list[ModuleCall] = field(default_factory=list)

    def first_output(self) -> ModuleCall | None:
        return next((call for call in self.calls if not call.output.finite), None)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Record the forward pass in the block."""
        names = {id(module): name or "network" for name, module in self.network.named_modules()}
        stack: list[tuple[str, TensorStats]] = []

        def enter(module: nn.Module, inputs: Any) -> None:
            if id(module) in names:
                stack.append((names[id(module)], tensor_stats(inputs)))

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            if id(module) in names:
                name, stats = stack.pop()
                finite = [outer for outer, outer_stats in stack if outer_stats.finite]
                origin = name if stats.finite or not finite else finite[-1]
                self.calls.append(ModuleCall(name, type(module).__name__, stats, tensor_stats(output), origin))

        with hooks.register_module_forward_pre_hook(enter), hooks.register_module_forward_hook(leave):
            yield


def owner_name(parameter: str) -> str:
    return parameter.rpartition(".")[0] or "network"


def parameter_lines(network: nn.Module, name: str) -> list[str]:
    """Statistics of the parameters of a module and its submodules, a line each."""
    module, prefix = (network, "") if name == "network" else (network.get_submodule(name), f"{name}.")
    return [f"{prefix}{inner}: {tensor_stats(parameter)}" for inner, parameter in module.named_parameters()]
