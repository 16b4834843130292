"""One compilation serves all blocks at any depth, rate and batch size; numbers and names stay."""

from collections.abc import Callable, Iterator
from functools import partialmethod
from typing import Any

import pytest
import timm
import torch

from vitlab.models.compile import compile_network
from vitlab.models.vit import VisionTransformer

# torch's compiler causes it and hides its own warning, but not an error
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def network(**arguments: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(image_size=8, patch_size=4, dim=16, heads=2, num_classes=3, **arguments)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """Compiled graphs, run as traced: generating code takes a CPU half a minute."""
    made: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=backend))
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=8):
        yield made
    torch.compiler.reset()


def test_a_deep_network_is_compiled_as_often_as_a_shallow_one(graphs: list[torch.fx.GraphModule]) -> None:
    model = network(depth=6, drop_path=0.3)
    compile_network(model)
    for batch in (4, 4, 3, 2):
        model.train()(torch.randn(batch, 3, 8, 8)).sum().backward()
    assert len(graphs) == 6, "no stochastic depth in the first block, [cls] alone in the last; one size, then all"
    for batch in (4, 2):
        model.eval()(torch.randn(batch, 3, 8, 8))
    assert len(graphs) == 8
    assert torch._dynamo.config.recompile_limit == 64


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_numbers_and_names_are_those_of_a_network_that_is_not_compiled(
    activation_checkpointing: bool, graphs: list[torch.fx.GraphModule]
) -> None:
    plain = network(depth=3, activation_checkpointing=activation_checkpointing)
    compiled = network(depth=3, activation_checkpointing=activation_checkpointing)
    compile_network(compiled)
    images = torch.randn(4, 3, 8, 8)
    for model in (plain, compiled):
        model.train()(images).square().sum().backward()
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert graphs


def test_another_network_is_compiled_in_one_piece(graphs: list[torch.fx.GraphModule]) -> None:
    model = timm.create_model("test_vit", img_size=32, num_classes=3)
    compile_network(model)
    model.eval()(torch.randn(2, 3, 32, 32))
    assert len(graphs) == 1
