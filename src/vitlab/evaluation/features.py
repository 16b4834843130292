"""Compute the features of a frozen network for all images of a split, on any number of devices, and cache them.

FOLDER/SPLIT-KEY.pt has them in the order of the split; KEY is a digest of all that they depend on. Each rank writes its
share next to it, and the first one merges them, so that no process holds more than one copy.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from vitlab.config.schema import Node
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import EvalBatch
from vitlab.data.sampler import eval_share
from vitlab.data.scan import SplitName
from vitlab.data.source import Split
from vitlab.models import freezing
from vitlab.storage import safe_load
from vitlab.storage.atomic import atomic_path

Kind = Literal["pooled", "cls", "mean", "both"]

log = logging.getLogger(__name__)


class Features(NamedTuple):
    rows: Tensor  # float32 [N, D]
    labels: Tensor  # int64 [N]


class Extractor(LightningModule):
    """Collects the features of a test loop's images.

    `kind`: `pooled` is the head's input, of any network; of a ViT also the [cls] token, the mean of the patch tokens,
    or `both` concatenated, each after the last norm. Raises `ValueError` if the network has no such tokens.
    """

    def __init__(self, network: nn.Module, kind: Kind) -> None:
        super().__init__()
        prefix = getattr(network, "prefix", getattr(network, "num_prefix_tokens", None))
        if kind not in get_args(Kind):
            raise ValueError(f"kind={kind!r} is not one of {', '.join(get_args(Kind))}")
        if kind != "pooled" and prefix is None:
            raise ValueError(f"probe.features={kind}: {type(network).__name__} has no tokens; use pooled")
        if kind in ("cls", "both") and getattr(network, "cls_token", None) is None:
            raise ValueError(f"probe.features={kind}: the network has no [cls] token; use mean or pooled")
        self.network, self.kind, self.prefix = network, kind, prefix or 0
        self.parts: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, D] of normalized images [B, C, H, W]."""
        network: Any = self.network
        if self.kind == "pooled":
            inputs: list[Tensor] = []
            head = network.get_submodule(freezing.head_names(network)[0])
            with head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0])):
                network(images)
            return inputs[0].flatten(1)
        tokens = network.forward_features(images)
        cls, mean = tokens[:, 0], tokens[:, self.prefix :].mean(dim=1)
        chosen = {"cls": [cls], "mean": [mean], "both": [cls, mean]}[self.kind]
        return torch.cat([network.fc_norm(part) for part in chosen], dim=1)

    def test_step(self, batch: EvalBatch, batch_idx: int) -> None:
        self.parts.append(self(batch.images).float().cpu())


def extract(
    network: nn.Module,
    datamodule: DataModule,
    trainer: Trainer,
    *,
    kind: Kind,
    splits: Sequence[SplitName],
    model: Node,
    folder: Path,
) -> dict[SplitName, Path]:
    """Compute the features of the splits that `folder` doesn't have. Returns their files. Every rank calls it.

    The files are complete when it returns on the first rank. `model` is the network's configuration node.
    """
    extractor, images = Extractor(network, kind), datamodule.fingerprint()
    depends: Node = {"weights": digest(network.state_dict()), "model": model, "features": kind}
    depends |= {"image_size": datamodule.image_size, "preprocessing": datamodule.preprocessing()}
    depends |= {"precision": trainer.precision}
    files: dict[SplitName, Path] = {}
    for split in splits:
        key = json.dumps({**depends, "images": images[f"{split} digest"]}, sort_keys=True, default=str)
        files[split] = folder / f"{split}-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.pt"
    # equal on all ranks: a new file is complete only after each rank's share
    missing = [split for split, file in files.items() if not file.is_file() or safe_load.corruption(file)]
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        if split not in missing:
            log.info("features of %s: from %s", split, files[split])
            continue
        datamodule.tested, extractor.parts = split, []
        trainer.test(extractor, datamodule, verbose=False)
        share = torch.cat(extractor.parts) if extractor.parts else torch.empty(0)
        gather_rows(trainer, share, datamodule.split(split), files[split])
        if trainer.is_global_zero:
            log.info("features of %s: %d images, written to %s", split, len(datamodule.split(split)), files[split])
    return files


def gather_rows(trainer: Trainer, rows: Tensor, split: Split, file: Path) -> None:
    """Merge the ranks' rows, of the images of their `eval_share`, into one file. Every rank calls it."""
    torch.save(rows, share_file(file, trainer.global_rank))
    trainer.strategy.barrier(file.name)
    if trainer.is_global_zero:
        merge_shares(file, trainer.world_size, len(split), in_blocks=split.blocks is not None)


def share_file(file: Path, rank: int) -> Path:
    return file.with_name(f".{file.name}.rank{rank}")


def merge_shares(file: Path, ranks: int, count: int, *, in_blocks: bool = False) -> None:
    """Merge the ranks' shares, whose images are those of `eval_share`, into one file."""
    parts = [torch.load(share_file(file, rank), weights_only=True, mmap=True) for rank in range(ranks)]
    rows = torch.empty(count, next(part for part in parts if len(part)).shape[1])
    for rank, part in enumerate(parts):
        if len(part):
            rows[list(eval_share(count, rank, ranks, in_blocks=in_blocks))] = part
    with atomic_path(file, suffix="tmp") as temporary:
        torch.save(rows, temporary)
    del parts
    for rank in range(ranks):
        share_file(file, rank).unlink()


def digest(state: dict[str, Tensor]) -> str:
    """A digest of names and bits of weights."""
    result = hashlib.blake2b(digest_size=16)
    for name, value in sorted(state.items()):
        result.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        result.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()
