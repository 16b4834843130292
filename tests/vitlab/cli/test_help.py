"""`--help` of every program: what it does, its settings and groups, examples that compose; and one topic alone."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from vitlab.cli import register
from vitlab.cli.arguments import parse_arguments, single_values
from vitlab.cli.help import FLAGS, option_text, show_help, split_docstring
from vitlab.config import paths
from vitlab.jobs.compose import compose, ensure_hydra

PROGRAMS = sorted(file.stem for file in paths.PROGRAMS.glob("*.py"))


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Print a program's help, as wide as asked."""

    def show(name: str, *words: str, columns: int = 80, status: int = 0) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        register.register_resolvers()
        register.register()
        flags, _ = parse_arguments(["--help", *words])
        assert show_help(importlib.import_module(name).main, flags) == status
        return "".join(capsys.readouterr())

    return show


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_shows_what_a_program_does_its_settings_and_examples(name: str, shown) -> None:  # type: ignore[no-untyped-def]
    text, program = shown(name), importlib.import_module(name)
    first = (program.__doc__ or "").partition("\n")[0]
    assert " ".join(text.split()).startswith(first)
    assert f"Usage: python src/{name}.py" in text
    assert text.index("Settings, with their types and defaults:") < text.index("\nFlags:") < text.index("\nExamples:")
    assert all(flag in text for flag, _ in FLAGS)
    assert ("one run for each combination" in text) == (name in ("train", "plan"))
    assert "\x1b" not in text
    above = text.partition("\nExamples:")[0].splitlines()
    assert max(map(len, above)) <= 80
    assert max(map(len, shown(name, columns=200).partition("\nExamples:")[0].splitlines())) > 80


def examples() -> list[tuple[str, str]]:
    lines = [
        line.strip() for name in PROGRAMS for line in split_docstring(importlib.import_module(name).__doc__ or "")[1]
    ]
    return [(line, line.split()[1].removeprefix("src/").removesuffix(".py")) for line in lines]


@pytest.mark.parametrize(("line", "name"), examples())
def test_an_example_composes(line: str, name: str) -> None:
    command = re.split(" {2,}", line)[0]  # then what it does
    words = [word for word in shlex.split(command)[2:] if word != "-m"]
    overrides = [f"action={word}" if "=" not in word else word for word in words]
    register.register_resolvers()
    register.register()
    with ensure_hydra():
        assert compose(name, single_values(overrides, multirun=" -m " in command))


def test_a_topic_is_a_group_a_node_or_a_setting(shown) -> None:  # type: ignore[no-untyped-def]
    model = shown("train", "model")
    assert "vit_mini (default)" in model
    assert "Settings of model (vitlab.models.vit.VisionTransformer)" in model
    assert "  model.depth: an int of at least 1; default: 4\n      Number of blocks.\n" in model
    assert "model.num_classes" not in model, "the program sets it"
    augment = shown("train", "data.augment", "data=cifar10")
    assert "  data.augment.flip: true or false; value: true\n" in augment
    assert "trainer.max_epochs: an int or null; default: 120\n      Stop training" in shown("train", "trainer")
    assert "trainer.logger" not in shown("train", "trainer"), "which is refused"
    assert shown("train", "batch_size").count("\n") == 2
    assert "dim=768 depth=12" in shown("train", "model/size")
    assert "Settings of callbacks.last" in shown("train", "callbacks")
    assert "hydra.sweeper.n_trials: an int of at least 1; value: 20" in shown(
        "train", "hydra/sweeper", "hydra/sweeper=optuna"
    )


def test_an_unknown_topic_is_refused_with_the_closest(shown) -> None:  # type: ignore[no-untyped-def]
    assert "train --help dim: no group or setting has this name; the closest: model.dim" in shown(
        "train", "dim", status=2
    )
    assert "the closest: model" in shown("train", "modle", status=2).replace("\n", " ")
    assert "no group or setting" in shown("export", "model", status=2)


def test_help_at_the_end_of_a_sweep_shows_its_first_values_and_a_wrong_option_is_refused(shown) -> None:  # type: ignore[no-untyped-def]
    assert "batch_size: an int of at least 1; value: 4\n" in shown("train", "-m", "batch_size=4,8", "++sede=3")
    assert "train --help: " in shown("train", "model=vit_minni", status=2)
    assert "train --help: " in shown("train", "seed=[", status=2)


def test_nothing_of_a_refused_target_is_imported(shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "trap.py").write_text("raise AssertionError\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "Settings of" not in shown("train", "model", "model._target_=trap.Trap")


def test_a_program_of_the_wheel_is_called_as_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "COMMAND", "vitlab {}")
    doc = "Do it.\n\nMore\ntext.\n\n    python src/train.py model=vit_b16    a preset\n"
    assert split_docstring(doc) == (["Do it.", "More text."], ["  vitlab train model=vit_b16    a preset"])


def test_an_option_is_explained_by_the_comment_of_its_file() -> None:
    assert option_text("data", "digits").startswith("1,797 handwritten digits")
    assert option_text("model/patch", "p16") == "patch_size=16"
    assert option_text("hydra/launcher", "basic") == "", "Hydra's own"
