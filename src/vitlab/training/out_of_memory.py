"""Explain an out-of-memory error: the largest micro-batch that fits.

The gradient of a step doesn't depend on its division into micro-batches (`Classifier.training_step`), so
`trainer.accumulate_grad_batches` trades memory for time. Random draws are made per micro-batch.
"""

import gc
import logging
import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, takewhile

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
    """Memory is used up; the message names settings that fit."""


@contextmanager
def explain_out_of_memory(
    trainer: Trainer, module: Classifier, datamodule: DataModule, *, batch_size: int
) -> Iterator[None]:
    """Raise `OutOfMemory`, with settings that fit, for an out-of-memory error in the block.

    The module can't be trained afterwards: the search modifies it.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        in_evaluation = any(frame.filename.endswith("evaluation_loop.py") for frame in frames)
        release_memory(error)
        if trainer.strategy.root_device.type != "cpu" and not is_device_memory(error):
            reason = "the host's memory, not the device's, is used up; lower data.num_workers, or run fewer jobs"
        elif in_evaluation:
            each = math.ceil(datamodule.eval_batch_size / trainer.world_size)
            remedy = f"set data.eval_batch_size={max(1, each // 2) * trainer.world_size}, or less"
            reason = f"{each} images on each device at once are too many to evaluate; {remedy}"
        else:
            reason = explain_training(trainer, module, datamodule, batch_size=batch_size)
        raise OutOfMemory(f"out of memory: {reason}") from error


def explain_training(trainer: Trainer, module: Classifier, datamodule: DataModule, *, batch_size: int) -> str:
    """The size of the micro-batch that is too large, and of the first that fits, by trying."""
    accumulate, ranks = trainer.accumulate_grad_batches, trainer.world_size
    at_once = f"{math.ceil(batch_size / (ranks * accumulate))} images on each device at once are too many"
    unknown = f"{at_once}; raise trainer.accumulate_grad_batches above {accumulate}, or lower batch_size"
    if module.make_optimizer is None or any(isinstance(p, DTensor) for p in module.parameters()):
        return unknown  # one process can't run a sharded network
    trainer.strategy.optimizers = []
    detach_hooks(module)
    for fitting in accumulation_candidates(batch_size, ranks, accumulate):
        fits = math.ceil(batch_size / (ranks * fitting))
        try:
            dry_run(trainer, module, datamodule, fits)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                log.warning("no search for a micro-batch that fits: %s", error)
                return unknown
            module.zero_grad()
            release_memory(error)
            continue
        remedy = f"add trainer.accumulate_grad_batches={fitting} (same batch_size={batch_size}, same training)"
        return f"{at_once}; {fits} fit: {remedy}, or lower batch_size to {fits * ranks * accumulate}"
    remedy = "take a smaller model or image_size, trainer.precision=bf16-mixed, or trainer=fsdp on more devices"
    return f"not even one image on {trainer.strategy.root_device} at once fits; {remedy}"


def is_device_memory(error: BaseException) -> bool:
    """Whether an out-of-memory error concerns an accelerator's memory."""
    return not isinstance(error, MemoryError) and not any(words in str(error) for words in HOST_OUT_OF_MEMORY)


def release_memory(error: BaseException | None) -> None:
    """Release the tensors in the frames of an error and of its causes."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def accumulation_candidates(batch_size: int, world_size: int, accumulate: int) -> list[int]:
    """Numbers of micro-batches to try after `accumulate`: doubled, until a micro-batch is a single image."""
    most = batch_size // world_size
    doubled = takewhile(lambda parts: parts < most, (accumulate * 2**times for times in count(1)))
    return [*doubled, most] if most > accumulate else []


def detach_hooks(module: nn.Module) -> None:
    """Replace parameters by new ones on the same storage, without DDP's hooks, which wait for other ranks."""
    new: dict[int, nn.Parameter] = {}
    for inner in module.modules():
        vars(inner).pop("_compiled_call_impl", None)  # eager needs as much memory or more
        for name, old in list(inner.named_parameters(recurse=False)):
            new.setdefault(id(old), nn.Parameter(old.detach(), requires_grad=old.requires_grad))
            old.grad = None
            setattr(inner, name, new[id(old)])


def dry_run(trainer: Trainer, module: Classifier, datamodule: DataModule, part: int) -> None:
    """Take an optimizer step, which creates its state, and one that accumulates two parts of `part` images.

    Allocates DDP's buffers of gradients as well. Raises the errors of training.
    """
    device = trainer.strategy.root_device
    module.to(device).train()
    parameters = [p for p in module.parameters() if p.requires_grad]
    buffers = [torch.empty_like(p) for p in parameters] if trainer.world_size > 1 else []
    optimizer = module.build_optimizer()
    stored = datamodule._splits["train"].stored
    size = datamodule.train_size(datamodule.position()[0])
    shape = (datamodule.channels, *size) if stored is None else stored.shape[1:]
    for images in (1, part, part):
        black = torch.zeros(images, *shape, dtype=torch.uint8, device=device)
        targets = torch.zeros(images, dtype=torch.int64, device=device)
        loaded = TrainBatch(black, targets, images, *datamodule.position())
        batch = datamodule.on_after_batch_transfer(loaded, 0)
        with trainer.precision_plugin.train_step_context():
            loss = module.training_step(batch, 0)
        loss.backward()  # type: ignore[no-untyped-call]
        del loss, batch, loaded, black
        if images == 1 and not optimizer.state:
            optimizer.step()
            optimizer.zero_grad()
    optimizer.step()
    del buffers
