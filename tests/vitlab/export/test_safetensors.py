"""A folder of our own names makes the network again, alone, and is read as weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Exportable
from model_cards import run_card
from vitlab.export import safetensors
from vitlab.export.export import FORMATS, largest_difference
from vitlab.weights.load import load_pretrained
from vitlab.weights.open import open_weights

EVERYTHING = {"num_registers": 2, "layer_scale": 0.1, "pool": "avg", "image_size": (16, 32), "activation": "swiglu"}


@pytest.mark.parametrize("options", [{"pos_embed": "sincos2d"}, EVERYTHING], ids=["sincos2d", "everything"])
def test_the_folder_makes_the_network_again(options: dict[str, Any], exportable: Exportable, tmp_path: Path) -> None:
    trained = exportable(**options)
    found = run_card(trained, "safetensors", folder := tmp_path / "out")
    assert largest_difference(FORMATS["safetensors"], trained, folder, False) == 0
    images = torch.randn(2, 3, *trained.image_size)
    assert torch.equal(found["model"](images), trained.network(images))


def test_the_folder_is_read_as_weights_with_its_preprocessing(exportable: Exportable, tmp_path: Path) -> None:
    trained = exportable(**EVERYTHING, heads=4)
    (folder := tmp_path / "out").mkdir()
    safetensors.write_safetensors(trained, folder, fold=False)
    weights = open_weights(str(folder))
    network, _ = load_pretrained(weights)
    images = torch.randn(2, 3, *trained.image_size)
    assert torch.equal(network.eval()(images), trained.network(images))
    assert weights.preprocessing.mean == trained.mean
