"""Trace the modules of a training step, to find the first value that isn't finite.

The hooks are torch's global ones. Hooks on a module would make `vitlab.models.vit` compute more of some layers than it
needs, and so change the step. A layer whose weights are used without a call counts as a part of the calling module.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
class Gradient:
    """A gradient of a backward pass. `of`: a parameter, a module's output or input; `origin`: where it was computed."""

    of: str
    stats: TensorStats
    origin: str
    tensor: int


@dataclass
class ModuleTrace:
    """Records the calls of a network's modules, and the gradients, in order of execution."""

    network: nn.Module
    calls: list[ModuleCall] = field(default_factory=list)
    gradients: list[Gradient] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)  # kept alive, so that their ids stay unique

    def first_output(self) -> ModuleCall | None:
        return next((call for call in self.calls if not call.output.finite), None)

    def first_gradient(self) -> Gradient | None:
        """The first gradient, in the order of the backward pass, that isn't finite.

        A tensor may have several records (output of a module, input of the next and of a layer in that). The last one
        names the layer that computed the gradient.
        """
        first = next((gradient for gradient in self.gradients if not gradient.stats.finite), None)
        return None if first is None else [g for g in self.gradients if g.tensor == first.tensor][-1]

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Record the forward pass in the block, and prepare the records of its backward pass."""
        names = {id(module): name or "network" for name, module in self.network.named_modules()}
        stack: list[tuple[str, TensorStats]] = []

        def enter(module: nn.Module, inputs: Any) -> None:
            if id(module) in names:
                name = names[id(module)]
                self._record_gradients(inputs, f"input of {name}", origin=name)
                stack.append((name, tensor_stats(inputs)))

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            if id(module) in names:
                name, stats = stack.pop()
                finite = [outer for outer, outer_stats in stack if outer_stats.finite]
                origin = name if stats.finite or not finite else finite[-1]
                self.calls.append(ModuleCall(name, type(module).__name__, stats, tensor_stats(output), origin))
                # a next module records it as its input; otherwise the surrounding module's arithmetic reads it
                self._record_gradients(output, f"output of {name}", origin=stack[-1][0] if stack else "loss")

        with hooks.register_module_forward_pre_hook(enter), hooks.register_module_forward_hook(leave):
            yield

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Record the backward pass in the block."""
        with ExitStack() as handles:
            for name, parameter in self.network.named_parameters():
                if parameter.requires_grad:

                    def note(leaf: Tensor, name: str = name) -> None:
                        self.gradients.append(Gradient(name, tensor_stats(leaf.grad), owner_name(name), id(leaf)))

                    hook = parameter.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]
                    handles.enter_context(hook)
            yield

    def _record_gradients(self, value: Any, of: str, *, origin: str) -> None:
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                self.tensors.append(tensor)

                def note(gradient: Tensor, tensor: int = id(tensor)) -> None:
                    self.gradients.append(Gradient(of, tensor_stats(gradient), origin, tensor))

                tensor.register_hook(note)  # type: ignore[no-untyped-call]


def owner_name(parameter: str) -> str:
    return parameter.rpartition(".")[0] or "network"


def parameter_lines(network: nn.Module, name: str) -> list[str]:
    """Statistics of the parameters of a module and its submodules, a line each."""
    module, prefix = (network, "") if name == "network" else (network.get_submodule(name), f"{name}.")
    return [f"{prefix}{inner}: {tensor_stats(parameter)}" for inner, parameter in module.named_parameters()]
