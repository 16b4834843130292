"""Every setting of every program has an explanation, a type and a value, and no program shows a group of another."""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vitlab.cli import register
from vitlab.cli.checks import CALLED, SUPPLIED
from vitlab.cli.settings import ProgramSettings, in_yaml, value_text
from vitlab.config import paths, schema
from vitlab.config.docstrings import argument_lines
from vitlab.jobs.compose import ensure_hydra

PROGRAMS = (
    "train",
    "evaluate",
    "compare",
    "predict",
    "explain",
    "demo",
    "sweep",
    "export",
    "prepare",
    "doctor",
    "replay",
    "benchmark",
    "plan",
    "preview",
)
TRAINING = {"data", "model", "model/patch", "model/resolution", "model/size", "weights", "classifier"}
TRAINING |= {"optimizer", "schedule", "trainer", "callbacks", "experiment"}
SWEEPING = {"hydra/launcher", "hydra/sweeper", "hydra/sweeper/pruner", "hydra/sweeper/sampler"}
GROUPS = {
    "train": TRAINING | SWEEPING | {"logger"},
    "doctor": TRAINING,
    "plan": TRAINING | {"logger"},
    "preview": TRAINING | {"logger"},
    "evaluate": TRAINING - {"classifier", "optimizer", "schedule", "callbacks"} | {"probe"},
    "prepare": {"data"},
    "predict": {"trainer"},
}


@contextmanager
def settings_of(name: str, *overrides: str) -> Iterator[ProgramSettings]:
    register.register()
    with ensure_hydra():
        yield ProgramSettings(importlib.import_module(name).main, name, [*overrides])


def test_these_are_all_programs() -> None:
    assert {file.stem for file in paths.PROGRAMS.glob("*.py")} == {*PROGRAMS}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_explains_its_root_settings_and_shows_its_groups(name: str) -> None:
    with settings_of(name) as settings:
        assert {*settings.groups} == GROUPS.get(name, set())
        root = {setting.path: setting for setting in settings.root()}
        assert [path for path, setting in root.items() if not setting.line] == []
        groups = [group for group in settings.groups if "/" not in group]
        assert [group for group in groups if not settings.line(group)] == []
        assert not [setting for setting in root.values() if "${" in setting.value or "???" in setting.value]
        unknown = {*settings.lines} - {*root} - {*groups}
        assert unknown == set(), "a line of a setting that does not exist"


def targets() -> list[str]:
    """vitlab's own targets in the files of `conf`, and those of groups without one."""
    files = [file.read_text() for file in paths.CONF.rglob("*.yaml")]
    listed = {target for text in files for target in re.findall(r"_target_: ([\w.]+)", text)}
    return sorted(target for target in {*listed, *CALLED.values()} if target.startswith(("vitlab.", "hydra_plugins.")))


@pytest.mark.parametrize("target", targets())
def test_every_setting_of_a_target_has_an_explanation(target: str) -> None:
    known = schema.parameters(target).values()
    names = [parameter.name for parameter in known if parameter.kind is not parameter.VAR_KEYWORD]
    lines = argument_lines(target)
    passed = (
        SUPPLIED["schedule"] if target.startswith("vitlab.training.schedules.") else ()
    )  # which the module explains
    assert [name for name in names if not lines.get(name) and name not in passed] == []


def test_a_node_shows_what_a_configuration_may_set_alone() -> None:
    with settings_of("train") as settings:
        shown = {
            setting.path
            for node in ("model", "classifier", "weights")
            for setting in settings.of_node(node, settings.nodes(node)[node])
        }
    assert {"model.dim", "classifier.freeze", "weights.strict"} <= shown
    assert not {"model.num_classes", "classifier.network", "weights.arguments", "weights.source"} & shown


def test_a_setting_has_its_resolved_default_or_the_value_of_the_command_line() -> None:
    with settings_of("train") as settings:
        values = {setting.path: setting.value for setting in settings.all()}
    assert values["image_size"] == "8"
    assert values["name"] == "digits-vit_64x4_p2-8px"
    assert values["run_dir"] == "runs/NAME/STAMP"
    assert values["data.skipped_file"] == "runs/NAME/STAMP/skipped.csv"
    assert values["data.source"].startswith("vitlab.data.sets.digits.digits, see --help data.source")
    assert values["data.augment.scale"] == "[0.95, 1.05]"
    assert values["trainer.limit_val_batches"] == "null", "which no file lists"
    with settings_of("train", "model=vit_b16", "data=mnist") as settings:
        values = {setting.path: setting.value for setting in settings.all()}
        assert (settings.choice("model"), settings.choice("logger")) == ("vit_b16", "wandb")
    assert values["name"] == "mnist-vit_b16-224px"
    with settings_of("export") as settings:
        values = {setting.path: setting.value for setting in settings.root()}
    assert (values["run"], values["out"]) == ("required", "RUN/export/FORMAT")


def test_a_bound_is_shown_with_its_type() -> None:
    with settings_of("train") as settings:
        kinds = {setting.path: setting.kind for setting in settings.all()}
    assert kinds["batch_size"] == "an int of at least 1"
    assert kinds["data.augment.shear"] == "a number of at least 0 and below 90"
    assert kinds["model.pool"] == "one of 'cls', 'avg', 'none'"


def test_the_closest_names_are_paths_that_end_alike() -> None:
    with settings_of("train") as settings:
        assert settings.closest("dim") == ["model.dim"]
        assert settings.closest("modle")[0] == "model"
        assert settings.closest("weight_decay")[0] == "optimizer.weight_decay"
        assert settings.closest("qqqqqqqq") == []


def test_values_and_explanations_are_written_as_on_a_command_line() -> None:
    assert value_text({"a": [None, True, ""], "b": (1, "x")}) == "{a: [null, true, ''], b: [1, x]}"
    assert in_yaml("None: as the run's; False for Nonesuch") == "null: as the run's; false for Nonesuch"
