"""FLOPs of networks, and peak FLOPs of devices."""

import itertools
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_outputs import ImageClassifierOutput

from vitlab.models import flops, freezing
from vitlab.models.flops import count_flops, training_flops
from vitlab.models.vit import VisionTransformer

CLASSES, TOKENS, PATCHES, DIM, DEPTH = 10, 17, 16, 64, 3
IMAGE = (3, 32, 32)
EMBEDDING, HEAD = PATCHES * 3 * 8 * 8 * DIM, DIM * CLASSES  # multiply-adds


def vit(**settings: object) -> VisionTransformer:
    sizes = {"image_size": 32, "patch_size": 8, "in_channels": 3, "num_classes": CLASSES}
    return VisionTransformer(**{**sizes, "dim": DIM, "depth": DEPTH, "heads": 4, **settings})  # type: ignore[arg-type]


def block(queries: int) -> int:
    """Multiply-adds of a block that computes the first tokens: projections, attention, MLP."""
    projections = 2 * TOKENS * DIM * DIM + 2 * queries * DIM * DIM
    return projections + 2 * queries * TOKENS * DIM + queries * 2 * DIM * 4 * DIM


@pytest.mark.parametrize(("pool", "last"), [("avg", TOKENS), ("cls", 1)])
@pytest.mark.parametrize(
    "settings", [{}, {"fused_attention": False}, {"patch_projection": "conv"}, {"activation_checkpointing": True}]
)
def test_a_vits_flops_are_those_of_the_formula(pool: str, last: int, settings: dict[str, object]) -> None:
    network = vit(pool=pool, **settings)
    forward = 2 * (EMBEDDING + (DEPTH - 1) * block(TOKENS) + block(last) + HEAD)
    assert count_flops(network, IMAGE, backward=False) == forward
    # each product has two more in backward, for what it multiplied; images need none
    assert training_flops(network, IMAGE) == 3 * forward - 2 * EMBEDDING


def test_frozen_parts_have_no_gradients_to_compute() -> None:
    network = vit(pool="avg")
    freezing.freeze(network, "all-but-head")
    assert training_flops(network, IMAGE) == count_flops(network, IMAGE, backward=False) + 2 * HEAD
    network.blocks[-1].mlp.fc2.requires_grad_(True)
    last = TOKENS * 4 * DIM * DIM  # of its weight alone: no trained layer is below
    assert training_flops(network, IMAGE) == count_flops(network, IMAGE, backward=False) + 2 * (2 * HEAD + last)
    network.requires_grad_(False)
    assert training_flops(network, IMAGE) == count_flops(network, IMAGE, backward=False)


def test_counting_is_not_disturbed_by_anomaly_detection(recwarn: pytest.WarningsRecorder) -> None:
    network = VisionTransformer(image_size=8, patch_size=4, dim=16, depth=1, heads=2, num_classes=3)
    expected = training_flops(network, (3, 8, 8))
    with torch.autograd.set_detect_anomaly(True):
        recwarn.clear()  # that anomaly detection is on
        assert training_flops(network, (3, 8, 8)) == expected
        assert torch.is_anomaly_enabled()
    assert [str(warning.message) for warning in recwarn] == []


def test_counting_leaves_a_network_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(2, *IMAGE))
    network[1].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert training_flops(network, IMAGE) > count_flops(network, IMAGE, backward=False) > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert network.training
    assert not network[1].training
    assert all(p.grad is None and p.device.type == "cpu" for p in network.parameters())


def test_counting_leaves_checkpointing_and_torchs_fast_path_on() -> None:
    network = vit(activation_checkpointing=True)
    assert training_flops(network, IMAGE) > 0
    assert network.activation_checkpointing
    assert torch.backends.mha.get_fastpath_enabled()


def test_peers_count_as_the_same_model_of_ours() -> None:
    shape = (3, 224, 224)
    small = {"dim": 192, "depth": 2, "heads": 3}
    peer = timm.create_model("vit_tiny_patch16_224", depth=2)
    ours = vit(pool="avg", image_size=224, patch_size=16, num_classes=1000, **small)
    assert count_flops(peer, shape, backward=False) == count_flops(ours, shape, backward=False)
    assert training_flops(peer, shape) == training_flops(ours, shape)
    encoder = torchvision.models.VisionTransformer(
        image_size=224, patch_size=16, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=768
    )
    # its fused operator of inference is seen too
    assert count_flops(encoder, shape, backward=False) == count_flops(ours, shape, backward=False)


def peak_of(name: str, dtype: torch.dtype, *, tf32: bool) -> float | None:
    precision = {torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed", torch.float32: "32-true"}[dtype]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        return flops.peak_flops(name, precision)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("name", "dtype", "tf32", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, False, 989.4),
        ("NVIDIA H100 PCIe", torch.float32, True, 378),
        ("NVIDIA H200", torch.bfloat16, True, 989.4),
        ("NVIDIA A100-SXM4-40GB", torch.float32, False, 19.5),
        ("NVIDIA L40S", torch.bfloat16, False, 362),
        ("NVIDIA B200", torch.float32, True, 1100),
        ("NVIDIA GB200", torch.bfloat16, False, 2500),
        ("NVIDIA GH200 480GB", torch.bfloat16, False, 989.4),
        ("NVIDIA H200 NVL", torch.bfloat16, False, 835.5),
        ("NVIDIA H100 80GB HBM2e", torch.bfloat16, False, 756),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", torch.bfloat16, False, None),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, False, 165.2),
        ("NVIDIA GeForce RTX 4090 D", torch.bfloat16, False, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", torch.bfloat16, False, None),
        ("NVIDIA GeForce RTX 4080 SUPER", torch.bfloat16, False, 104.4),
        ("NVIDIA GeForce RTX 3080 Ti", torch.float32, True, 34.1),
        ("Tesla V100-PCIE-16GB", torch.float16, False, 112),
        ("Tesla V100-FHHL-16GB", torch.float16, False, None),
        ("Tesla T4", torch.float16, False, 65),
        ("Tesla T4", torch.bfloat16, False, None),
        ("Tesla V100-SXM2-32GB", torch.float32, True, 15.7),
        ("an abacus", torch.bfloat16, False, None),
    ],
)
def test_gpus_are_recognized_by_their_names(name: str, dtype: torch.dtype, tf32: bool, peak: float | None) -> None:
    assert peak_of(name, dtype, tf32=tf32) == (None if peak is None else peak * 1e12)


@pytest.mark.parametrize(
    ("name", "sixteen", "tensor", "single"),
    [
        ("NVIDIA GB200", 2500, 1250, 80),
        ("NVIDIA B200", 2250, 1100, 75),
        ("NVIDIA H100 NVL", 835.5, 417.7, 60),
        ("NVIDIA H100 PCIe", 756, 378, 51.2),
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7, 66.9),
        ("NVIDIA A100-SXM4-80GB", 312, 156, 19.5),
        ("NVIDIA A40", 149.7, 74.8, 37.4),
        ("NVIDIA A30", 165, 82, 10.3),
        ("NVIDIA A10G", 70, 35, 31.5),
        ("NVIDIA A10", 125, 62.5, 31.2),
        ("NVIDIA RTX A6000", 154.8, 77.4, 38.7),
        ("NVIDIA RTX 6000 Ada Generation", 364.2, 182.1, 91.1),
        ("NVIDIA L40S", 362, 183, 91.6),
        ("NVIDIA L40", 181, 90.5, 90.5),
        ("NVIDIA L4", 121, 60, 30.3),
        ("NVIDIA GeForce RTX 5090", 209.5, 104.8, 104.8),
        ("NVIDIA GeForce RTX 4080", 97.5, 48.7, 48.7),
        ("NVIDIA GeForce RTX 3090 Ti", 80, 40, 40),
        ("NVIDIA GeForce RTX 3090", 71, 35.6, 35.6),
        ("NVIDIA GeForce RTX 3080", 59.5, 29.8, 29.8),
        ("Tesla V100S-PCIE-32GB", 130, 16.4, 16.4),
    ],
)
def test_a_gpu_has_a_peak_for_each_precision(name: str, sixteen: float, tensor: float, single: float) -> None:
    peaks = [peak_of(name, torch.float16, tf32=False)]
    peaks += [peak_of(name, torch.float32, tf32=tf32) for tf32 in (True, False)]
    assert peaks == [peak * 1e12 for peak in (sixteen, tensor, single)]


SPEEDS = {torch.float32: 1.0, torch.float16: 2.0, torch.bfloat16: 3.0}  # instead of measuring a CPU


def test_the_precision_of_a_run_chooses_the_peak_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")  # no bfloat16
    monkeypatch.setattr(flops, "measured_peak_flops", lambda dtype, threads: SPEEDS[dtype])
    cpu, cuda, mps = (torch.device(name) for name in ("cpu", "cuda", "mps"))
    for precision, dtype, peak in (
        ("32-true", torch.float32, 8.1e12),
        ("16-mixed", torch.float16, 65e12),
        ("16-true", torch.float16, 65e12),
        ("bf16-mixed", torch.bfloat16, None),
        ("bf16-true", torch.bfloat16, None),
        ("64-true", torch.float32, None),
        ("transformer-engine", torch.float32, None),
    ):
        assert flops.peak_flops(cpu, precision) == SPEEDS[dtype]
        assert flops.peak_flops(cuda, precision) == peak
        assert flops.peak_flops(mps, precision) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    before = torch.get_float32_matmul_precision()
    try:
        for matmul, peak in (("highest", 19.5e12), ("high", 156e12), ("medium", 156e12)):
            torch.set_float32_matmul_precision(matmul)
            assert flops.peak_flops(cuda, "32-true") == peak
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_logits_are_found_in_what_a_network_returns() -> None:
    logits, other = torch.ones(2, 3), torch.zeros(2, 3)
    assert flops.output_logits(logits) is logits
    assert flops.output_logits((logits, other)) is logits
    assert flops.output_logits(([logits, other], other)) is logits
    assert flops.output_logits(ImageClassifierOutput(loss=other, logits=logits)) is logits


def test_a_cpu_is_measured_once() -> None:
    first = flops.peak_flops(torch.device("cpu"), "32-true")
    assert first is not None
    assert 1e8 < first < 1e15
    assert flops.peak_flops(torch.device("cpu"), "32-true") == first


def test_a_named_device_has_the_peak_of_its_card() -> None:
    assert flops.peak_flops("h100", "bf16-mixed") == 989.4e12
    assert flops.peak_flops("h100", "32-true") == pytest.approx(66.9e12), "TensorFloat-32 is off"
    assert flops.peak_flops("h100", "64-true") is None
    assert flops.peak_flops("abacus", "bf16-mixed") is None


def test_layers_of_training_alone_count_in_training_alone() -> None:
    """GoogLeNet's auxiliary classifiers."""
    with torch.device("meta"):
        plain, auxiliary = (torchvision.models.googlenet(aux_logits=aux, init_weights=False) for aux in (False, True))
    shape = (3, 224, 224)
    assert auxiliary.training
    assert count_flops(auxiliary, shape, backward=False) == count_flops(plain, shape, backward=False)
    assert training_flops(auxiliary, shape) > training_flops(plain, shape)
    assert all(module.training for module in auxiliary.modules())


def test_gradients_are_counted_wherever_the_caller_needs_none() -> None:
    network = vit()
    expected = training_flops(network, IMAGE)
    with torch.no_grad():
        assert training_flops(network, IMAGE) == expected
        assert not torch.is_grad_enabled()


class Products(TorchFunctionMode):
    """Collect the sizes of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("matmul", "__matmul__"):
            self.sizes.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def test_the_fastest_product_within_the_seconds_is_the_peak_but_not_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.chain([0.05, 0.03], itertools.repeat(0.04))  # of each product
    gaps = ((0.01, each, 0.01) for each in seconds)
    clock = itertools.accumulate(itertools.chain([0.0], itertools.chain.from_iterable(gaps)))
    times: list[float] = []

    def read() -> float:
        times.append(next(clock))
        return times[-1]

    monkeypatch.setattr("time.perf_counter", read)
    with Products() as products:
        peak = flops.measured_peak_flops.__wrapped__(torch.float32, 1)
    (size,) = set(products.sizes)
    assert peak == pytest.approx(2 * size**3 / 0.03)
    assert 0.2 <= times[-1] < 0.3
    assert len(products.sizes) == 1 + (len(times) - 1) // 3, "warm-up, and one for three times that the clock is read"
