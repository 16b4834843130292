"""A value fits an annotation or not, and a message says which, what is wanted, and what was perhaps meant."""

from typing import Any, Literal, TypeVar

import pytest

from vitlab.config import schema
from vitlab.config.schema import ConfigView, Node

T = TypeVar("T")


class Wheel:
    def __init__(self, *, spokes: int = 32) -> None:
        self.spokes = spokes


class Bicycle:
    """Every kind of parameter that a configuration can hold."""

    def __init__(
        self,
        frame: str,
        *,
        gears: int,
        kind: Literal["road", "mountain", "folding"] = "road",
        weight: float = 9.5,
        front: Wheel | None = None,
        spares: dict[str, Node | None] | None = None,
        tyres: tuple[int, int] = (28, 28),
        uses: list[Literal["town", "travel"]] | None = None,
    ) -> None:
        self.frame, self.gears, self.kind, self.weight = frame, gears, kind, weight
        self.front, self.spares, self.tyres, self.uses = front, spares, tyres, uses


def anything(first: int, *rest: int, named: bool = False, **options: int) -> None:
    pass


WHEEL, BICYCLE = f"{__name__}.Wheel", f"{__name__}.Bicycle"


# ------------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (False, "false"), (3, "3"), (0.5, "0.5"), ("a", "a"), ([1, 2], "[1, 2]")],
)
def test_a_value_is_shown_as_it_is_typed(value: Any, text: str) -> None:
    assert schema.format_value(value) == text


def test_a_long_value_is_shown_shortened() -> None:
    assert schema.format_value("x" * 100) == "x" * 57 + "..."
    assert schema.format_value("x" * 60) == "x" * 60


def test_close_words_are_suggested_and_distant_ones_are_not() -> None:
    assert schema.suggest("dmi", ["depth", "dim", "heads"]) == "; did you mean 'dim'?"
    assert schema.suggest("max_epoch", ["min_epochs", "max_epochs", "seed"]) == (
        "; did you mean 'max_epochs' or 'min_epochs'?"
    )
    assert schema.suggest("zzz", ["depth", "dim", "heads"]) == ""
    assert schema.suggest("target", ["_target_"]) == "", "what Hydra reserves is not for users to set"


# ------------------------------------------------------------------------------------------------------- calls


def test_a_call_that_fits_has_no_problem() -> None:
    spares = {"left": {"_target_": WHEEL, "spokes": 28}, "right": None}
    arguments = {"frame": "steel", "gears": 8, "front": {"_target_": WHEEL}, "spares": spares, "tyres": [28, 32]}
    assert schema.call_problems("bicycle", arguments, Bicycle) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"gaers": 8}, "b.gaers=8: there is no such setting; did you mean 'gears'?"),
        ({"zzz": None}, "b.zzz=null: there is no such setting"),
        ({"gears": "many"}, "b.gears=many is not an int"),
        ({"gears": True}, "b.gears=true is not an int"),
        ({"kind": "rood"}, "b.kind=rood is not one of 'road', 'mountain', 'folding'; did you mean 'road'?"),
        (
            {"uses": ["town", "travl"]},
            "b.uses=['town', 'travl'] is not a list of one of 'town', 'travel' or null; did you mean 'travel'?",
        ),
        ({"tyres": [28]}, "b.tyres=[28] is not a list of 2 (an int, an int)"),
        ({"front": "round"}, "b.front=round is not Wheel or null"),
        ({"gears": "???"}, "b.gears is not set, and has no default: add b.gears=VALUE"),
        ({"spares": 3}, "b.spares=3 is not a mapping or null"),
        ({"front": {"_target_": WHEEL, "spokes": 1.5}}, "b.front.spokes=1.5 is not an int"),
        (
            {"spares": {"left": {"_target_": WHEEL, "spoks": 3}, "right": None}},
            "b.spares.left.spoks=3: there is no such setting; did you mean 'spokes'?",
        ),
    ],
)
def test_one_mistake_in_a_call_is_one_line(arguments: Node, line: str) -> None:
    assert schema.call_problems("b", {"frame": "steel", "gears": 8, **arguments}, Bicycle) == [line]


def test_all_mistakes_of_a_call_are_told_in_the_order_in_which_they_stand() -> None:
    arguments = {"kind": 3, "weigth": 9, "front": {"_target_": WHEEL, "spokes": "a"}}
    assert schema.call_problems("", arguments, Bicycle) == [
        "kind=3 is not one of 'road', 'mountain', 'folding'",
        "weigth=9: there is no such setting; did you mean 'weight'?",
        "front.spokes=a is not an int",
        "frame is not set, and has no default: add frame=VALUE",
        "gears is not set, and has no default: add gears=VALUE",
    ]


def test_what_the_program_supplies_need_not_be_set() -> None:
    assert schema.call_problems("b", {}, Bicycle, supplied={"b": ["frame", "gears"]}) == []
    assert len(schema.call_problems("b", {}, Bicycle, supplied={"b": ["frame"]})) == 1


def test_what_is_called_later_need_not_be_complete_but_must_be_right() -> None:
    assert schema.call_problems("b", {}, Bicycle, partial=True) == []
    assert schema.call_problems("b", {"gears": "a"}, Bicycle, partial=True) == ["b.gears=a is not an int"]


def test_keyword_arguments_of_any_name_are_let_through_and_the_named_ones_are_checked() -> None:
    assert schema.call_problems("f", {"first": 1, "whatever": 3}, anything) == []
    assert schema.call_problems("f", {"first": 1, "named": 3}, anything) == ["f.named=3 is not true or false"]


def test_parameters_have_evaluated_annotations_and_no_self() -> None:
    found = schema.parameters(Bicycle)
    assert list(found) == ["frame", "gears", "kind", "weight", "front", "spares", "tyres", "uses"]
    assert found["front"].annotation == Wheel | None
    assert found["weight"].default == 9.5
    assert list(schema.parameters(anything)) == ["first", "named", "options"], "*rest can't be named in a file"


# ------------------------------------------------------------------------------------------------------- nodes


@pytest.mark.parametrize(
    ("node", "line"),
    [
        ({}, "n._target_=None is not a dotted path to a callable"),
        ({"_target_": 3}, "n._target_=3 is not a dotted path to a callable"),
        ({"_target_": f"{__name__}.Weel"}, f"{__name__} has no 'Weel'; did you mean 'Wheel'?"),
        ({"_target_": "no_such_module_at_all.Wheel"}, "there is no module 'no_such_module_at_all'"),
        ({"_target_": f"{WHEEL}.spin"}, f"{WHEEL} has no 'spin'"),
        ({"_target_": "Wheel"}, "there is no module 'Wheel'"),
        ({"_target_": WHEEL, "spokes": None}, "n.spokes=null is not an int"),
    ],
)
def test_one_mistake_in_a_node_is_one_line(node: Node, line: str) -> None:
    (found,) = schema.node_problems("n", node)
    assert line in found
    assert found.startswith("n.")


def test_the_words_of_hydra_in_a_node_are_no_settings() -> None:
    assert schema.node_problems("n", {"_target_": WHEEL, "_convert_": "all", "_recursive_": False}) == []


def test_a_partial_node_must_be_complete_with_what_the_program_supplies() -> None:
    node = {"_target_": BICYCLE, "_partial_": True, "gears": 3}
    assert schema.node_problems("n", node) == [], "who calls it with what is not known"
    assert schema.node_problems("n", node, supplied={"n": ["frame"]}) == []
    assert schema.node_problems("n", {**node, "gears": "???"}) != []
    del node["gears"]
    assert schema.node_problems("n", node, supplied={"n": ["frame"]}) == [
        "n.gears is not set, and has no default: add n.gears=VALUE"
    ]


def test_nodes_are_found_in_a_value_and_one_level_below() -> None:
    node = {"_target_": WHEEL}
    assert schema.child_nodes(node) == {"": node}
    assert schema.child_nodes({"a": node, "b": None, "c": 3}) == {"a": node}
    assert schema.child_nodes([3, node]) == {"1": node}
    assert schema.child_nodes({"a": {"b": node}}) == {}
    assert schema.child_nodes("a") == {}


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


@pytest.mark.parametrize(("metric", "mode"), [("val/loss", "min"), ("val/acc", "max"), ("val/acc5", "max")])
def test_a_loss_is_to_be_small_and_all_else_large(metric: str, mode: str) -> None:
    assert metric in schema.OBJECTIVES
    assert schema.direction(metric) == mode


def test_own_metrics_are_objectives_whose_names_say_what_is_good() -> None:
    assert schema.objectives(["f1", "calibration_error"])[-2:] == ["val/f1", "val/calibration_error"]
    assert schema.direction("val/f1") == "max"
    assert schema.direction("val/calibration_error") == "min"
