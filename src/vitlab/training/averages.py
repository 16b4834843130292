"""Averages of the weights over steps, which are validated, tested and saved as the model."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging as LightningAveraging
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vitlab.config.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Rate, check_bounds
from vitlab.training.classifier import Classifier


class WeightAveraging(LightningAveraging):
    """Average the weights, exponentially (EMA) or equally (SWA, arXiv 1803.05407); the first update is a copy.

    Args:
        decay: Of the exponential average, which reaches back over about 1 / (1 - decay) updates; None: all updates
            count the same.
        every_n_steps: Steps between two updates.
        per_epoch: Count these steps from the first of each epoch, as torchvision does.
        start_step: Steps in which the average is a copy of the weights; None: `start_fraction` of all steps.
        start_fraction: Fraction of all steps, where `start_step` is None (torchvision: that of the warm-up).
        use_warmup: Raise the decay from 0 as 1 - (1 + updates / `warmup_gamma`) ^ -`warmup_power` (timm's ModelEmaV3).
        warmup_gamma: Updates in units of which the decay rises.
        warmup_power: How fast it rises.
        adjust: Multiply 1 - decay by batch size x `every_n_steps` / epochs (torchvision).
    """

    @check_bounds
    def __init__(
        self,
        *,
        decay: Rate | None = 0.99,
        every_n_steps: PositiveInt = 1,
        per_epoch: bool = False,
        start_step: NonNegativeInt | None = None,
        start_fraction: Rate = 0.0,
        use_warmup: bool = False,
        warmup_gamma: PositiveFloat = 1.0,
        warmup_power: NonNegativeFloat = 2 / 3,
        adjust: bool = False,
    ) -> None:
        super().__init__()
        self.decay, self.every_n_steps, self.per_epoch, self.adjust = decay, every_n_steps, per_epoch, adjust
        self.start_step, self.start_fraction = start_step, start_fraction
        self.use_warmup, self.warmup_gamma, self.warmup_power = use_warmup, warmup_gamma, warmup_power

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        assert isinstance(pl_module, Classifier)
        device = trainer.strategy.root_device  # the module is moved to it later
        model = AveragedModel(pl_module, device=device, use_buffers=True)
        model.n_averaged, self._average_model = model.n_averaged.cpu(), model  # the number is read in each update
        ema: Any = get_ema_multi_avg_fn
        model.multi_avg_fn = lambda *tensors: ema(self.decay_of(int(model.n_averaged)))(*tensors)
        steps, self._epoch = pl_module.total_steps(), pl_module.steps_per_epoch() or pl_module.total_steps()
        self._start = round(self.start_fraction * steps) if self.start_step is None else self.start_step
        self._adjustment = (pl_module.batch_size or 0) * self.every_n_steps * self._epoch / steps

    def decay_of(self, update: int) -> float:
        """The decay of an update; update 0 is the copy."""
        if self.decay is None:
            return update / (update + 1)
        warm = 1 - (1 + update / self.warmup_gamma) ** -self.warmup_power if self.use_warmup else 1.0
        return min(warm, 1 - min(1.0, (1 - self.decay) * self._adjustment) if self.adjust else self.decay)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        step = step_idx if step_idx is None or not self.per_epoch else step_idx % self._epoch
        return step is not None and step % self.every_n_steps == 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        if self._average_model is not None and trainer.global_step <= self._start:
            self._average_model.n_averaged.zero_()  # the next update is a copy again

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave both to a checkpoint that is saved after the training."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self._average_model is not None:
            self._copy_average_to_current(pl_module)
            self._average_model = None


class ScheduleFreeWeightAveraging(WeightAveraging):
    """The average x that `optimizer=schedule_free` keeps of its steps z: y + (1 - 1 / beta1) (z - y) (2405.15682)."""

    def __init__(self) -> None:
        super().__init__(decay=None)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if (model := self._average_model) is None:
            return
        optimizer = trainer.optimizers[0]
        weights = {p: 1 - 1 / group["betas"][0] for group in optimizer.param_groups for p in group["params"]}
        with torch.no_grad():
            for average, parameter in zip(model.module.parameters(), pl_module.parameters(), strict=True):
                z = optimizer.state[parameter].get("z") if parameter in weights else None
                average.copy_(parameter if z is None else parameter.lerp(z, weights[parameter]))
            for copy, buffer in zip(model.module.buffers(), pl_module.buffers(), strict=True):
                copy.copy_(buffer)
