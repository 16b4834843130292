"""Graphs run without vitlab's code, on any number of images, and give the network's outputs."""

import json
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

from conftest import Exportable
from model_cards import run_card
from vitlab.export import graph
from vitlab.export.export import FORMATS, largest_difference


def test_bytes_become_probabilities_in_torchs_graph(exportable: Exportable, tmp_path: Any) -> None:
    trained = exportable(num_registers=1, pool="avg", loss="sigmoid", image_size=(16, 24))
    found = run_card(trained, "torch_export", tmp_path / "out", fold=True)
    difference = largest_difference(FORMATS["torch_export"], trained, tmp_path / "out", True)
    assert difference is not None
    assert difference < 1e-6
    batch = graph.example_input(trained, True, 3)
    expected = trained.network(trained.prepare()(batch)).sigmoid()
    torch.testing.assert_close(found["model"](batch), expected, atol=1e-6, rtol=0)
    with pytest.raises(Exception, match=r"size\(\)\[2\] == 16"):
        found["model"](batch[:, :, :8])


def test_normalized_images_become_logits_in_onnx_runtime(exportable: Exportable, tmp_path: Any) -> None:
    trained = exportable(layer_scale=0.1, pos_embed="sincos2d", depth=1)
    graph.write_onnx(trained, tmp_path, fold=False)
    assert [file.name for file in tmp_path.glob("model*")] == ["model.onnx"], "one file"
    difference = largest_difference(FORMATS["onnx"], trained, tmp_path, False)
    assert difference is not None
    assert difference < 1e-5
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model)
    kept = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(kept["classes"]) == list(trained.classes)
    assert json.loads(kept["mean"]) == list(trained.mean)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("images", "tensor(float)", [3, 16, 16])
    assert isinstance(taken.shape[0], str), "any number of images"


def test_softmax_is_folded_in_where_one_class_is_right(exportable: Exportable) -> None:
    trained = exportable()
    batch = graph.example_input(trained, True)
    assert batch.dtype == torch.uint8
    probabilities = graph.graph_module(trained, True)(batch)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))
    logits = graph.graph_module(trained, False)(graph.example_input(trained, False))
    torch.testing.assert_close(logits.softmax(dim=1), probabilities)
    assert (graph.output_name(True), graph.output_name(False)) == ("probabilities", "logits")
