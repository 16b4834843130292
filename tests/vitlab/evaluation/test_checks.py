"""The rules of an evaluation: a run or other weights, their data, the probe."""

import json
from pathlib import Path

import pytest
from PIL import Image

from hostile_files import alias_bomb
from vitlab.config.schema import ConfigView, Node
from vitlab.evaluation import checks
from vitlab.runs import folder

EXPORT = {"run": "run", "checkpoint": "best"}
RUN: Node = {**EXPORT, "test_set": "folders", "probe": None, "model": None, "weights": {"source": None}}
OTHER: Node = {**RUN, "run": None, "model": {}, "data": {"_target_": "a.b"}, "weights": {"source": "w.pth"}}


@pytest.fixture(autouse=True)
def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder `run`, with the checkpoint `last`, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder.write_config(Path("run"), {"logger": {}})
    Path("run/checkpoints").mkdir()
    Path("run/checkpoints/last.ckpt").touch()


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"{", b"[1]"])
def test_a_run_with_a_damaged_configuration_is_a_problem_that_names_the_file(content: bytes) -> None:
    Path("run/config.yaml").write_bytes(content)
    (problem,) = checks.evaluation_problems(ConfigView({**RUN, "checkpoint": "last"}, set()))
    assert problem.startswith("run=run: run/config.yaml is damaged (")


def test_valid_evaluations_have_no_problems() -> None:
    for config in ({**RUN, "checkpoint": "last"}, OTHER):
        assert list(checks.evaluation_problems(ConfigView(config, set()))) == []


@pytest.mark.parametrize(
    ("config", "problems"),
    [
        (
            {**RUN, "run": "gone"},
            ["run=gone is not a run folder: it has no config.yaml; run=last is the newest of runs/"],
        ),
        (RUN, ["checkpoint=best: run/checkpoints has no best.ckpt; train it first"]),
        (
            {**RUN, "run": None},
            ["neither run nor model.weights is set; run=FOLDER evaluates a run, model.weights=SOURCE other weights"],
        ),
        (
            {**OTHER, "run": "run", "checkpoint": "last"},
            ["run and model.weights are both set; leave one of them out"],
        ),
        ({**OTHER, "data": None}, ["data is not set; name the data set to evaluate on, such as data=cifar100"]),
        (
            {**RUN, "checkpoint": "last", "image_size": 8, "data_dir": "here"},
            [
                f"{key} is set, and run=run has its own; leave {key} out, or set model.weights=run, not run"
                for key in ("image_size", "data_dir")
            ],
        ),
        (
            {**RUN, "checkpoint": "last", "image_size": 8, "model": {"dim": 8}},
            ["model is set, and run=run has its own; leave model out, or set model.weights=run, not run"],
        ),
    ],
    ids=lambda case: "" if isinstance(case, dict) else case[0],
)
def test_a_mistake_is_reported_with_value_knob_and_remedy(config: Node, problems: list[str]) -> None:
    assert list(checks.evaluation_problems(ConfigView(config, set()))) == problems


@pytest.mark.parametrize("content", [alias_bomb(), "[", "a: &a [*a]"], ids=["aliases", "not YAML", "endless"])
def test_a_run_whose_configuration_cannot_be_read_is_a_problem(content: str) -> None:
    Path("run/config.yaml").write_text(content)
    (problem,) = checks.evaluation_problems(ConfigView({**RUN, "checkpoint": "last"}, set()))
    assert problem.startswith("run=run: run/config.yaml is damaged (")


def test_a_class_is_named_by_its_name_or_number() -> None:
    classes = ("cat", "dog", "7")
    assert [checks.class_index(classes, name) for name in ("dog", "7", 0, "1")] == [1, 2, 0, 1]
    assert checks.class_index(None, "12") == 12
    with pytest.raises(ValueError, match="target=dgo is no class of the network; did you mean 'dog'"):
        checks.class_index(classes, "dgo")
    for wrong in (3, "-1", "cow"):
        with pytest.raises(ValueError, match=f"target={wrong} is no class"):
            checks.class_index(classes, wrong)


def test_a_target_that_the_judged_network_has_not_is_a_problem() -> None:
    Path("a.png").touch()
    config: Node = {**EXPORT, "checkpoint": "last", "images": "a.png", "compare": None, "baseline": "blur"}
    assert [*checks.explanation_problems(ConfigView({**config, "target": "cow"}, set()))] == [], (
        "its classes are unknown"
    )
    Path("run/evaluation/best-test").mkdir(parents=True)
    rows = [["class", "recall"], ["cat", 1.0], ["dog", None]]
    Path("run/evaluation/best-test/judgement.json").write_text(json.dumps({"classes": rows}))
    for target, problems in (
        ("dog", []),
        (1, []),
        (None, []),
        ("dgo", ["target=dgo is no class of the network; did you mean 'dog'?"]),
        (2, ["target=2 is no class of the network"]),
    ):
        assert [*checks.explanation_problems(ConfigView({**config, "target": target}, set()))] == problems


def test_a_row_that_a_split_has_not_is_a_problem_before_the_network_is_loaded() -> None:
    Path("run/results.json").write_text(json.dumps({"samples": {"train": 90, "val": 10, "test": 0}}))
    config: Node = {**EXPORT, "run": "run", "checkpoint": "last", "compare": None, "baseline": "blur", "target": None}
    found = [
        line
        for images in ("val:9", ["val:10", "test:0"])
        for line in checks.explanation_problems(ConfigView({**config, "images": images}, set()))
        if line.startswith("images=")
    ]
    assert found == [
        "images=val:10: run=run has 10 val images; they count from 0",
        "images=test:0: run=run has 0 test images; they count from 0",
    ]


def test_a_run_has_two_parts_at_most() -> None:
    config: Node = {**EXPORT, "checkpoint": "last", "embed": False}
    for part, problems in (
        (None, []),
        ("ema", []),
        ("emma", ["part=emma: a run has ema and raw weights, with callbacks=ema; choose one, or leave part out"]),
    ):
        assert [*checks.prediction_problems(ConfigView({**config, "part": part}, set()))] == problems


def test_a_photograph_for_frost_must_be_larger_than_the_images() -> None:
    for name in checks.FROST:
        Image.new("RGB", (40, 30)).save(name)
    folder.write_config(Path("run"), {"logger": {}, "image_size": [24, 39]})
    config: Node = {**RUN, "checkpoint": "last", "corruptions": ["frost"], "frost_dir": ".", "test_set": "folders"}
    assert [*checks.evaluation_problems(ConfigView(config, set()))] == []
    Image.new("RGB", (39, 30)).save("frost3.png")
    expected = ["frost_dir=.: frost3.png of 30 x 39 is too small for image_size=[24, 39]"]
    assert [*checks.evaluation_problems(ConfigView(config, set()))] == expected
    other = {**OTHER, "corruptions": "all", "frost_dir": ".", "test_set": "folders", "image_size": 30}
    assert len([*checks.evaluation_problems(ConfigView(other, set()))]) == 5
