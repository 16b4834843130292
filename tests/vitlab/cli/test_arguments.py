"""What a command line asks for: values and options of groups, alone and in a sweep."""

import os
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from vitlab.cli import arguments


@pytest.mark.parametrize(
    ("line", "is_group", "found"),
    [
        ("seed=3", False, ["++seed=3"]),
        ("+seed=3", False, ["++seed=3"]),
        ("data=digits", True, ["data=digits"]),
        ("~callbacks.progress", False, ["~callbacks.progress"]),
        ("hydra.run.dir=x", False, ["hydra.run.dir=x"]),
        ("seed=0,1", False, ["++seed=0", "++seed=1"]),
        ("data=digits,fake", True, ["data=digits", "data=fake"]),
        ("seed=range(1,4)", False, ["++seed=1", "++seed=2", "++seed=3"]),
        ("optimizer.lr=interval(0.1,1)", False, []),
    ],
)
def test_an_override_is_spelt_so_that_unknown_keys_survive(line: str, is_group: bool, found: list[str]) -> None:
    (override,) = OverridesParser.create().parse_overrides([line])
    assert arguments.spellings(override, is_group, multirun=True) == found


def test_variants_hold_every_value_but_not_every_combination() -> None:
    assert list(arguments.variants([["a=1", "a=2", "a=3"], ["b=1"], ["c=1", "c=2"]])) == [
        ["a=1", "b=1", "c=1"],
        ["a=2", "b=1", "c=1"],
        ["a=3", "b=1", "c=1"],
        ["a=1", "b=1", "c=2"],
    ]
    assert list(arguments.variants([])) == [[]]


def test_what_the_grammar_can_not_read_is_told_by_itself_and_how_a_list_of_settings_is_quoted() -> None:
    listed = "training.settings=[optimizer.lr=3,seed=1]"
    quoted = "training.settings=['optimizer.lr=3','seed=1']"
    first, second = arguments.unreadable_overrides(["seed=3", listed, "a=[b", quoted])
    assert first.startswith(f"{listed} can't be read; settings within a list are quoted")
    assert first.endswith(f'"{quoted}"')
    assert second.startswith("a=[b can't be read; Hydra says: ")


@pytest.mark.parametrize("line", [["-m", "a=1", "b=2"], ["a=1", "-m", "b=2"], ["a=1", "b=2", "-m"]])
def test_the_flag_of_a_sweep_may_be_anywhere(line: list[str]) -> None:
    assert arguments.plain_arguments(line) == ["-m", "a=1", "b=2"]
    assert arguments.parse_arguments(arguments.plain_arguments(line))[0].overrides == ["a=1", "b=2"]


def test_the_last_run_is_the_newest_with_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("digits/a", "digits/b", "explanations/c")):
        (folder := Path("runs", name)).mkdir(parents=True)
        (folder / "config.yaml").touch()
        os.utime(folder / "config.yaml", (number, number))
    assert arguments.plain_arguments(["run=last"]) == ["run=last"], "there is none yet"
    for name in ("a", "b"):
        Path("runs/digits", name, "checkpoints").mkdir()
    assert arguments.plain_arguments(["run=last", "split=val"]) == ["run='runs/digits/b'", "split=val"]
