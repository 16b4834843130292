"""An exported graph is a network: logits of normalized images, whether or not it folds preprocessing."""

from pathlib import Path

import onnx
import pytest
import torch

from conftest import Exportable
from vitlab.evaluation.graph_network import GraphNetwork
from vitlab.export import graph


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_graph_gives_the_networks_logits_up_to_a_constant(fold: bool, exportable: Exportable, tmp_path: Path) -> None:
    trained = exportable(depth=1)
    graph.write_onnx(trained, tmp_path, fold=fold)
    network = GraphNetwork(tmp_path / "model.onnx")
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    logits = network(images / 255 if fold else trained.prepare()(images))
    expected = trained.network(trained.prepare()(images))
    torch.testing.assert_close(logits.softmax(1), expected.softmax(1), atol=1e-5, rtol=1e-4)
    assert network.metadata["classes"] == list(trained.classes)
    assert network.metadata["crop_fraction"] is None


def test_a_graph_of_others_is_refused(tmp_path: Path) -> None:
    tensor = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["images"], ["out"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "graph", [tensor], [out]), ir_version=8)
    model.opset_import[0].version = 17
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="only ONNX files that vitlab exported"):
        GraphNetwork(tmp_path / "model.onnx")
