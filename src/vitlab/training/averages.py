"""Averages of the weights over steps, which are validated, tested and saved as the model."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging as LightningAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from vitlab.config.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Rate, check_bounds
from vitlab.training.classifier import Classifier

WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def own(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor that FSDP2 may have sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_complete(complete: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Copy complete tensors into those of a state dict, which may be sharded; collective."""
    for name, tensor in state.items():
        full = complete[name].to(tensor.device)
        if isinstance(tensor, DTensor):
            full = distribute_tensor(full, tensor.device_mesh, tensor.placements)
        tensor.copy_(full)


class WeightAveraging(LightningAveraging):
    """Average the weights in float32, exponentially (EMA) or equally (SWA, arXiv 1803.05407); first comes a copy.

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
        self._average_model: Any = None  # by the names of the state dict, in a fit
        self._raw: dict[str, Tensor] | None = None  # the weights, while their averages are validated
        self._loaded: tuple[dict[str, Tensor], int] | None = None  # a checkpoint's average

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        assert isinstance(pl_module, Classifier)
        steps, self._epoch = pl_module.total_steps(), pl_module.steps_per_epoch() or pl_module.total_steps()
        self._start = round(self.start_fraction * steps) if self.start_step is None else self.start_step
        if self.adjust:
            if not pl_module.batch_size:
                raise ValueError("callbacks.ema.adjust=true needs the batch_size of the Classifier")
            self._adjustment = pl_module.batch_size * self.every_n_steps * self._epoch / steps

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights on their device, in their precision and shards, or with the checkpoint's average."""
        state, self._updates = pl_module.state_dict().items(), 0
        self._average_model = {n: t.to(dtype=WIDE.get(t.dtype, t.dtype), copy=True) for n, t in state}
        if self._loaded is not None:
            (complete, self._updates), self._loaded = self._loaded, None
            copy_complete(complete, self._average_model)

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
        step = trainer.global_step
        if step > self._latest_update_step and self.should_update(step - 1):
            self.update(pl_module)
            self._latest_update_step = step
        if step <= self._start:
            self._updates = 0  # the next update is a copy again

    def update(self, module: LightningModule) -> None:
        averages, values = list[Tensor](), list[Tensor]()
        for name, tensor in module.state_dict().items():
            average = own(self._average_model[name])
            if self._updates and average.is_floating_point():
                averages.append(average)
                values.append(own(tensor).to(average.dtype))
            else:
                average.copy_(own(tensor))
        if averages:
            torch._foreach_lerp_(averages, values, 1 - self.decay_of(self._updates))
        self._updates += 1

    def _swap_models(self, pl_module: LightningModule) -> None:
        """Replace the weights by their averages, or put them back, at the start and end of a validation."""
        raw, self._raw = self._raw, None
        if raw is None:
            self._raw = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
        self._copy_average_to_current(pl_module, raw)

    def _copy_average_to_current(self, pl_module: LightningModule, state: Mapping[str, Tensor] | None = None) -> None:
        for name, tensor in pl_module.state_dict().items():
            tensor.copy_((state or self._average_model)[name])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as `state_dict`, and the weights as `current_model_state`, as Lightning does."""
        if self._average_model is not None:
            checkpoint["current_model_state"], average = checkpoint["state_dict"], dict(self._average_model)
            for name, tensor in average.items():
                if isinstance(tensor, DTensor):
                    full = tensor.full_tensor()
                    average[name] = full.cpu() if trainer.is_global_zero else full.new_empty(0)
            checkpoint |= {"state_dict": average, "averaging_state": {"n_averaged": torch.tensor(self._updates)}}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Load both; the average waits for `on_fit_start`, which FSDP2 has behind it."""
        if trainer.state.fn == TrainerFn.FITTING and "averaging_state" in checkpoint:
            self._loaded = checkpoint["state_dict"], int(checkpoint["averaging_state"]["n_averaged"])
            copy_complete(checkpoint["current_model_state"], pl_module.state_dict())
        if self._average_model is not None:
            self.on_fit_start(trainer, pl_module)

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
        optimizer = trainer.optimizers[0]
        weights = {p: 1 - 1 / group["betas"][0] for group in optimizer.param_groups for p in group["params"]}
        self._updates = 0
        self.update(pl_module)
        for name, parameter in pl_module.named_parameters():
            if parameter in weights and (z := optimizer.state[parameter].get("z")) is not None:
                own(self._average_model[name]).copy_(own(parameter.detach()).lerp(own(z), weights[parameter]))
