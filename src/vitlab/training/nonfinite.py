"""Stop or skip a step whose loss or gradient isn't finite, and capture it for `src/replay.py`.

captures/step-000012/    the twelfth step
  info.json              epoch and step (from 1), losses, gradient norm, learning rates, precision, versions
  config.yaml            of the run
  weights.pt             the network's unsharded state before the step
  rank0/parts.pt         a rank's micro-batches: the network's inputs, targets, and the random state before each
"""

import importlib.metadata
import json
import logging
import math
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from vitlab.config import overrides, paths
from vitlab.config.bounds import NonNegativeInt, check_bounds
from vitlab.config.schema import Node
from vitlab.data.dataset import TrainBatch
from vitlab.runs.folder import CONFIG
from vitlab.training.classifier import Classifier
from vitlab.training.optimizer import logged_rates
from vitlab.training.random_state import random_state

INFO, WEIGHTS, PARTS = "info.json", "weights.pt", "parts.pt"
WRITE_ERRORS = (OSError, RuntimeError)  # RuntimeError is torch.save's on a full disk

log = logging.getLogger(__name__)


class NonFiniteError(FloatingPointError):
    """A loss or gradient is infinite or NaN, and no more steps may be skipped."""


class MicroBatch(NamedTuple):
    """A micro-batch after augmentation, the random state before its forward pass, and its loss (unscaled)."""

    batch: TrainBatch
    random: dict[str, Any]
    loss: Tensor


class NonFinite(Callback):
    """Check each step's losses and gradient norm before the optimizer's update, with one wait for the device.

    A gradient scaler (16-mixed) skips nonfinite gradients on its own and halves its scale. They count here only once
    the scale is below 1, when scaling is no longer the cause; losses always count.

    Args:
        on_nonfinite: `stop` ends the run with a `NonFiniteError`; `skip` skips the step: weights, moments and decay
            don't change, the step counts, and `train/skipped_steps` is logged.
        max_skipped_steps: Steps of a run that may be skipped; the next one ends it.
        max_captures: Skipped steps that are captured; the one that ends the run always is.
        dirpath: The folder of the captures.
    """

    @check_bounds
    def __init__(
        self,
        *,
        dirpath: str,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        max_skipped_steps: NonNegativeInt = 10,
        max_captures: NonNegativeInt = 3,
    ) -> None:
        self.folder, self.on_nonfinite = Path(dirpath), on_nonfinite
        self.max_skipped_steps, self.max_captures = max_skipped_steps, max_captures
        self.skipped = 0
        self._logged = 0
        self._batches: list[tuple[TrainBatch, dict[str, Any]]] = []  # of the current step
        self._losses: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = self._logged = state_dict["skipped"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.before_step = self.before_step
        self._batches, self._losses = [], []

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.before_step = None
        self._batches, self._losses = [], []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: TrainBatch, *_: Any) -> None:
        self._batches.append((batch, random_state(trainer.strategy.root_device)))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.skipped > self._logged:
            self._logged = self.skipped
            for logger in trainer.loggers:
                logger.log_metrics({"train/skipped_steps": self.skipped}, step=trainer.global_step)

    def before_step(self, module: Classifier, optimizer: Optimizer, norm: Tensor) -> None:
        """Check all gradients of a step; drop them to skip the step, raise to stop the run."""
        trainer, losses = module.trainer, torch.stack([loss.float() for loss in self._losses])
        batches, self._batches, self._losses = self._batches, [], []
        flags = torch.stack([~losses.isfinite().all(), ~norm.isfinite()]).float()
        if trainer.world_size > 1:
            flags = trainer.strategy.reduce(flags, reduce_op="sum")
        bad_loss, bad_norm = flags.tolist()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale() if bad_loss or bad_norm else 1.0
        if not bad_loss and (not bad_norm or (scaler is not None and scale >= 1)):
            return
        parts = [MicroBatch(*both, loss) for both, loss in zip(batches, losses / scale, strict=True)]
        stops = self.on_nonfinite == "stop" or self.skipped >= self.max_skipped_steps
        info = capture_info(module, optimizer, parts, norm=norm, scale=scale)
        where = self._capture(module, parts, info) if stops or self.skipped < self.max_captures else ""
        rates = ", ".join(f"{value:.3g}" for value in dict.fromkeys(info["learning_rates"].values()))
        loss = sum(float(loss) for of_rank in info["losses"] for loss in of_rank) / len(info["losses"])
        what = f"step {info['step']} (epoch {info['epoch']}): loss {loss:.5g}, "
        what += f"gradient norm {info['gradient_norm']}, learning rate {rates}"
        if stops:
            trainer.strategy.barrier("capture")  # no rank may end the job while another writes
            remedy = "set callbacks.nonfinite.on_nonfinite=skip to skip such steps"
            if self.on_nonfinite == "skip":
                limit = f"callbacks.nonfinite.max_skipped_steps={self.max_skipped_steps}"
                remedy = f"{self.skipped} steps were skipped before; raise {limit} to skip more"
            raise NonFiniteError(f"{what}; {remedy}{where}")
        self.skipped += 1
        log.warning("%s; skipped, %d of at most %d%s", what, self.skipped, self.max_skipped_steps, where)
        # an optimizer skips parameters without a gradient; a fused one needs gradients, and the scaler skips its step
        fused = scaler is not None and bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        for parameter in module.parameters():
            if not fused:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.fill_(math.nan)

    def _capture(self, module: Classifier, parts: list[MicroBatch], info: Node) -> str:
        """Write a capture; a sentence with the command that replays it, or with the reason why it can't be written."""
        folder = self.folder / f"step-{info['step']:06}"
        try:
            write_capture(folder, module, parts, info)
        except WRITE_ERRORS as error:
            return f". It could not be captured in {folder}: {error}"
        wrong = next((rank for rank, losses in enumerate(info["losses"]) if not is_finite(losses)), 0)
        rank = f" rank={wrong}" if wrong else ""
        path = folder.absolute()
        value = str(path) if re.fullmatch(r"[\w/.-]+", str(path)) else overrides.hydra_quote(path)
        return f". Captured; see why: {paths.COMMAND.format('replay')} {shlex.quote(f'capture={value}')}{rank}"


def capture_info(
    module: Classifier, optimizer: Optimizer, parts: Sequence[MicroBatch], *, norm: Tensor, scale: float
) -> Node:
    """The content of `info.json`, with the losses of all ranks; collective."""
    trainer = module.trainer
    mine = torch.stack([part.loss for part in parts])
    every = module.all_gather(mine) if trainer.world_size > 1 else mine[None]
    assert isinstance(every, Tensor)
    batch = parts[0].batch
    return {
        "step": trainer.global_step + 1,
        "epoch": batch.epoch + 1,
        "losses": [[json_number(loss) for loss in of_rank] for of_rank in every.tolist()],  # [rank][micro-batch]
        "gradient_norm": json_number(norm.item()),
        "learning_rates": {name: float(rate) for name, rate in logged_rates(optimizer).items()},
        "gradient_scale": scale,
        "precision": str(trainer.precision),
        "ranks": trainer.world_size,
        "accumulated": trainer.accumulate_grad_batches,
        "num_classes": module.num_classes,
        "distillation": module.distillation.data,
        "class_weights": module.losses.class_weights,
        "in_channels": batch.images.shape[1],
        "device": str(trainer.strategy.root_device.type),
        "threads": torch.get_num_threads(),
        "versions": {p: importlib.metadata.version(p) for p in ("torch", "lightning", "timm")},
    }


def write_capture(folder: Path, module: Classifier, parts: Sequence[MicroBatch], info: Node) -> None:
    """Write a step's capture; collective. The folder gets its name once it is complete."""
    trainer, unfinished = module.trainer, folder.with_name(f".{folder.name}")
    if trainer.is_global_zero:
        shutil.rmtree(unfinished, ignore_errors=True)
    trainer.strategy.barrier("empty")
    mine = unfinished / f"rank{trainer.global_rank}"
    failure: Exception | None = None
    try:
        mine.mkdir(parents=True)
        content = [  # plain data, which loads with `weights_only=True` on any device
            {"batch": {k: v.cpu() if isinstance(v, Tensor) else v for k, v in part.batch._asdict().items()}}
            | {"random": part.random, "loss": part.loss.cpu()}
            for part in parts
        ]
        torch.save(content, mine / PARTS)
    except WRITE_ERRORS as error:
        failure = error  # raised below: the other ranks wait for this one
    weights = {  # collective: sharded tensors are gathered
        k: (v.full_tensor() if isinstance(v, DTensor) else v).detach().cpu()
        for k, v in module.network.state_dict().items()
    }
    try:
        if trainer.is_global_zero and failure is None:
            torch.save(weights, unfinished / WEIGHTS)
            if (config := Path(trainer.default_root_dir) / CONFIG).is_file():
                shutil.copyfile(config, unfinished / CONFIG)
            (unfinished / INFO).write_text(json.dumps(info, indent=2))
    except WRITE_ERRORS as error:
        failure = error
    trainer.strategy.barrier("written")
    if failure is not None:
        raise failure
    if trainer.is_global_zero:
        shutil.rmtree(folder, ignore_errors=True)  # of the same step before a resume
        unfinished.rename(folder)


def read_parts(folder: Path, rank: int) -> list[MicroBatch]:
    """A rank's micro-batches, on the CPU."""
    parts = torch.load(folder / f"rank{rank}" / PARTS, map_location="cpu", weights_only=True)
    return [MicroBatch(TrainBatch(**part["batch"]), part["random"], part["loss"]) for part in parts]


def read_weights(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
    return weights


def json_number(value: float) -> float | str:
    """A number for JSON, with `nan` and `inf` as strings."""
    return value if math.isfinite(value) else str(value)


def is_finite(losses: Sequence[float | str]) -> bool:
    return not any(isinstance(loss, str) for loss in losses)
