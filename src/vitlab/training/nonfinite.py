"""Stop or skip a step whose loss or gradient isn't finite, and name the first module whose output isn't."""

import logging
import math
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from vitlab.config.bounds import NonNegativeInt, check_bounds
from vitlab.data.dataset import TrainBatch
from vitlab.training.checkpoint_state import random_state, restore_random_state
from vitlab.training.checkpoints import all_gather_object
from vitlab.training.classifier import Classifier
from vitlab.training.optimizer import logged_rates

log = logging.getLogger(__name__)


class NonFiniteError(FloatingPointError):
    """A loss or gradient is infinite or NaN, and no more steps may be skipped."""


class NonFinite(Callback):
    """Check each step's losses and gradient norm before the optimizer's update, with one wait for the device.

    The message names the first module whose output isn't finite, found by repeating the forward pass with the same
    random numbers. A gradient scaler (16-mixed) skips nonfinite gradients on its own and halves its scale. They count
    here only once the scale is below 1, when scaling is no longer the cause; losses always count.

    Args:
        on_nonfinite: `stop` ends the run with a `NonFiniteError`; `skip` skips the step: weights, moments and decay
            don't change, the step counts, and `train/skipped_steps` is logged.
        max_skipped_steps: Steps of a run that may be skipped; the next one ends it.
    """

    @check_bounds
    def __init__(
        self, *, on_nonfinite: Literal["stop", "skip"] = "stop", max_skipped_steps: NonNegativeInt = 10
    ) -> None:
        self.on_nonfinite, self.max_skipped_steps = on_nonfinite, max_skipped_steps
        self.skipped = 0
        self._batches: list[tuple[TrainBatch, dict[str, Any]]] = []  # of the current step
        self._done = self._batches  # of the last step that was checked
        self._losses: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.before_step = self.before_step
        self._batches, self._losses = [], []

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.before_step = None
        self._batches, self._done, self._losses = [], [], []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: TrainBatch, *_: Any) -> None:
        self._batches.append((batch, random_state(trainer.strategy.root_device)))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def before_step(self, module: Classifier, optimizer: Optimizer, norm: Tensor) -> None:
        """Check all gradients of a step; drop them to skip the step, raise to stop the run."""
        trainer, losses = module.trainer, torch.stack([loss.float() for loss in self._losses])
        batches, self._batches, self._losses = self._batches or self._done, [], []
        self._done = batches  # SAM checks a step twice
        flags = torch.stack([~losses.isfinite().all(), ~norm.isfinite()]).float()
        if trainer.world_size > 1:
            flags = trainer.strategy.reduce(flags, reduce_op="sum")
        bad_loss, bad_norm = flags.tolist()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale() if bad_loss or bad_norm else 1.0
        if not bad_loss and (not bad_norm or (scaler is not None and scale >= 1)):
            return
        loss = float(trainer.strategy.reduce(losses.mean() / scale, reduce_op="mean"))
        bad = int(losses.isfinite().logical_not().int().argmax())  # the first such micro-batch, or the first of all
        rates = ", ".join(f"{value:.3g}" for value in dict.fromkeys(logged_rates(optimizer).values()))
        what = f"step {trainer.global_step + 1} (epoch {batches[0][0].epoch + 1}): loss {loss:.5g}, "
        what += f"gradient norm {norm.item():.5g}, learning rate {rates}; {first_nonfinite(module, *batches[bad])}"
        if self.on_nonfinite == "stop" or self.skipped >= self.max_skipped_steps:
            trainer.strategy.barrier("nonfinite")  # no rank may end the job while another looks
            remedy = "set callbacks.nonfinite.on_nonfinite=skip to skip such steps"
            if self.on_nonfinite == "skip":
                limit = f"callbacks.nonfinite.max_skipped_steps={self.max_skipped_steps}"
                remedy = f"{self.skipped} steps were skipped before; raise {limit} to skip more"
            raise NonFiniteError(f"{what}; {remedy}")
        self.skipped += 1
        log.warning("%s; skipped, %d of at most %d", what, self.skipped, self.max_skipped_steps)
        for logger in trainer.loggers:
            logger.log_metrics({"train/skipped_steps": self.skipped}, step=trainer.global_step + 1)
        # an optimizer skips parameters without a gradient; a fused one needs gradients, and the scaler skips its step
        fused = scaler is not None and bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        for parameter in module.parameters():
            if not fused:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.fill_(math.nan)


def first_nonfinite(module: Classifier, batch: TrainBatch, state: dict[str, Any]) -> str:
    """Where a micro-batch's step leaves finite numbers, on any rank; `state` is the random state before it. Collective.

    The random state is the same afterwards.
    """
    device, trainer = batch.images.device, module.trainer
    names: dict[nn.Module, str] = {part: name for name, part in module.network.named_modules()}
    weights = [name for name, parameter in module.network.named_parameters() if not is_finite(parameter)]
    places = [f"the weights {name} aren't finite" for name in weights]
    places += [] if is_finite(batch.images) else ["the images aren't finite"]

    def check(part: nn.Module, _: Any, output: Any) -> None:
        if not places and not is_finite(output):
            places.append(f"the first output that isn't finite is that of {names.get(part) or type(part).__name__}")

    now, handle = random_state(device), register_module_forward_hook(check)
    try:
        restore_random_state(state, device)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), trainer.precision_plugin.train_step_context():
            losses = module.batch_losses(batch)  # in all ranks, whose parameters may be shared out
    finally:
        handle.remove()
        restore_random_state(now, device)
    places += [] if is_finite(losses) else ["all outputs are finite, and the loss is not"]
    if trainer.world_size > 1:
        every = all_gather_object(trainer, places[:1])
        places = [f"rank {rank}: {first[0]}" for rank, first in enumerate(every) if first]
    return next(iter(places), "the forward pass is finite: a gradient is not, or their norm is too large")


def is_finite(values: Any) -> bool:
    """Whether all floating-point tensors in a value, such as a tuple, are finite."""
    tensors = [value.detach() for value in tree_leaves(values) if isinstance(value, Tensor)]
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())
