"""A source is located as a file, in a folder, in the hub's cache, or by timm's name; errors say why not."""

import dataclasses
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from vitlab.models.vit import VisionTransformer
from vitlab.weights.files import UnreadableWeights
from vitlab.weights.locate import cached_read, clear_cache, locate_in_folder, locate_on_hub, locate_weights

STATE = {"a": torch.ones(2)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub: Path, repo: str) -> Path:
    """A folder in the cache, as a download leaves it."""
    folder = hub / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (snapshot := folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return snapshot


def test_a_file_and_the_only_file_of_a_folder_are_found(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "anything.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    for source in (tmp_path, tmp_path / "anything.safetensors"):
        opened = locate_weights(str(source))
        assert opened.file.name == "anything.safetensors"
        assert opened.config == {"model_type": "vit"}


def test_of_several_files_the_librarys_own_name_is_taken_or_the_choice_is_asked_for(tmp_path: Path) -> None:
    for name in ("x.pth", "y.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UnreadableWeights, match=r"several files of weights \(x\.pth, y\.safetensors\); name one"):
        locate_in_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert locate_in_folder(tmp_path).name == "model.safetensors"
    (tmp_path / "none").mkdir()
    with pytest.raises(UnreadableWeights, match="holds no weights"):
        locate_in_folder(tmp_path / "none")


def test_folders_and_other_files_are_no_weights_and_the_first_of_many_are_listed(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("readme.txt", "only.fp16.safetensors.index.json"):
        (tmp_path / name).write_bytes(b"")
    assert locate_in_folder(tmp_path).name == "only.fp16.safetensors.index.json"
    for number in range(10):
        (tmp_path / f"{number}.pt").write_bytes(b"")
    with pytest.raises(UnreadableWeights, match=r"\((\d\.pt, ){7}7\.pt\); name one"):
        locate_in_folder(tmp_path)


def test_a_folder_in_the_hubs_layout_and_a_home_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "vit").mkdir()
    save_file(STATE, tmp_path / "vit" / "model.safetensors")
    (tmp_path / "vit" / "config.json").write_text("[]")
    for source in ("hf:~/vit", f"hf:{tmp_path}/vit", "~/vit", "~/vit/model.safetensors"):
        opened = locate_weights(source)
        assert (opened.source, opened.file) == (source, tmp_path / "vit" / "model.safetensors")
        assert (opened.config, opened.record, opened.timm_name) == ({}, {}, None)


def test_a_run_is_its_best_checkpoint_with_its_record(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: x")
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": STATE, "vitlab": {"run": "x"}}, best := tmp_path / "checkpoints" / "best.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    for source in (tmp_path, tmp_path / "config.yaml", best):
        opened = locate_weights(str(source))
        assert (opened.file, opened.record) == (best, {"run": "x"})


def test_what_the_hub_has_is_downloaded_in_the_revision_and_with_all_shards(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, local = tmp_path / "remote", tmp_path / "local"
    for folder in (remote, local):
        folder.mkdir()
    for number, name in enumerate("ab"):
        save_file({name: torch.ones(2)}, remote / f"part-{number}.safetensors")
    index = {"weight_map": {"a": "part-0.safetensors", "b": "part-1.safetensors"}}
    (remote / "model.safetensors.index.json").write_text(json.dumps(index))
    (remote / "config.json").write_text('{"model_type": "vit"}')
    asked = set[tuple[str, str | None, bool]]()

    def download(repo: str, filename: str, *, revision: str | None, local_files_only: bool) -> str:
        asked.add((repo, revision, local_files_only))
        if not (remote / filename).is_file():
            raise errors.LocalEntryNotFoundError(filename)
        return str(shutil.copy(str(remote / filename), str(local)))

    monkeypatch.setattr("vitlab.weights.locate.hub_problem", lambda: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for name, revision in (("some/vit", None), ("some/vit@v2", "v2")):
        asked.clear()
        opened = locate_on_hub(f"hf:{name}", name)
        assert list(opened.content.parts[""]) == ["a", "b"]
        assert opened.config == {"model_type": "vit"}
        assert asked == {("some/vit", revision, False)}


def test_a_damaged_configuration_is_reported(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(UnreadableWeights, match=r"config\.json is damaged"):
        locate_weights(str(tmp_path))


@pytest.mark.parametrize(("content", "record"), [({"run": "x"}, {"run": "x"}), ("x", {}), (None, {})])
def test_the_record_of_a_run_is_read_from_its_export(tmp_path: Path, content: object, record: object) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"vitlab": content}))
    assert locate_weights(str(tmp_path)).record == record


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    save_file(STATE, file := tmp_path / "model.safetensors")
    assert list(locate_weights(str(file)).content.parts[""]) == ["a"]
    save_file({"b": torch.ones(2)}, file)
    os.utime(file, ns=(1, 1))
    assert list(locate_weights(str(file)).content.parts[""]) == ["b"]


def test_a_repository_in_the_hubs_cache_is_found_without_a_network(hub: Path) -> None:
    snapshot = cached(hub, "somebody/vit")
    save_file(STATE, snapshot / "part-1.safetensors")
    index = {"weight_map": {"a": "part-1.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    opened = locate_on_hub("hf:somebody/vit", "somebody/vit")
    assert opened.preprocessor == {"image_mean": [0.5]}
    assert list(opened.content.parts[""]) == ["a"]


def test_timms_name_brings_timms_preprocessing(hub: Path) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    snapshot = cached(hub, f"timm/{name}")
    save_file(VisionTransformer(dim=192, depth=1, heads=3).state_dict(), snapshot / "model.safetensors")
    opened = locate_weights(f"timm:{name}")
    assert opened.timm_name == "vit_tiny_patch16_224"
    said = timm.get_pretrained_cfg(name)
    assert said is not None
    assert opened.config["pretrained_cfg"]["mean"] == said.mean == (0.5, 0.5, 0.5)
    assert locate_on_hub.cache_info().currsize > 0
    clear_cache()
    assert locate_on_hub.cache_info().currsize == cached_read.cache_info().currsize == 0


@pytest.mark.parametrize("kind", ["file", "url"])
def test_timms_name_may_be_of_a_file_or_an_address(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    save_file(STATE, file := tmp_path / "w.safetensors")
    said = timm.get_pretrained_cfg(name)
    assert said is not None
    kinds: dict[str, dict[str, Any]] = {
        "file": {"file": str(file)},
        "url": {"url": "https://example.org/w", "hf_hub_id": None},
    }
    changed = kinds[kind]
    monkeypatch.setattr("timm.models.get_pretrained_cfg", lambda _: dataclasses.replace(said, **changed))
    monkeypatch.setattr("timm.models._hub.download_cached_file", {"https://example.org/w": str(file)}.get)
    opened = locate_weights(f"timm:{name}")
    assert (opened.file, opened.timm_name) == (file, "vit_tiny_patch16_224")
    assert list(opened.content.parts[""]) == ["a"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.safetensors", "there is no file or folder gone.safetensors"),
        ("google/vit-base-patch16-224", "did you mean hf:google/vit-base-patch16-224"),
        ("a/b/c", "there is no file or folder a/b/c$"),
        ("a/b.pth", r"there is no file or folder a/b\.pth$"),
        ("timm:vit_base_patch16_224.x", r"it has ((, )?vit_base_patch16_224\.\w+)+$"),
        ("hf:nobody/nothing", "neither the hub nor its local cache has weights of that name"),
        ("timm:vit_tny_patch16_224", "timm has no vit_tny_patch16_224; did you mean 'vit_tiny_patch16_224'"),
        ("timm:vit_tiny_patch16_224.nope", r"timm has no such weights; it has vit_tiny_patch16_224\.augreg_in21k"),
        ("timm:vit_gigantic_patch14_224", "timm has no such weights; it has none of it"),
        ("timm:vit_tiny_patch16_224", "has weights of that name"),
    ],
)
def test_a_missing_source_is_reported(hub: Path, source: str, message: str) -> None:
    with pytest.raises(UnreadableWeights, match=message):
        locate_weights(source)


def test_what_the_hubs_library_says_is_the_reason(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlab.weights.locate.hub_problem", lambda: None)  # it was reached a moment ago
    with pytest.raises(UnreadableWeights, match=r"has weights of that name \(.*(offline|connect|find).*\)$"):
        locate_on_hub("hf:nobody/broken", "nobody/broken")


@pytest.mark.parametrize(
    ("kind", "what"),
    [("RevisionNotFoundError", "revision v2 of it"), ("RepositoryNotFoundError", "such repository")],
)
def test_what_the_hub_does_not_have_is_named(hub: Path, kind: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        error = getattr(errors, kind)
        raise error.__new__(error)

    monkeypatch.setattr("vitlab.weights.locate.hub_problem", lambda: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(UnreadableWeights, match=f"^hf:a/b: the hub has no {what}, or it is private"):
        locate_on_hub("hf:a/b", f"a/b-{kind}@v2")


def test_without_a_network_the_cache_is_used_and_errors_come_at_once(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.socket() as nobody:  # a port without a listener
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        save_file(STATE, cached(hub, "somebody/else") / "model.safetensors")
        assert list(locate_on_hub("hf:somebody/else", "somebody/else").content.parts[""]) == ["a"]
        begun = time.monotonic()
        with pytest.raises(UnreadableWeights, match=r"can't be reached \(.*; run `hf download nobody/nothing`"):
            locate_weights("hf:nobody/nothing")
        assert time.monotonic() - begun < 5, "tried once"
