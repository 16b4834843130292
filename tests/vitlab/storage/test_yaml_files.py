"""A YAML file of a run is read, or refused at once with one kind of error, whoever wrote it."""

from pathlib import Path

import pytest
import yaml

from hostile_files import alias_bomb, merge_bomb
from vitlab.storage import yaml_files
from vitlab.storage.yaml_files import UnreadableYaml, read_yaml


def read(tmp_path: Path, content: str | bytes) -> object:
    (file := tmp_path / "config.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    return read_yaml(file)


@pytest.mark.parametrize(
    "value", [{"a": [1, 2.5, None, True, "ü"], "b": {"c": {}}}, [], "text", None], ids=["mapping", "list", "text", "-"]
)
def test_what_was_written_is_read(value: object, tmp_path: Path) -> None:
    assert read(tmp_path, yaml.safe_dump(value)) == value
    assert read(tmp_path, yaml.safe_dump(value)) == yaml.safe_load(yaml.safe_dump(value))


def test_an_empty_file_is_none(tmp_path: Path) -> None:
    assert read(tmp_path, "") is None


def test_the_aliases_of_a_list_that_is_used_twice_are_read(tmp_path: Path) -> None:
    shared = [1, 2]
    text = yaml.safe_dump({"a": shared, "b": shared})
    assert "*id001" in text
    assert read(tmp_path, text) == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (alias_bomb(), "config.yaml has more than 100,000 values"),
        (merge_bomb(), "more than 100,000 values"),
        ("a: &a [*a]", "more than 100,000 values"),
        ("a: &a {b: *a}", "more than 100,000 values"),
        ("[" * 5000, "config.yaml can't be read"),
        (b"\xff\xfe\x00a", "config.yaml can't be read"),
        ("a: 2024-13-45", "config.yaml can't be read"),
        ("a: [", "expected node content"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: 1\n--- \nb: 2", "expected a single document"),
    ],
)
def test_anything_else_is_one_kind_of_error(content: str | bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableYaml, match=words):
        read(tmp_path, content)


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_files, "MOST_BYTES", 10)
    with pytest.raises(UnreadableYaml, match="has 20 bytes; a run's has fewer than 10"):
        read(tmp_path, "a: " + "x" * 17)
