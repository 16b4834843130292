"""A value fits an annotation or not, and a message says which, what is wanted, and what was perhaps meant."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, TypeVar, Union

import pytest

from vitlab.config import annotations, schema
from vitlab.config.schema import Node
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.jobs.compose import CONF
from vitlab.models.vit import VisionTransformer
from vitlab.training.classifier import Classifier

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


# -------------------------------------------------------------------------------------------------- values fit

FITTING: list[tuple[Any, Any]] = [
    (3, int),
    (3.5, float),
    (3, float),  # YAML's 3 is Python's 3.0
    (True, bool),
    ("a", str),
    (b"a", bytes),
    (None, None),
    (None, type(None)),
    (None, int | None),
    (3, Optional[int]),  # noqa: UP045
    ("a", Union[int, str]),  # noqa: UP007
    ("cls", Literal["cls", "avg"]),
    (16, Literal[16, 32]),
    ([1, 2], tuple[int, int]),
    ([1, 0.5], tuple[float, float]),
    ((1, 2), tuple[int, int]),
    ([1, 2, 3], tuple[int, ...]),
    ([], tuple[int, ...]),
    ([1, "a"], tuple),
    (["a", "b"], list[str]),
    ([], list[str]),
    ([1, "a"], list),
    ([1, 2], Sequence[int]),
    ([1, 2], Iterable[int]),
    ([[1, 2], [3, 4]], list[tuple[int, int]]),
    ({"a": {"_target_": "x"}, "b": None}, dict[str, Node | None]),
    ({"a": 1}, Mapping[str, int]),
    ({"a": 1}, dict),
    ("a/b", Path),
    (3, Annotated[int, "metres"]),
    ("anything", Any),
    ("anything", object),
    ("anything", inspect.Parameter.empty),
    ("anything", T),
    ("anything", "a forward reference that can't be evaluated"),
    ([1, 2], int | tuple[int, int]),
    (7, int | tuple[int, int]),
]
NOT_FITTING: list[tuple[Any, Any]] = [
    (3.0, int),
    (True, int),
    ("3", int),
    (None, int),
    (True, float),
    ("1e-3", float),
    (None, float),
    (0, bool),
    ("true", bool),
    (3, str),
    (True, str),
    (None, str),
    ("null", None),
    (0, None),
    ("max", Literal["cls", "avg"]),
    (True, Literal[1, 2]),
    ("16", Literal[16, 32]),
    ("a", Optional[int]),  # noqa: UP045
    (1.5, Union[int, str]),  # noqa: UP007
    ([1], tuple[int, int]),
    ([1, 2, 3], tuple[int, int]),
    ([1, 2.5], tuple[int, int]),
    (1, tuple[int, int]),
    ("ab", tuple[str, str]),
    ([1, "a"], tuple[int, ...]),
    (["a", 1], list[str]),
    ("ab", list[str]),
    ("ab", Sequence[str]),  # a string is no list of its letters
    ("ab", Iterable[str]),
    ({"a": 1}, list[str]),
    ([1], dict[str, int]),
    ({"a": 1}, dict[str, Node | None]),
    ({"a": "1"}, Mapping[str, int]),
    (3, Path),
    ("a", Annotated[int, "metres"]),
    ("round", Wheel),
    ({"spokes": 3}, Wheel),
    ("print", Callable[..., None]),
]


def spelt(case: Any) -> str:
    return str(case).replace("typing.", "")


@pytest.mark.parametrize(("value", "annotation"), FITTING, ids=spelt)
def test_a_value_fits_what_may_hold_it(value: Any, annotation: Any) -> None:
    assert annotations.fits(value, annotation)


@pytest.mark.parametrize(("value", "annotation"), NOT_FITTING, ids=spelt)
def test_a_value_does_not_fit_what_may_not_hold_it(value: Any, annotation: Any) -> None:
    assert not annotations.fits(value, annotation)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "an int"),
        (float, "a number"),
        (bool, "true or false"),
        (str, "a string"),
        (None, "null"),
        (int | None, "an int or null"),
        (Literal["cls", "avg"], "one of 'cls', 'avg'"),
        (int | tuple[int, int], "an int or a list of 2 (an int, an int)"),
        (tuple[float, float], "a list of 2 (a number, a number)"),
        (tuple[float, ...], "a list of a number"),
        (list[str], "a list of a string"),
        (Sequence[int], "a list of an int"),
        (dict[str, Node | None], "a mapping"),
        (dict, "a mapping"),
        (Wheel, "Wheel"),
        (Wheel | None, "Wheel or null"),
    ],
    ids=spelt,
)
def test_an_annotation_is_described_in_words(annotation: Any, words: str) -> None:
    assert annotations.format_type(annotation) == words


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
    assert schema.call_problems("b", {}, Bicycle, supplied=["frame", "gears"]) == []
    assert len(schema.call_problems("b", {}, Bicycle, supplied=["frame"])) == 1


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


def test_a_module_that_fails_for_want_of_another_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_another.py").write_text("import the_other_that_is_not_installed\nclass Thing: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (found,) = schema.node_problems("n", {"_target_": "needs_another.Thing"})
    assert "the_other_that_is_not_installed" in found


def test_the_words_of_hydra_in_a_node_are_no_settings() -> None:
    assert schema.node_problems("n", {"_target_": WHEEL, "_convert_": "all", "_recursive_": False}) == []


def test_a_partial_node_must_be_complete_with_what_the_program_supplies() -> None:
    node = {"_target_": BICYCLE, "_partial_": True, "gears": 3}
    assert schema.node_problems("n", node) == [], "who calls it with what is not known"
    assert schema.node_problems("n", node, supplied=["frame"]) == []
    assert schema.node_problems("n", {**node, "gears": "???"}) != []
    del node["gears"]
    assert schema.node_problems("n", node, supplied=["frame"]) == [
        "n.gears is not set, and has no default: add n.gears=VALUE"
    ]


def test_nodes_are_found_in_a_value_and_one_level_below() -> None:
    node = {"_target_": WHEEL}
    assert schema.child_nodes(node) == {"": node}
    assert schema.child_nodes({"a": node, "b": None, "c": 3}) == {"a": node}
    assert schema.child_nodes([3, node]) == {"1": node}
    assert schema.child_nodes({"a": {"b": node}}) == {}
    assert schema.child_nodes("a") == {}


# ---------------------------------------------------------------------------------------------------- defaults


@pytest.mark.parametrize("class_", [VisionTransformer, DataModule, Augment, Classifier])
def test_defaults_read_from_source_are_those_of_the_signature(class_: type) -> None:
    signature = inspect.signature(class_).parameters.items()
    expected = {name: p.default for name, p in signature if p.default is not inspect.Parameter.empty}
    found = schema.defaults(f"{class_.__module__}.{class_.__qualname__}")
    assert found.pop("_target_") == f"{class_.__module__}.{class_.__qualname__}"
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()} == expected
    assert len(expected) >= 4


def test_defaults_of_a_name_that_is_not_there_are_refused() -> None:
    with pytest.raises(LookupError, match=r"vitlab.models.vit defines no VisionTransformr"):
        schema.defaults("vitlab.models.vit.VisionTransformr")


def test_composing_a_configuration_imports_nothing_heavy() -> None:
    program = f"""
import json, sys, hydra
from vitlab.cli import command, register
from vitlab.jobs.compose import resolve_config
register.register()
with hydra.initialize_config_dir({str(CONF)!r}, version_base="1.3"):
    config = resolve_config(hydra.compose("train", ["model=vit_b16"]), "run")
    assert config["model"]["qkv_bias"] is True
print(json.dumps(sorted(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent / "src")}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    loaded = set(json.loads(ended.stdout))
    assert "vitlab.cli.command" in loaded
    assert not loaded & {"torch", "torchvision", "lightning", "torchmetrics", "timm", "wandb", "sklearn", "matplotlib"}
