"""What a set is called, which splits it has, and what its description costs."""

import importlib.util
import threading
from functools import partial, partialmethod
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pytest

from hub_files import CLASSES, Ranges, table
from vitlab.config.schema import Node
from vitlab.data.sets import huggingface_index
from vitlab.data.sets.huggingface import huggingface as source_of
from vitlab.data.sets.huggingface import problems
from vitlab.data.source import loader_settings


@pytest.mark.parametrize(
    ("names", "asked", "expected"),
    [
        (("train", "test"), {}, ("train", None, "test")),
        (("train", "validation", "test"), {}, ("train", "validation", "test")),
        (("train", "validation"), {}, ("train", None, "validation")),
        (("train", "dev"), {"val_split": "dev"}, ("train", "dev", None)),
        (("train",), {}, ("train", None, None)),
        (("full",), {}, ("full", None, None)),
        (("test",), {}, ("test", None, None)),
        (("train_small", "test"), {}, ("train_small", None, "test")),
        (("train", "test", "extra"), {"train_split": "extra"}, ("extra", None, "test")),
        (("train", "test_a", "test_b"), {"test_split": "test_b"}, ("train", None, "test_b")),
    ],
)
def test_splits_are_found_by_their_names(names: tuple[str, ...], asked: Node, expected: tuple[Any, ...]) -> None:
    found = huggingface_index.ResolvedDataset("set", names, None, None, None, "")
    knobs = [asked.get(f"{name}_split") for name in ("train", "val", "test")]
    assert huggingface_index.choose_splits(found, *knobs) == expected


def test_without_the_hub_what_its_cache_has_is_used(parquet: Path, tmp_path: Path) -> None:
    load = partial(source_of, cache_dir=str(tmp_path / "cache"))
    load(name=str(parquet))
    (tmp_path / "cache" / "digits").rename(tmp_path / "cache" / "someone___digits")  # as a download would lie there
    (commit,) = [
        folder.name for folder in (tmp_path / "cache").glob("someone___digits/default/0.0.0/*") if folder.is_dir()
    ]
    source = load(name="someone/digits")
    assert (source.name, len(source.train)) == ("someone/digits", 600)
    assert (source.train.files or [])[0] == "someone/digits/train/0"
    assert len(load(name="someone/digits", revision=commit).train) == 600
    with pytest.raises(ValueError, match=f"the Hub can't be reached .*, and its cache has revision {commit}, not main"):
        load(name="someone/digits", revision="main")


def test_a_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch, parquet: Path) -> None:
    settings = loader_settings({"_target_": "vitlab.data.sets.huggingface.huggingface", "name": str(parquet)})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (found,) = problems(**settings)
    assert found.endswith("needs the package datasets, which isn't installed: pip install -e '.[huggingface]'")


class Counted(Ranges):
    """Remembers what it was asked for."""

    asked: ClassVar[list[str]] = []

    def parse_request(self) -> bool:
        understood = super().parse_request()
        Counted.asked.append(self.path)
        return understood


def test_a_network_is_asked_once_and_a_disk_each_time(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)

    class Here(Counted):
        __init__ = partialmethod(Counted.__init__, directory=str(parquet / "data"))

    with ThreadingHTTPServer(("127.0.0.1", 0), Here) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/test-0.parquet"
        first = huggingface_index.resolve_dataset(url, cache_dir=str(tmp_path))
        asked = len(Counted.asked)
        assert huggingface_index.resolve_dataset(url, cache_dir=str(tmp_path)) is first
        server.shutdown()
    assert len(Counted.asked) == asked > 0
    file = tmp_path / "local.parquet"
    for feature in (CLASSES, datasets.Value("int32")):
        table([0, 1], feature).to_parquet(file)
        columns = huggingface_index.resolve_dataset(str(file), cache_dir=str(tmp_path)).columns
        assert columns
        assert columns["label"] == feature
