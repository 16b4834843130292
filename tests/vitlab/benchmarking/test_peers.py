"""The five libraries build the same network: sizes of the configuration, numbers of parameters, logits' shape."""

import logging
from typing import cast

import pytest
import torch
from omegaconf import OmegaConf

from vitlab import command, signatures
from vitlab.benchmarking import peers

MINI = peers.SIZES["mini"]


def test_the_sizes_are_those_of_conf_and_of_the_cifar_experiment() -> None:
    files = {"ti16": "tiny", "s16": "small", "b16": "base", "l16": "large", "mini": "mini"}
    nodes = {size: OmegaConf.load(command.CONF / "model" / "size" / f"{file}.yaml") for size, file in files.items()}
    nodes["cifar"] = OmegaConf.load(signatures.EXPERIMENTS / "cifar10.yaml").model
    for name, node in nodes.items():
        size = peers.SIZES[cast(peers.Size, name)]
        expected = (node.dim, node.depth, node.heads, int(node.dim * node.mlp_ratio))
        assert (size.dim, size.depth, size.heads, size.hidden) == expected, name
    assert set(nodes) == set(peers.SIZES)


@pytest.mark.parametrize("name", list(peers.BUILDERS))
def test_each_library_builds_a_network_of_as_many_parameters(name: str) -> None:
    network = peers.build(name, MINI).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    extra = peers.EXTRA[name](MINI) if name in peers.EXTRA else 0
    assert peers.parameters(network) == peers.parameters(peers.vitlab(MINI)) + extra
    assert MINI.tokens == 65


def test_another_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.BUILDERS, "timm", lambda size: peers.vitlab(peers.SIZES["cifar"]))
    with pytest.raises(RuntimeError, match=r"timm's .* has 2,697,610 parameters and should have 208,074"):
        peers.build("timm", MINI)


def test_a_library_that_is_missing_is_told_and_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(peers.MODULES, "vit-pytorch", "no_such_module")
    with caplog.at_level(logging.WARNING):
        assert peers.there(["timm", "vit-pytorch"]) == ["timm"]
    assert "vit-pytorch is not installed, and is left out: pip install -e '.[benchmark]'" in caplog.text
