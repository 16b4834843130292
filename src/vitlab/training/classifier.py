"""The LightningModule: a network, its loss, its scores and its optimizer."""

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, cast

import torch
from annotated_types import Gt, Le
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from vitlab.config.bounds import NonNegativeFloat, PositiveFloat, PositiveInt, Probability, Rate, check_bounds
from vitlab.data.dataset import EvalBatch, TrainBatch
from vitlab.data.sampler import count_training_steps
from vitlab.models import freezing
from vitlab.training.distillation import Distillation
from vitlab.training.losses import Loss
from vitlab.training.optimizer import OptimizerFactory, build_optimizer, group_settings, group_table
from vitlab.training.schedules import ScheduleFactory, call_schedule
from vitlab.training.scores import Count, Mean, Scores, at_least_float32

Pair = tuple[Tensor, Tensor]  # images and targets, of anybody's loader

log = logging.getLogger(__name__)


class Classifier(LightningModule):
    """Train `network` to classify images into `num_classes` classes.

    Args:
        network: From normalized images [B, C, H, W] to logits [B, classes].
        num_classes: Of the data.
        optimizer: Called with parameter groups; None if nothing is trained.
        schedule: Called with the optimizer and the steps of the training, and with those of an epoch if it takes them.
        batch_size: Images of an optimizer step, over all devices.
        loss: softmax, sigmoid (summed over the classes, big_vision), bce (its mean, DeiT III), or focal: see `losses`.
        label_smoothing: The weight of the uniform distribution in the targets.
        target_threshold: Targets above it become 1, others 0, after Mixup; 0.0 in DeiT III. Not for softmax.
        class_weights: Factor of each class in the loss, or `balanced`: inverse to its number of training images. The
            mean over the images is unweighted, as in timm; torch divides by the sum of the weights.
        focal_gamma: Exponent of focal loss; 0 is sigmoid.
        teacher: A network to learn from, with the data's classes: a run, `timm:NAME`, `hf:NAME`, a file or a folder.
        distillation: Learn the teacher's probabilities (soft), or its most probable class (hard): see `distillation`.
        distillation_alpha: Weight of the teacher's part of the loss; the labels' is 1 minus it.
        distillation_temperature: Divides both logits of soft distillation.
        layer_decay: The rate of a ViT's layer i is `lr` x `layer_decay` ^ (depth + 1 - i): embeddings are layer 0,
            blocks 1 .. depth, the head depth + 1 (BEiT, arXiv 2106.08254; layers as in timm).
        head_lr_factor: The head's rate, in units of `lr`.
        base_batch_size: Images per step for which `optimizer.lr` is meant (256 in MAE, 512 in DeiT): the peak is `lr` x
            `batch_size` / `base_batch_size`. A schedule's absolute rates aren't scaled. None: the peak is `lr`.
        decay_all: Weight decay of all parameters (as in torchvision), not of matrices and convolution kernels alone.
        adaptive_clip: Clip the gradient of each output unit to this part of the norm of its weights, except for the
            head (AGC, arXiv 2102.06171; 0.01 there), after `trainer.gradient_clip_val`, which null turns off.
        freeze: `all-but-head`, or shell patterns for names of parameters or of modules (`patch_embed`,
            `blocks.[0-5]`, `*.norm?.bias`), in order; `!` unfreezes (`["*", "!blocks.11", "!head"]`).
        metrics: Further torchmetrics by name, updated with logits [B, classes] and targets [B], and logged as
            `val/NAME` and `test/NAME`. Each computes one number.
    """

    @check_bounds
    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
        batch_size: int | None = None,
        loss: Literal["softmax", "sigmoid", "bce", "focal"] = "softmax",
        label_smoothing: Rate = 0.0,
        target_threshold: Rate | None = None,
        class_weights: tuple[NonNegativeFloat, ...] | Literal["balanced"] | None = None,
        focal_gamma: NonNegativeFloat = 2.0,
        teacher: str | None = None,
        distillation: Literal["none", "soft", "hard"] = "none",
        distillation_alpha: Probability = 0.5,
        distillation_temperature: PositiveFloat = 1.0,
        layer_decay: Annotated[float, Gt(0), Le(1), "1 is off"] = 1.0,
        head_lr_factor: PositiveFloat = 1.0,
        base_batch_size: PositiveInt | None = None,
        decay_all: bool = False,
        adaptive_clip: PositiveFloat | None = None,
        freeze: str | tuple[str, ...] = (),
        metrics: Mapping[str, Metric | None] | None = None,
    ) -> None:
        super().__init__()
        if freeze:
            freezing.freeze(network, freeze)
            warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training")
        self.network, self.num_classes = network, num_classes
        self.losses = Loss(loss, num_classes, label_smoothing, target_threshold, class_weights, focal_gamma)
        self.distillation = Distillation(distillation, teacher, distillation_alpha, distillation_temperature)
        self.make_optimizer, self.make_schedule = optimizer, schedule
        if base_batch_size and not batch_size:
            raise ValueError(f"classifier.base_batch_size={base_batch_size} needs batch_size")
        self.batch_size, self.adaptive_clip = batch_size, adaptive_clip
        self.grouping = {"layer_decay": layer_decay, "head_lr_factor": head_lr_factor, "decay_all": decay_all}
        self.grouping["scale"] = batch_size / base_batch_size if batch_size and base_batch_size else 1.0
        self.split = "test"  # the test loop's; `evaluate.py` runs it on any split; raw: without averaging
        self.configured: list[dict[str, Any]] = []  # options of each parameter group, except its rate
        self.gradient_norm: Tensor | None = None  # of the last step, before clipping
        self.monitored = False  # by a Monitor, which logs at the right steps
        self.accepted: Tensor | None = None  # bool [labels, classes], if a label of the test stands for several classes
        self.identity: dict[str, Any] = {}  # the run's, for its checkpoints (`vitlab.jobs.identity`)
        # called before each optimizer step with the norm of its (scaled) gradients; may drop the gradients, or raise
        self.before_step: Callable[[Classifier, Optimizer, Tensor], None] | None = None
        own = {name: metric for name, metric in (metrics or {}).items() if metric is not None}
        self.scores = Scores({f"{s}_scores": self.build_scores(s, own) for s in ("train", "val", "test", "raw")})
        self.scores["train_loss"] = Mean(finite_only=True)
        self.train()

    def train(self, mode: bool = True) -> "Classifier":
        """Set training mode, except for frozen parts, or evaluation mode."""
        super().train(mode)
        if mode:
            freezing.set_frozen_to_eval(self.network)
        return self

    @property
    def train_loss(self) -> Mean:
        """The mean loss of the training images since the last row of `metrics.csv`."""
        return cast(Mean, self.scores["train_loss"])

    def build_scores(self, split: str, own: Mapping[str, Metric]) -> MetricCollection:
        """Exact sums over the images of all ranks, each of which is seen once (`vitlab.data.sampler`)."""
        metrics: dict[str, Any] = {
            "acc": MulticlassAccuracy(self.num_classes, average="micro", validate_args=False),
            "loss": Mean(),
            "correct": Count(),
            "count": Count(),
        }
        if self.num_classes > 5:
            metrics["acc5"] = MulticlassAccuracy(self.num_classes, top_k=5, average="micro", validate_args=False)
        if taken := sorted(metrics.keys() & own.keys()):
            raise ValueError(f"metrics has {', '.join(taken)}, which is measured anyway; use another name")
        metrics |= {name: metric.clone() for name, metric in own.items()}
        return MetricCollection(metrics, prefix=f"{split}/", compute_groups=False)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.network(images))

    def batch_losses(self, batch: TrainBatch) -> Tensor:
        """The loss per image [B], with the teacher's part."""
        if self.distillation.kind == "none":
            return self.losses(self(batch.images), batch.targets)
        self.network.distilled_training = True  # type: ignore[assignment]  # as in timm: both heads' logits
        logits = self(batch.images)
        self.network.distilled_training = False  # type: ignore[assignment]
        first, second = (logits, logits) if isinstance(logits, Tensor) and logits.ndim == 2 else logits
        return self.distillation.losses(self.losses(first, batch.targets), second, batch.images)

    def training_step(self, batch: TrainBatch | Pair, batch_idx: int) -> Tensor:
        """A micro-batch's share of the mean loss over all images of the step."""
        ranks, accumulated = self.trainer.world_size, self.trainer.accumulate_grad_batches
        if not isinstance(batch, TrainBatch):  # of loaders that aren't vitlab's, whose batches are equally large
            batch = TrainBatch(*batch, len(batch[0]) * ranks * accumulated, self.current_epoch, batch_idx)
        losses = self.batch_losses(batch)
        self.train_loss.update(losses.detach())
        if not self.monitored:
            self.log("train/loss", losses.detach().mean(), prog_bar=True, logger=self.own_log(), batch_size=len(losses))
        return losses.sum() * (ranks * accumulated / batch.count)  # Lightning divides by both

    def validation_step(self, batch: EvalBatch | Pair, batch_idx: int) -> None:
        self.evaluation_step(batch, "val")

    def test_step(self, batch: EvalBatch | Pair, batch_idx: int) -> dict[str, Tensor]:
        """Returns the logits and labels."""
        return self.evaluation_step(batch, self.split)

    def predict_step(self, batch: EvalBatch | Pair | Tensor, batch_idx: int) -> Tensor:
        """Probabilities [B, classes] of a batch, or of its images alone."""
        logits = at_least_float32(self(batch if isinstance(batch, Tensor) else batch[0]))
        return logits.softmax(dim=1) if self.losses.name == "softmax" else logits.sigmoid()

    def evaluation_step(self, batch: EvalBatch | Pair, split: str) -> dict[str, Tensor]:
        """Add a batch to the sums of `split`, logged at the end of the loop."""
        batch = EvalBatch(*batch)
        logits = at_least_float32(self(batch.images))
        if self.accepted is not None:  # the most probable of the right ones
            accepted = self.accepted[batch.targets.cpu()].to(logits.device)
            batch = batch._replace(targets=logits.masked_fill(~accepted, -torch.inf).argmax(dim=1))
        scores = self.scores[f"{split}_scores"]
        assert isinstance(scores, MetricCollection)
        for name, metric in scores.items(keep_base=True, copy_state=False):
            if name == "loss":
                metric.update(F.cross_entropy(logits, batch.targets, reduction="none"))
            elif name == "correct":
                metric.update(logits.argmax(dim=1) == batch.targets)
            elif name == "count":
                metric.update(torch.ones_like(batch.targets))
            elif len(batch.targets):  # none of a rank without images, which other metrics can't be updated with
                metric.update(logits, batch.targets)
            # to `callback_metrics` and the progress bar; Monitor logs it to the loggers, at the right step
            shown: Any = {"prog_bar": split == "val" and name in ("acc", "loss"), "logger": self.own_log()}
            self.log(f"{split}/{name}", metric, on_step=False, on_epoch=True, **shown)
        return {"logits": logits, "labels": batch.targets}

    def own_log(self) -> bool:
        """Whether scores are sent to the loggers from here, without a Monitor."""
        return not self.monitored and self._trainer is not None and bool(self.trainer.loggers)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vitlab"] = self.identity

    def configure_model(self) -> None:
        """Shard the network block by block under FSDP2 (`trainer=fsdp`)."""
        sharded = any(isinstance(p, DTensor) for p in self.network.parameters())
        if sharded or self._trainer is None or not isinstance(self.trainer.strategy, ModelParallelStrategy):
            return  # no Trainer: under `load_from_checkpoint`
        from torch.distributed.fsdp import fully_shard

        assert self.device_mesh is not None
        for module in [*getattr(self.network, "blocks", []), self.network]:
            fully_shard(module, mesh=self.device_mesh["data_parallel"])

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by norm with one pass over the gradients, and keep the norm for the log.

        Lightning's own clipping, which refuses fused optimizers under every mixed precision, is used with a gradient
        scaler (16-mixed) alone, whose gradients are still scaled here.
        """
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        norm = gradient_norm([p.grad for p in parameters if p.grad is not None])
        full_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not scaled:
            self.gradient_norm = full_norm
        if self.before_step is not None:
            self.before_step(self, optimizer, full_norm)
        if scaled or gradient_clip_algorithm not in (None, "norm"):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        if self.adaptive_clip is not None:
            from timm.utils.agc import adaptive_clip_grad

            body = [p for n, p in self.network.named_parameters() if not freezing.is_head_parameter(self.network, n)]
            adaptive_clip_grad(body, self.adaptive_clip)  # type: ignore[no-untyped-call]

    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of an epoch, if the data module counts them."""
        return getattr(getattr(self.trainer, "datamodule", None), "steps_per_epoch", None)

    def total_steps(self) -> int:
        """Optimizer steps of the training. Lightning's own count would start the loader's workers too early."""
        if (steps_per_epoch := self.steps_per_epoch()) is None:
            return int(self.trainer.estimated_stepping_batches)
        return count_training_steps(self.trainer.max_steps, self.trainer.max_epochs, steps_per_epoch)

    def build_optimizer(self) -> Optimizer:
        assert self.make_optimizer is not None
        return build_optimizer(self.make_optimizer, self.network, **self.grouping)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self.make_optimizer is None:
            return None
        optimizer = self.build_optimizer()
        for line in group_table(self.network, optimizer):
            log.info(line)
        if (scale := self.grouping["scale"]) != 1:
            log.info("peak learning rates: optimizer.lr x %g, which is batch_size / classifier.base_batch_size", scale)
        if self.make_schedule is None:
            self.configured = group_settings(optimizer)
            return optimizer
        steps = {"total_steps": self.total_steps(), "steps_per_epoch": self.steps_per_epoch()}
        schedule = call_schedule(self.make_schedule, optimizer, **steps)
        self.configured = group_settings(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        if self.distillation.kind != "none" and self.distillation.teacher is None:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.distillation.load_teacher(classes=data.source.classes, mean=data.mean, std=data.std)

    def on_train_start(self) -> None:
        """Let the configuration's rates and decay replace those of a checkpoint."""
        for optimizer in self.trainer.optimizers:
            for group, configured in zip(optimizer.param_groups, self.configured, strict=True):
                group.update(configured)
        for schedule in (configuration.scheduler for configuration in self.trainer.lr_scheduler_configs):
            if isinstance(schedule, LambdaLR):  # vitlab's
                schedule.base_lrs = [group["initial_lr"] for group in schedule.optimizer.param_groups]
                for group, factor in zip(schedule.optimizer.param_groups, schedule.lr_lambdas, strict=True):
                    group["lr"] = group["initial_lr"] * factor(schedule.last_epoch)


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients together, in float32 or better."""
    if all(torch.finfo(gradient.dtype).bits >= 32 for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    return cast(Tensor, torch.linalg.vector_norm(torch.stack(norms)))


def logged_scores(trainer: Trainer, split: str) -> dict[str, float]:
    """Scores of the last evaluation loop on a split, by their logged names; counts are integers."""
    scores = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(f"{split}/")}
    return {k: int(v) if k.endswith(("/correct", "/count")) else v for k, v in scores.items()}
