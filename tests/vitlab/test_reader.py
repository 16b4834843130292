"""What the rules of the checks are told of a configuration."""

from typing import Any

import pytest

from vitlab.reader import Reader
from vitlab.schema import Node


def test_a_reader_answers_nothing_for_what_is_missing_wrong_or_of_another_kind() -> None:
    read = Reader({"a": {"b": 3}, "c": None}, bad={"a.bad"})
    values: list[Any] = [read("a.b"), read("a.b", int), read("a.b", str), read("a.x"), read("a.b.c"), read("c")]
    assert values == [3, 3, None, None, None, None]
    assert Reader({"a": {"b": 3}}, bad={"a.b"})("a.b") is None


@pytest.mark.parametrize(
    ("data", "left"),
    [
        ({}, 1293),
        ({"max_train_samples": 100}, 100),
        ({"val_fraction": 2.0}, None),
        ({"source": {"_target_": "vitlab.data.sources.image_folder"}}, None),
    ],
    ids=str,
)
def test_the_images_to_train_on_are_counted_where_the_data_s_size_is_known(data: Node, left: int | None) -> None:
    read = Reader({"data": {"source": {"_target_": "vitlab.data.sources.digits"}, "val_fraction": 0.1, **data}}, set())
    assert read.train_samples() == left


def test_a_steps_batch_is_cut_for_processes_of_all_nodes_and_parts() -> None:
    trainer = {"devices": 3, "accelerator": "cpu", "num_nodes": 2, "accumulate_grad_batches": 4}
    read = Reader({"trainer": trainer}, set())
    assert (read.ranks(), read.micro_batches()) == (6, 24)
    assert Reader({}, set()).micro_batches() == 1
