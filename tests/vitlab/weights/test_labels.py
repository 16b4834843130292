"""Names of classes come from the configuration next to weights, if it has as many as the head."""

from pathlib import Path
from typing import Any

import pytest

from vitlab.weights.files import FileContent
from vitlab.weights.labels import class_names, loss_kind
from vitlab.weights.locate import WeightFiles


def files(config: dict[str, Any], record: dict[str, Any] | None = None, timm_name: str | None = None) -> WeightFiles:
    return WeightFiles("source", Path("file"), FileContent({}, {}), config, {}, {}, record or {}, timm_name)


@pytest.mark.parametrize(
    ("known", "names"),
    [
        (files({}, {"data": {"classes": ["cat", "dog"]}}), ("cat", "dog")),
        (files({"label_names": ["cat", "dog"]}), ("cat", "dog")),
        (files({"id2label": {"1": "dog", "0": "cat"}}), ("cat", "dog")),
        (files({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}), None),
        (files({"label_names": ["cat", "dog", "bird"]}), None),
        (files({}), None),
    ],
)
def test_names_are_those_next_to_the_weights(known: WeightFiles, names: Any) -> None:
    assert class_names(known, 2) == names


def test_timms_heads_of_imagenets_size_have_its_names() -> None:
    known = files({"pretrained_cfg": {"num_classes": 1000}}, timm_name="vit")
    names = class_names(known, 1000)
    assert names is not None
    assert names[281].startswith("tabby")
    assert class_names(known, 10) is None
    assert class_names(files({"pretrained_cfg": {"num_classes": 10}}, timm_name="vit"), 10) is None


def test_the_loss_is_that_of_the_run_or_of_transformers_problem_type() -> None:
    run = {"config": {"classifier": {"loss": "bce"}}}
    assert loss_kind(files({}, run)) == "sigmoid"
    assert loss_kind(files({"problem_type": "multi_label_classification"})) == "sigmoid"
    assert loss_kind(files({})) == "softmax"
