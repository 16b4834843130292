"""When a device's memory is not enough: which part of a batch would fit.

`batch_size` is global, and the gradient of a step doesn't depend on how its images are cut into parts
(`vitlab.data.sampler`, `Classifier.training_step`). So `trainer.accumulate_grad_batches` trades memory for time. Only
what is drawn at random is drawn by part: augmentation, dropout and Mixup's partners are others, from the same
distributions.
"""

import gc
import logging
import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning import Trainer
from torch import nn
from torch.distributed.tensor import DTensor

from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import TrainBatch
from vitlab.data.decode import HOST_OUT_OF_MEMORY, is_out_of_memory
from vitlab.training.classifier import Classifier

log = logging.getLogger(__name__)


class OutOfMemory(RuntimeError):
    """Memory was not enough; the message says what would fit."""


@contextmanager
def explain_out_of_memory(
    trainer: Trainer, module: Classifier, datamodule: DataModule, *, batch_size: int
) -> Iterator[None]:
    """Around a training: raises `OutOfMemory`, which says what fits, in place of an error that says memory is used up.

    The training is over then: finding out takes the module apart.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        device = trainer.strategy.root_device
        in_evaluation = any(
            frame.filename.endswith("evaluation_loop.py") for frame in traceback.extract_tb(error.__traceback__)
        )
        release_memory(error)
        accumulate = trainer.accumulate_grad_batches
        part = math.ceil(batch_size / (trainer.world_size * accumulate))
        if device.type != "cpu" and not is_device_memory(error):
            reason = (
                "the machine's memory, not the device's, is used up; "
                "lower data.num_workers, or start fewer runs beside each other"
            )
        elif in_evaluation:
            each = math.ceil(datamodule.eval_batch_size / trainer.world_size)
            reason = (
                f"{each} images on each device at once are too many to evaluate; "
                f"set data.eval_batch_size={max(1, each // 2) * trainer.world_size}, or less"
            )
        else:
            fitting = fitting_accumulation(trainer, module, datamodule, batch_size=batch_size)
            at_once = f"{part} images on each device at once are too many"
            if fitting is None:
                reason = f"{at_once}; raise trainer.accumulate_grad_batches above {accumulate}, or lower batch_size"
            elif fitting == 0:
                reason = (
                    f"not even one image on {device} at once fits; take a smaller model or image_size, "
                    "trainer.precision=bf16-mixed, or trainer=fsdp on more devices"
                )
            else:
                fits = math.ceil(batch_size / (trainer.world_size * fitting))
                reason = (
                    f"{at_once}; {fits} fit: add trainer.accumulate_grad_batches={fitting} (same batch_size="
                    f"{batch_size}, same training), or lower batch_size to {fits * trainer.world_size * accumulate}"
                )
        raise OutOfMemory(f"out of memory: {reason}") from error


def is_device_memory(error: BaseException) -> bool:
    """Whether an error that says memory is used up means an accelerator's."""
    host = isinstance(error, MemoryError) or any(words in str(error) for words in HOST_OUT_OF_MEMORY)
    return not host


def release_memory(error: BaseException | None) -> None:
    """Lets go of what the frames of an error, and of those it came from, still hold: the graph and its tensors."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def accumulation_candidates(batch_size: int, world_size: int, accumulate: int) -> list[int]:
    """Numbers of accumulated parts to try after `accumulate`: doubled, until a part is a single image."""
    most = batch_size // world_size
    found = []
    while (accumulate := accumulate * 2) < most:
        found.append(accumulate)
    return [*found, most] if most > accumulate // 2 else found


def fitting_accumulation(
    trainer: Trainer, module: Classifier, datamodule: DataModule, *, batch_size: int
) -> int | None:
    """The first number of accumulated parts that fits: 0 where none does, None where it can't be tried out.

    A part is tried out as training does it, on the bare network: no other process takes part.
    """
    if module.make_optimizer is None or any(isinstance(p, DTensor) for p in module.parameters()):
        return None  # a sharded network can't be run by one process
    trainer.strategy.optimizers = []
    detach_hooks(module)
    for accumulate in accumulation_candidates(batch_size, trainer.world_size, trainer.accumulate_grad_batches):
        part = math.ceil(batch_size / (trainer.world_size * accumulate))
        try:
            dry_run(trainer, module, datamodule, part)
            return accumulate
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                log.warning("which part of a batch would fit can't be told: %s", error)
                return None
            release_memory(error)
        finally:
            module.zero_grad()
            gc.collect()
    return 0


def detach_hooks(module: nn.Module) -> None:
    """New parameters on the same storage: DDP's hooks, which talk to other processes, stay with the old ones."""
    made: dict[int, nn.Parameter] = {}
    for inner in module.modules():
        vars(inner).pop("_compiled_call_impl", None)  # eager takes no less memory, and nothing has to be compiled
        for name, old in list(inner.named_parameters(recurse=False)):
            made.setdefault(id(old), nn.Parameter(old.detach(), requires_grad=old.requires_grad))
            old.grad = None
            setattr(inner, name, made[id(old)])


def dry_run(trainer: Trainer, module: Classifier, datamodule: DataModule, part: int) -> None:
    """Two optimizer steps: one makes the optimizer's state, the other accumulates two parts of `part` images beside it.

    Several devices' gradients are averaged in buffers of their size, which are set aside as well. Raises what
    training would raise.
    """
    device = trainer.strategy.root_device
    module.to(device).train()
    parameters = [p for p in module.parameters() if p.requires_grad]
    buffers = [torch.empty_like(p) for p in parameters] if trainer.world_size > 1 else []
    optimizer = module.optimizer()
    for images in (1, part, part):
        batch = datamodule.on_after_batch_transfer(blank_batch(datamodule, images, device), 0)
        with trainer.precision_plugin.train_step_context():
            loss = module.training_step(batch, 0)
        loss.backward()  # type: ignore[no-untyped-call]
        del loss, batch
        if images == 1 and not optimizer.state:
            optimizer.step()
            optimizer.zero_grad()
    optimizer.step()
    del buffers


def blank_batch(datamodule: DataModule, images: int, device: torch.device) -> TrainBatch:
    """A part of a step as the loader gives it, of black images."""
    stored = datamodule._splits["train"].images
    shape = (datamodule.channels, *datamodule.image_size) if stored is None else stored.shape[1:]
    black = torch.zeros(images, *shape, dtype=torch.uint8, device=device)
    return TrainBatch(black, torch.zeros(images, dtype=torch.int64, device=device), images, *datamodule.position())
