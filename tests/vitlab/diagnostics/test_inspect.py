"""Tracing a step doesn't change it, and finds the first value that isn't finite."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitlab.diagnostics.inspect import ModuleTrace, parameter_lines, tensor_stats
from vitlab.models.vit import VisionTransformer


def network(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "dim": 16, "depth": 2, "heads": 2, "num_classes": 10, "in_channels": 1}
    return VisionTransformer(**{**sizes, **options})


def inspect(model: nn.Module, images: Tensor) -> ModuleTrace:
    trace = ModuleTrace(model)
    with trace.forward():
        model(images)
    return trace


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_tracing_changes_no_bit_and_records_every_call_once_in_order(activation_checkpointing: bool) -> None:
    images, gradients, outputs = torch.rand(3, 1, 8, 8), [], []
    for watched in (False, True):
        model, trace = network(dropout=0.3, activation_checkpointing=activation_checkpointing), None
        torch.manual_seed(1)
        if watched:
            trace = ModuleTrace(model)
            with trace.forward():
                output = model(images)
        else:
            output = model(images)
        output.square().sum().backward()
        outputs.append(output)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(*outputs)
    assert torch.equal(*gradients)
    assert trace is not None
    names = [call.name for call in trace.calls]
    assert names[:5] == ["patch_embed", "norm_pre", "blocks.0.norm1", "blocks.0.attn.qkv", "blocks.0.attn.proj"]
    assert names[-3:] == ["fc_norm", "head", "network"]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("weight", "named", "origin"),
    [
        ("patch_embed.proj.weight", "patch_embed", "patch_embed"),
        ("blocks.0.attn.qkv.weight", "blocks.0.attn.qkv", "blocks.0.attn.qkv"),
        ("blocks.1.attn.qkv.weight", "blocks.1.attn.proj", "blocks.1.attn"),  # used without being called
        ("blocks.0.mlp.fc2.weight", "blocks.0.mlp.fc2", "blocks.0.mlp.fc2"),
        ("norm.weight", "norm", "norm"),
        ("head.weight", "head", "head"),
    ],
)
def test_the_module_whose_weights_overflow_is_named_first(weight: str, named: str, origin: str) -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter(weight).copy_(torch.full_like(model.get_parameter(weight), 3e38))
        if weight == "blocks.0.mlp.fc2.weight":
            model.get_parameter("blocks.0.mlp.fc1.bias").fill_(9.0)
    call = inspect(model, torch.rand(3, 1, 8, 8) + 1).first_output()
    assert call is not None
    assert (call.name, call.origin) == (named, origin)
    assert call.input.finite == (named == origin)
    assert not call.output.finite
    assert any(line.startswith(f"{weight}: 3e+38") for line in parameter_lines(model, origin))


def test_an_overflow_between_the_layers_of_a_block_is_the_blocks() -> None:
    model = network()
    with torch.no_grad():
        for layer in ("attn.proj", "mlp.fc2"):
            model.get_parameter(f"blocks.0.{layer}.bias").fill_(3e38)
    call = inspect(model, torch.rand(1, 1, 8, 8)).first_output()
    assert call is not None
    assert call.name in ("blocks.0.norm2", "blocks.0"), "3e38 squared, or twice"


def test_statistics_count_infinite_and_nan_values() -> None:
    found = tensor_stats((torch.tensor([1.0, -2.0, math.nan, math.inf, -math.inf]), torch.tensor([7]), None))
    assert (found.low, found.high, found.size, found.infinite, found.nan) == (-2, 1, 5, 2, 1)
    assert str(found) == "2 inf and 1 nan of 5, the others -2 .. 1"
    assert str(tensor_stats(torch.ones(1000))) == "1 .. 1, all 1,000 finite"
    assert str(tensor_stats(torch.tensor([math.nan]))) == "1 nan of 1"
