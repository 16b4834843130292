"""Measure inference and training steps of the same ViT in five libraries, and a matrix product as the limit.

    size x mode x task x batch x precision -> a case: each library's network, and the matrix product

Training is cross-entropy, backward and AdamW: vitlab's as in `train.py` (`conf/optimizer/adamw.yaml`), the others' with
torch's defaults. vitlab is compiled by block, the others in one graph.
"""

import itertools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmark.case import OURS, Case, Part
from benchmark.peers import SIZES, Architecture, Peer, Size, available_peers, build, parameters
from benchmark.timing import Clock, Contender, Measurement
from vitlab.config.instantiate import build_object
from vitlab.jobs import compose
from vitlab.models import flops
from vitlab.models.compile import compile_network
from vitlab.training.optimizer import build_optimizer

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no log lines of the profiler

log = logging.getLogger(__name__)

Task = Literal["inference", "training"]
Mode = Literal["eager", "compiled"]
Precision = Literal["float32", "bf16"]

# With batches=null: the batch size in addition to 1.
LARGER: dict[str, dict[Size, int]] = {
    "cpu": {"mini": 128, "cifar": 64, "ti16": 8, "s16": 4, "b16": 2, "l16": 1},
    "cuda": {"mini": 1024, "cifar": 1024, "ti16": 256, "s16": 256, "b16": 128, "l16": 64},
}
LIMIT, MFLOPS, MEMORY = "matrix product", "MFLOPs", "peak MB"


@dataclass(kw_only=True)
class Networks(Part):
    """Steps of the same network in several libraries.

    Args:
        sizes: Sizes of the network, see `benchmark.peers`.
        tasks: Inference, training.
        batches: Batch sizes; None: 1, and a larger one by size and device.
        precisions: float32, or bfloat16 with torch.autocast.
        modes: Eager, or compiled, which takes minutes for each case.
        peers: Libraries to compare with.
    """

    part = "networks"

    sizes: Sequence[Size] = ("cifar", "ti16", "s16", "b16")
    tasks: Sequence[Task] = ("inference", "training")
    batches: Sequence[int] | None = None
    precisions: Sequence[Precision] = ("float32", "bf16")
    modes: Sequence[Mode] = ("eager",)
    peers: Sequence[Peer] = ("timm", "torchvision", "transformers", "vit-pytorch")

    def cases(self, clock: Clock) -> Iterator[Case]:
        names = [OURS, *available_peers(self.peers)]
        for size, mode, task in itertools.product(self.sizes, self.modes, self.tasks):
            batches = self.batches or sorted({1, LARGER[clock.device.type][size]})
            for batch, precision in itertools.product(batches, self.precisions):
                name = f"{size} {task} of {batch}, {precision} {mode}"
                log.info("networks: %s ...", name)
                torch.compiler.reset()  # graphs of other sizes count against a limit
                work = (SIZES[size], task, batch, precision, clock.device, mode)
                contenders = [contender(library, *work) for library in names]
                yield Case(part=self.part, name=name, measured=measure_with_limit(clock, contenders, precision))


def measure_with_limit(clock: Clock, contenders: Sequence[Contender], precision: Precision) -> list[Measurement]:
    """Measure contenders, which have the figure MFLOPs of an item, with their MFU; last, a matrix product.

    The product's items are those of the first contender, by FLOPs.
    """
    side, dtype = 8192 if clock.device.type == "cuda" else 1536, {"float32": torch.float32, "bf16": torch.bfloat16}
    left, right, out = (torch.randn(side, side, device=clock.device).to(dtype[precision]) for _ in range(3))
    item = contenders[0].figures[MFLOPS]
    product = partial(torch.mm, left, right, out=out)
    reference = Contender(name=LIMIT, run=product, items=2e-6 * side**3 / item, peer=False)
    *measured, limit = clock.measure([*contenders, reference])
    peak = limit.rate * item
    shares = [{"MFU %": 100 * m.figures[MFLOPS] * m.rate / peak} for m in measured]
    return [*(replace(m, figures={**m.figures, **share}) for m, share in zip(measured, shares, strict=True)), limit]


def contender(
    name: str, size: Architecture, task: Task, batch: int, precision: Precision, device: torch.device, mode: Mode
) -> Contender:
    """A network's step, after a first one. Figures are of one image, except for the memory."""
    torch.manual_seed(0)
    network, side, trains = build(name, size), size.image, task == "training"
    counted = flops.count_flops(network, (3, side, side), backward=trains)
    network.to(device).train(trains)
    if mode == "compiled":
        compile_network(network)
    images = torch.randn(batch, 3, side, side, device=device)
    labels = torch.randint(size.classes, (batch,), device=device)
    optimizer = adamw(name, network) if trains else None

    def step() -> None:
        with torch.inference_mode(not trains), torch.autocast(device.type, torch.bfloat16, precision == "bf16"):
            outputs = network(images)
            if optimizer is None:
                return
            loss = F.cross_entropy(outputs, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    step()  # creates the optimizer's state
    held: list[Any] = [*network.parameters(), *network.buffers(), images, labels]
    held += [value for state in (optimizer.state.values() if optimizer else ()) for value in state.values()]
    figures = {"M parameters": parameters(network) / 1e6, MFLOPS: counted / 1e6}
    figures[MEMORY] = peak_bytes(step, [t for t in held if isinstance(t, Tensor)], device) / 1e6
    return Contender(name=name, run=step, items=batch, figures=figures)


def adamw(name: str, network: nn.Module) -> torch.optim.Optimizer:
    if name != OURS:
        return torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    node: Any = OmegaConf.to_container(OmegaConf.load(compose.CONF / "optimizer" / "adamw.yaml"))
    return build_optimizer(build_object(node), network)


def peak_bytes(step: Callable[[], object], held: Iterable[Tensor], device: torch.device) -> int:
    """The maximum bytes of tensors during a step: those `held` all the time, and those that the step allocates.

    The step must free all tensors that it allocates.
    """
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    before = sum(storages.values())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return before + torch.cuda.max_memory_allocated(device) - allocated
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        trace = json.loads(file.read_text())["traceEvents"]
    events = sorted((event["args"]["Ev Idx"], event["args"]["Bytes"]) for event in trace if event["name"] == "[memory]")
    return before + max(itertools.accumulate((int(change) for _, change in events), initial=0))
