"""Memory of a training step, counted with fake tensors, which have storages without bytes.

Two steps are made, as Lightning makes them: the first allocates gradients and the optimizer's state, and the peak of
the second counts. The last gradients are alive during forward, so the peak is about the sum of all parts.
"""

import logging
import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitlab.models import attention
from vitlab.models.flops import CHECKPOINTING
from vitlab.runs.record import muted_logs
from vitlab.training.classifier import Classifier, gradient_norm

Shape = tuple[int, int, int]  # C, H, W
DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}  # by the start of trainer.precision


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that are alive, and their peak. A value that fake tensors don't have is read as 1."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known = set[int]()
        self.add(tensors)

    def add(self, values: Any) -> None:
        for storage in (value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)):
            if (key := storage._cdata) not in self._known:
                self._known.add(key)
                weakref.finalize(storage, self._free, key, storage.nbytes())
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)

    def _free(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1  # an optimizer reads its step or a norm
        self.add(result := func(*args, **(kwargs or {})))
        return result


def count_step(
    module: Classifier, images: int, shape: Shape, *, precision: str, checkpointing: bool, on_cpu: bool
) -> tuple[dict[str, int], LambdaLR]:
    """Bytes of a device by part, for a network on the meta device, and the scheduler with its optimizer.

    With or without `checkpointing`: our networks' and timm's. torch's fused attention saves on a CPU what it saves on a
    GPU; without `on_cpu`, it is used alone.
    """
    for part in module.network.modules():
        for name in CHECKPOINTING:
            if isinstance(getattr(part, name, None), bool):
                setattr(part, name, checkpointing)
    former, attention.MAX_TOKENS = attention.MAX_TOKENS, attention.MAX_TOKENS if on_cpu else 0
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), muted_logs("vitlab.training", level=logging.WARNING):
            module.network.to_empty(device="cpu")
            batch, configured = zero_batch(module, images, shape), cast(Any, module.configure_optimizers())
            optimizer, held = configured["optimizer"], [*module.network.parameters(), *module.network.buffers()]
            with Allocations([*held, *batch]) as counter:
                train_step(module, optimizer, *batch, precision)
                counter.peak = counter.live
                train_step(module, optimizer, *batch, precision)
            gradients = [tensor.grad for tensor in held if tensor.grad is not None]
            parts = {"weights": held, "gradients": gradients, "optimizer": tree_leaves(dict(optimizer.state))}
            memory = {name: sum(t.nbytes for t in parts[name] if isinstance(t, Tensor)) for name in parts}
    finally:
        attention.MAX_TOKENS = former
    return {**memory, "activations": counter.peak - sum(memory.values())}, configured["lr_scheduler"]["scheduler"]


def zero_batch(module: Classifier, images: int, shape: Shape) -> tuple[Tensor, Tensor]:
    """A batch on the device of the network, in its dtype."""
    like = next(module.network.parameters())
    return like.new_zeros(images, *shape), like.new_zeros(images, dtype=torch.long)


def train_step(module: Classifier, optimizer: Optimizer, images: Tensor, targets: Tensor, precision: str) -> None:
    mixed = DTYPES[precision.split("-")[0]] if precision.endswith("-mixed") else None
    with torch.autocast(images.device.type, dtype=mixed) if mixed else nullcontext():
        loss = module.losses(module(images), targets).sum() / len(images)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [p for p in module.network.parameters() if p.grad is not None]
    norm = gradient_norm([p.grad for p in parameters if p.grad is not None])
    torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
    optimizer.step()
