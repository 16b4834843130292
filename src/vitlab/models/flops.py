"""FLOPs of a network for one image, and the peak FLOPs per second of a device: together, model FLOPs utilization.

A multiply-add counts 2. Matrix products, convolutions and attention count, as far as the network computes them (in a
last block for [cls] alone, only that); norms, activations and the like, about 1 % of a ViT, don't. These are PaLM's
model FLOPs (https://arxiv.org/abs/2204.02311).
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

BATCH = 2  # BatchNorm can't train on a single image
# ours, timm's, HF's; and stochastic depth that leaves out samples, which can't be counted with BATCH of them
CHECKPOINTING = ("activation_checkpointing", "grad_checkpointing", "gradient_checkpointing", "kept_only")


def training_flops(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """FLOPs of forward and backward of one image (C, H, W), without frozen parameters and recomputed activations."""
    return count_flops(network, image_shape, backward=any(p.requires_grad for p in network.parameters()))


def count_flops(network: nn.Module, image_shape: tuple[int, int, int], *, backward: bool) -> int:
    """FLOPs of one image (C, H, W), of forward in evaluation mode, or of forward and `backward` in training.

    They are counted on the meta device, which takes no memory and little time. The network stays unchanged.
    """
    tensors = {
        name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad and backward)
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]
    }
    images = torch.empty(BATCH, *image_shape, device="meta")
    with ExitStack() as stack:
        stack.enter_context(countable_network(network, training=backward))
        stack.enter_context(torch.set_grad_enabled(backward))
        stack.enter_context(torch.autograd.set_detect_anomaly(False))  # meta tensors have no values to check
        counter = stack.enter_context(FlopCounterMode(display=False))
        output = output_logits(functional_call(network, tensors, (images,)))
        if backward:
            output.sum().backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops()) // BATCH


def output_logits(output: Any) -> Tensor:
    """The logits in a network's output: a tensor, a tuple, or an object of transformers."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    return output_logits(output[0] if logits is None else logits)


@contextmanager
def countable_network(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Make a network compute nothing twice, in operators with a FLOP formula; restore it afterwards.

    Fused attention is off: it computes the scores again in backward.
    """
    modes = {module: module.training for module in network.modules()}
    switched = [(m, name) for m in modes for name in CHECKPOINTING if getattr(m, name, None) is True]
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


# Peaks of dense matrix products in 1e12 FLOPs per second: (16 bit accumulated in 32, TensorFloat-32, float32), or None.
# The first pattern in the device's name counts. From NVIDIA's datasheets of data center cards, and the appendices of
# its white papers on GA102, Ada and RTX Blackwell; half of those for sparse products. (Lightning's table has sparse
# products for the H200, two cards for the H100 NVL, no tensor cores in 16 bit for GeForce, RTX A6000 and A40; it takes
# an L40 or L40S for an L4, and lacks A10, A30, RTX 6000 Ada and B200.)
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
NO_BFLOAT16 = r"v100|\bt4\b"
SLOWER = r"laptop|max-q|\bmig\b|\bd( v\d)?$"  # other cards of that name, or a slice of one


def peak_flops(device: torch.device | str, precision: str) -> float | None:
    """FLOPs per second of a device, or of a GPU by its name, with Lightning's `trainer.precision`; None if unknown.

    For a GPU the datasheet's dense peak, unknown of laptops and slices (MIG) of that name; float32 counts as
    TensorFloat-32 if torch's matmul precision allows it. For a CPU the speed of a large matrix product, measured with
    the threads of this process.
    """
    half = torch.bfloat16 if precision.startswith("bf16") else torch.float16
    dtype = half if precision.startswith(("bf16", "16")) else torch.float32
    if isinstance(device, torch.device) and device.type == "cpu":
        return measured_peak_flops(dtype, torch.get_num_threads())
    is_gpu = isinstance(device, str) or device.type == "cuda"
    if not is_gpu or precision.startswith(("64", "transformer-engine")):
        return None
    name = (device if isinstance(device, str) else torch.cuda.get_device_name(device)).lower()
    peaks = next((peaks for pattern, peaks in PEAKS if re.search(pattern, name)), None)
    if peaks is None or re.search(SLOWER, name):
        log.info("the peak of %s is unknown: no train/mfu", name)
        return None
    sixteen, tensor, single = peaks
    peak: float | None = tensor if tensor and torch.get_float32_matmul_precision() != "highest" else single
    if dtype != torch.float32:
        peak = None if dtype == torch.bfloat16 and re.search(NO_BFLOAT16, name) else sixteen
    return None if peak is None else peak * 1e12


@functools.cache
def measured_peak_flops(dtype: torch.dtype, threads: int, size: int = 512, seconds: float = 0.2) -> float:
    """FLOPs per second of the fastest of the matrix products within `seconds`, measured once per process."""
    del threads  # part of the cache's key
    a, b = torch.rand(size, size).to(dtype), torch.rand(size, size).to(dtype)
    fastest, end = float("inf"), time.perf_counter() + seconds
    with torch.inference_mode():
        a @ b  # warm-up
        while fastest == float("inf") or time.perf_counter() < end:
            start = time.perf_counter()
            a @ b
            fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest
