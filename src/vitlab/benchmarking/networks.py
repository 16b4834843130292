"""Inference and training steps of the same ViT in five libraries, against each other and the machine's own limit.

    size x batch x precision x mode x task -> a case: every library's network, and a matrix product of that precision

Everybody does the same work: images that are there already, evaluation mode under `inference_mode`, or training mode
with cross-entropy, backward and an AdamW step. Ours is trained as `train.py` trains it (`conf/optimizer/adamw.yaml`,
`vitlab.optim`) and compiled block by block (`vitlab.models.compile`), the others by `torch.optim.AdamW` as it comes, and
compiled as a whole.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from vitlab import command, flops, optim
from vitlab.benchmarking import footprint, machine
from vitlab.benchmarking.peers import SIZES, Architecture, Peer, Size, build, parameters, there
from vitlab.benchmarking.timing import OURS, Case, Clock, Contender, Goal, Measured, Part
from vitlab.build import make
from vitlab.models.compile import compile_network

log = logging.getLogger(__name__)

Task = Literal["inference", "training"]
Precision = Literal["float32", "bf16"]
Mode = Literal["eager", "compiled"]

# Images of a batch where `batches` says nothing: beside 1, what keeps such a machine busy for a moment.
LARGER: dict[str, dict[Size, int]] = {
    "cpu": {"mini": 128, "cifar": 64, "ti16": 8, "s16": 4, "b16": 2, "l16": 1},
    "cuda": {"mini": 1024, "cifar": 1024, "ti16": 256, "s16": 256, "b16": 128, "l16": 64},
}
LIMIT = "matrix product"
MEMORY = "peak MB"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a network has to do."""

    task: Task
    batch: int
    precision: Precision
    mode: Mode


@dataclass(frozen=True, kw_only=True)
class Row(Work):
    """What is measured in a case."""

    size: Size

    def __str__(self) -> str:
        return f"{self.size} {self.task} of {self.batch}, {self.precision} {self.mode}"


class Networks(Part):
    """sizes        of networks: `benchmarking.peers` has what they are
    tasks        inference, training
    batches      images of a batch; null: 1, and a larger one by size and device
    precisions   float32, or bfloat16 by torch.autocast
    modes        eager, compiled
    compiled     the sizes that are compiled, with a batch that is larger than 1; null: all, with all batches
    peers        the libraries beside ours
    peers_fused  the peers too get AdamW's fused kernel, which they would have to ask for
    """

    def __init__(
        self,
        *,
        sizes: Sequence[Size] = ("cifar", "ti16", "s16", "b16"),
        tasks: Sequence[Task] = ("inference", "training"),
        batches: Sequence[int] | None = None,
        precisions: Sequence[Precision] = ("float32", "bf16"),
        modes: Sequence[Mode] = ("eager", "compiled"),
        compiled: Sequence[Size] | None = ("cifar",),
        peers: Sequence[Peer] = ("timm", "torchvision", "transformers", "vit-pytorch"),
        peers_fused: bool = False,
    ) -> None:
        self.sizes, self.tasks, self.batches, self.precisions = sizes, tasks, batches, precisions
        self.modes, self.compiled, self.peers, self.peers_fused = modes, compiled, peers, peers_fused

    def cases(self, clock: Clock) -> Iterator[Case]:
        names, rows = [OURS, *there(list(self.peers))], self.rows(clock.device)
        for number, row in enumerate(rows, start=1):
            log.info("networks: %d of %d, %s ...", number, len(rows), row)
            yield measure(row, names, clock, fused=self.peers_fused)

    def rows(self, device: torch.device) -> list[Row]:
        found = []
        for size, mode in itertools.product(self.sizes, self.modes):
            few = mode == "compiled" and self.compiled is not None
            if few and size not in (self.compiled or ()):
                continue
            larger = LARGER[device.type][size]
            batches = self.batches or sorted({1, larger})
            chosen = [max(batches)] if few else batches
            for task, batch, precision in itertools.product(self.tasks, chosen, self.precisions):
                found.append(Row(size=size, task=task, batch=batch, precision=precision, mode=mode))
        return found


def measure(row: Row, names: Sequence[str], clock: Clock, *, fused: bool = False) -> Case:
    """Times everybody, after the counts: parameters, FLOPs of an image, bytes at the peak."""
    torch.compiler.reset()  # what other sizes compiled counts against a limit
    size = SIZES[row.size]
    contenders = []
    for name in names:
        try:
            contenders.append(contender(name, size, row, clock.device, fused=fused))
        except Exception as error:
            if name == OURS:
                raise
            log.error("networks: %s is left out of this row: %s: %s", name, type(error).__name__, error)
    measured = beside_limit(clock, contenders, row.precision)
    return Case(part="networks", name=str(row), unit="images", measured=measured, goals=goals(row))


def beside_limit(clock: Clock, contenders: Sequence[Contender], precision: Precision) -> list[Measured]:
    """Measures contenders that have "MFLOPs" of an item among their figures, in the same rounds as the machine's limit,
    which comes last: in items of the first one's FLOPs.
    """
    own = contenders[0].figures["MFLOPs"] * 1e6
    product = machine.Product(clock.device, precision=precision)
    limit = Contender(name=LIMIT, run=product, items=product.flops / own, peer=False)
    *measured, fastest = clock.measure([*contenders, limit])
    reached, sheet = fastest.rate * own, machine.datasheet(clock.device, precision)
    return [*(utilised(each, reached, sheet) for each in measured), fastest]


def utilised(measured: Measured, limit: float, datasheet: float | None) -> Measured:
    """With the share of the machine's FLOPs a second that it used: of those of the product, and of the datasheet's."""
    used = measured.figures["MFLOPs"] * 1e6 * measured.rate
    figures = {**measured.figures, "MFU %": 100 * used / limit}
    return replace(measured, figures=figures | ({"of datasheet %": 100 * used / datasheet} if datasheet else {}))


def goals(row: Row) -> list[Goal]:
    found = [Goal(least=1.0), Goal(least=1.0, against="timm", figure=MEMORY)]
    small = row.size in ("mini", "cifar") or (row.size == "b16" and row.task == "training")
    return [*found, Goal(least=1.05, against="timm")] if small else found


def contender(
    name: str, architecture: Architecture, work: Work, device: torch.device, *, fused: bool = False
) -> Contender:
    """A network's step, done once already; its figures are of one image, but for the memory."""
    torch.manual_seed(0)
    network = build(name, architecture)
    shape = (work.batch, 3, architecture.image, architecture.image)
    count = flops.training_flops if work.task == "training" else flops.forward_flops
    counted = count(network, (3, architecture.image, architecture.image))
    network.to(device).train(work.task == "training")
    if work.mode == "compiled":
        compile_network(network)
    images = torch.randn(shape, device=device)
    labels = torch.randint(architecture.classes, (work.batch,), device=device)
    step: Callable[[], object]
    held: list[Tensor] = [*network.parameters(), *network.buffers(), images, labels]
    if work.task == "training":
        optimizer = adamw(name, network, fused=fused)
        step = partial(train, network, images, labels, optimizer, work.precision)
        step()  # the optimizer makes its state
        held += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    else:
        step = partial(infer, network, images, work.precision)
        step()
    figures = {
        "M parameters": parameters(network) / 1e6,
        "MFLOPs": counted / 1e6,
        MEMORY: footprint.peak(step, held, device) / 1e6,
    }
    return Contender(name=name, run=step, items=work.batch, figures=figures)


def adamw(name: str, network: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    if name != OURS:
        return torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05, fused=fused or None)
    node: Any = OmegaConf.to_container(OmegaConf.load(command.CONF / "optimizer" / "adamw.yaml"))
    return optim.make_optimizer(make(node), network)


def precise(device: torch.device, precision: Precision) -> Any:
    return nullcontext() if precision == "float32" else torch.autocast(device.type, dtype=torch.bfloat16)


def infer(network: nn.Module, images: Tensor, precision: Precision) -> Tensor:
    with torch.inference_mode(), precise(images.device, precision):
        outputs: Tensor = network(images)
    return outputs


def train(
    network: nn.Module, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer, precision: Precision
) -> None:
    """A step that leaves no gradients behind."""
    with precise(images.device, precision):
        loss = F.cross_entropy(network(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
