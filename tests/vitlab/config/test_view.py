"""What the rules of the checks are told of a configuration."""

from typing import Any

from vitlab.config.view import ConfigView


def test_a_view_answers_nothing_for_what_is_missing_wrong_or_of_another_kind() -> None:
    view = ConfigView({"a": {"b": 3}, "c": None}, bad={"a.bad"})
    values: list[Any] = [view("a.b"), view("a.b", int), view("a.b", str), view("a.x"), view("a.b.c"), view("c")]
    assert values == [3, 3, None, None, None, None]
    assert ConfigView({"a": {"b": 3}}, bad={"a.b"})("a.b") is None


def test_a_problem_is_one_of_all_that_its_path_is_below() -> None:
    view = ConfigView({}, bad={"model.dim"})
    assert view.has_problem("model")
    assert view.has_problem("data", "model.dim")
    assert not view.has_problem("mod", "model.dim.x")


def test_processes_are_those_of_all_nodes() -> None:
    trainer = {"devices": 3, "accelerator": "cpu", "num_nodes": 2}
    view = ConfigView({"trainer": trainer}, set())
    assert view.ranks() == 6
    assert ConfigView({}, set()).ranks() == 1
