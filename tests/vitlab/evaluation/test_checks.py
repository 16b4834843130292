"""The rules of an evaluation: a run or other weights, their data, the probe."""

from pathlib import Path

import pytest

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
