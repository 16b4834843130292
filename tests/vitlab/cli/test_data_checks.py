"""What is known of data before it is loaded, and what its settings and those of batches demand of each other."""

import shutil
from pathlib import Path

import pytest

from vitlab.cli.data_checks import train_samples
from vitlab.config.schema import Node
from vitlab.config.view import ConfigView


@pytest.mark.parametrize(
    ("data", "left"),
    [
        ({}, 1293),
        ({"max_train_samples": 100}, 100),
        ({"source": {"_target_": "vitlab.data.sets.image_folder.image_folder"}}, None),
        ({"source": {"_target_": "vitlab.data.sets.fake.fake", "samples": 25}}, 22),
    ],
    ids=str,
)
def test_the_images_to_train_on_are_counted_where_the_data_s_size_is_known(data: Node, left: int | None) -> None:
    view = ConfigView(
        {"data": {"source": {"_target_": "vitlab.data.sets.digits.digits"}, "val_fraction": 0.1, **data}}, set()
    )
    assert train_samples(view) == left


def test_images_of_a_folder_are_counted_once_and_not_if_some_may_be_skipped(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1", "b/2", "b/3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").touch()
    source = {"_target_": "vitlab.data.sets.image_folder.image_folder", "data_dir": str(tmp_path)}
    data = {"source": source, "val_fraction": 0.1, "on_error": "raise"}
    view = ConfigView({"data": data}, set())
    assert train_samples(view) == 3
    shutil.rmtree(tmp_path)
    assert train_samples(view) == 3
    view = ConfigView({"data": {**data, "on_error": "skip"}}, set())
    assert train_samples(view) is None
