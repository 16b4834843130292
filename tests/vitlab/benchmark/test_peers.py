"""The five libraries build the same network: sizes of the configuration, numbers of parameters, logits' shape."""

import logging
from typing import cast

import pytest
import torch
from omegaconf import OmegaConf

from vitlab.benchmark import peers
from vitlab.config import paths
from vitlab.jobs import compose

MINI = peers.SIZES["mini"]


def test_the_sizes_are_those_of_conf_and_of_the_cifar_experiment() -> None:
    files = {"ti16": "tiny", "s16": "small", "b16": "base", "l16": "large", "mini": "mini"}
    nodes = {size: OmegaConf.load(compose.CONF / "model" / "size" / f"{file}.yaml") for size, file in files.items()}
    nodes["cifar"] = OmegaConf.load(paths.EXPERIMENTS / "cifar10_spt.yaml").model
    for name, node in nodes.items():
        size = peers.SIZES[cast(peers.Size, name)]
        expected = (node.dim, node.depth, node.heads, int(node.dim * node.mlp_ratio))
        assert (size.dim, size.depth, size.heads, size.hidden) == expected, name
    assert set(nodes) == set(peers.SIZES)


@pytest.mark.parametrize("name", list(peers.CLASSES))
def test_each_library_builds_a_network_of_as_many_parameters(name: str) -> None:
    network = peers.build(name, MINI).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert abs(peers.parameters(network) - 208_074) < 600


def test_another_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    target, names = peers.CLASSES["torchvision"]
    monkeypatch.setitem(
        peers.CLASSES, "torchvision", (target, names.replace("hidden_dim num_layers", "num_layers hidden_dim"))
    )
    odd = peers.Architecture(image=32, patch=4, dim=12, depth=8, heads=4, hidden=256, classes=10)
    with pytest.raises(RuntimeError, match=r"torchvision's .* has .* parameters and should have"):
        peers.build("torchvision", odd)


def test_a_library_that_is_missing_is_logged_and_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(peers.CLASSES, "vit-pytorch", ("no_such_module.ViT", ""))
    with caplog.at_level(logging.WARNING):
        assert peers.available_peers(["timm", "vit-pytorch"]) == ["timm"]
    assert "vit-pytorch is not installed and is skipped: pip install -e '.[benchmark]'" in caplog.text
