"""What a network computes for an image, and what a device can compute in a second: together, model FLOPs utilisation.

A FLOP is an addition or a multiplication: a multiply-add counts 2. Counted are matrix products, convolutions and
attention, of the network as it is configured (of a last block that computes [cls] alone, no more than that); norms,
activations and the like, about a hundredth of a ViT, are not (PaLM's model FLOPs, https://arxiv.org/abs/2204.02311).
"""

import functools
import logging
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

log = logging.getLogger(__name__)

BATCH = 2  # images that are counted at once: BatchNorm refuses to train on one
CHECKPOINTING = (
    "activation_checkpointing",
    "grad_checkpointing",
    "gradient_checkpointing",
)  # ours, timm's, transformers'


def forward_flops(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """FLOPs of the forward pass of one image (C, H, W), as evaluation runs it."""
    return count_flops(network, image_shape, backward=False)


def training_flops(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """FLOPs of the forward and backward pass of one image (C, H, W).

    Frozen weights get no gradient, and below the lowest trained one nothing is passed back. What checkpointing computes
    twice counts once.
    """
    return count_flops(network, image_shape, backward=any(p.requires_grad for p in network.parameters()))


def count_flops(network: nn.Module, image_shape: tuple[int, int, int], *, backward: bool) -> int:
    """Counts on the meta device: weights have shapes and no values there, so it takes no memory and little time. The
    network itself stays as it is.
    """
    tensors = {
        name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad and backward)
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]
    }
    images = torch.empty(BATCH, *image_shape, device="meta")
    with ExitStack() as stack:
        stack.enter_context(countable_network(network, training=backward))
        stack.enter_context(torch.set_grad_enabled(backward))
        counter = stack.enter_context(FlopCounterMode(display=False))
        output = output_logits(functional_call(network, tensors, (images,)))
        if backward:
            output.sum().backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops()) // BATCH


def output_logits(output: Any) -> Tensor:
    """The tensor of a network's output: it may come in a tuple, or in an object of transformers."""
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    return output_logits(output[0] if found is None else found)


@contextmanager
def countable_network(network: nn.Module, *, training: bool) -> Iterator[None]:
    """A network that computes nothing twice, and all of it in operators that have a formula; in evaluation mode unless
    it trains; afterwards as it was. Attention is spelled out: its fused kernels compute the scores again in backward.
    """
    modes = {module: module.training for module in network.modules()}
    switched = [(m, name) for m in modes for name in CHECKPOINTING if getattr(m, name, None) is True]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for module, name in switched:
        setattr(module, name, False)
    if not training:
        network.eval()
    try:
        with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, name in switched:
            setattr(module, name, True)
        torch.backends.mha.set_fastpath_enabled(fast)


# Peaks of dense matrix products in 1e12 FLOPs a second: (16 bit with sums in 32 bit, TensorFloat-32, float32); None: it
# can't. The first name that is found in the device's own counts. From NVIDIA's datasheets of the data centre's cards,
# and the appendices of its white papers on GA102, Ada and RTX Blackwell; where they tell sparse products alone, half.
# (Lightning has a table too: for the H200 of sparse products, for the H100 NVL of two cards, for GeForce, RTX A6000 and
# A40 in 16 bit without tensor cores; it takes an L40 or L40S for an L4, and knows no A10, A30, RTX 6000 Ada or B200.)
PEAKS: tuple[tuple[str, tuple[float | None, float | None, float]], ...] = (
    (r"gb200", (2500, 1250, 80)),
    (r"\bb200", (2250, 1100, 75)),
    (r"h200 nvl|h100 nvl", (835.5, 417.7, 60)),
    (r"h100.*(pcie|hbm2e)", (756, 378, 51.2)),
    (r"h100|h200|gh200", (989.4, 494.7, 66.9)),
    (r"a100", (312, 156, 19.5)),
    (r"a40\b", (149.7, 74.8, 37.4)),
    (r"a30\b", (165, 82, 10.3)),
    (r"a10g", (70, 35, 31.5)),
    (r"a10\b", (125, 62.5, 31.2)),
    (r"rtx a6000", (154.8, 77.4, 38.7)),
    (r"rtx 6000 ada", (364.2, 182.1, 91.1)),
    (r"l40s", (362, 183, 91.6)),
    (r"l40\b", (181, 90.5, 90.5)),
    (r"l4\b", (121, 60, 30.3)),
    (r"rtx 5090", (209.5, 104.8, 104.8)),
    (r"rtx 4090", (165.2, 82.6, 82.6)),
    (r"rtx 4080 super", (104.4, 52.2, 52.2)),
    (r"rtx 4080", (97.5, 48.7, 48.7)),
    (r"rtx 3090 ti", (80, 40, 40)),
    (r"rtx 3090", (71, 35.6, 35.6)),
    (r"rtx 3080 ti", (68.2, 34.1, 34.1)),
    (r"rtx 3080", (59.5, 29.8, 29.8)),
    (r"v100s", (130, None, 16.4)),
    (r"v100.*pcie", (112, None, 14)),
    (r"v100-sxm", (125, None, 15.7)),
    (r"\bt4\b", (65, None, 8.1)),
)
VOLTA = r"v100|\bt4\b"  # 16 bit means float16: they have no bfloat16 units
SLOWER = r"laptop|max-q|\bmig\b|\bd( v\d)?$"  # another card of that name, or a part of one


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOPs that a device can do in a second with Lightning's `trainer.precision`; None where it isn't known.

    Of a GPU, the datasheet's dense peak; float32 counts as TensorFloat-32 where torch's matmul precision lets it be. Of
    a CPU, what a large matrix product reaches here and now, with torch's threads of this process (`measured`).
    """
    low, half = precision.startswith(("bf16", "16")), precision.startswith("16")
    if device.type == "cpu":
        dtype = torch.float16 if half else torch.bfloat16 if low else torch.float32
        return measured_peak_flops(dtype, torch.get_num_threads())
    if device.type != "cuda" or precision.startswith(("64", "transformer-engine")):
        return None
    name = torch.cuda.get_device_name(device)
    return datasheet_peak_flops(name, low=low, half=half, tf32=torch.get_float32_matmul_precision() != "highest")


def datasheet_peak_flops(name: str, *, low: bool, half: bool, tf32: bool) -> float | None:
    """The dense peak of a GPU by its driver's name for it, from NVIDIA's datasheets and white papers (`PEAKS`).

    low: in 16 bit, `half`: in float16. None for a laptop's and for a slice of one (MIG), which have less than the card
    of that name.
    """
    for pattern, (sixteen, tensor, single) in PEAKS:
        if re.search(pattern, name.lower()) and not re.search(SLOWER, name.lower()):
            if low:
                known = sixteen if half or not re.search(VOLTA, name.lower()) else None
            else:
                known = tensor if tf32 and tensor else single
            return None if known is None else known * 1e12
    log.info("the peak of %s is not known: no train/mfu", name)
    return None


@functools.cache
def measured_peak_flops(dtype: torch.dtype, threads: int, size: int = 512, seconds: float = 0.2) -> float:
    """FLOPs a second of the fastest of the products of two matrices that fit in `seconds`. Measured once a process."""
    del threads  # part of the key: another number of threads is measured anew
    a, b = torch.rand(size, size).to(dtype), torch.rand(size, size).to(dtype)
    fastest, end = float("inf"), time.perf_counter() + seconds
    with torch.inference_mode():
        a @ b  # warm-up: threads and buffers are made
        while fastest == float("inf") or time.perf_counter() < end:
            start = time.perf_counter()
            a @ b
            fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest
