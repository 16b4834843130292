"""A folder appears complete or not at all, and nothing is ever replaced."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import Exportable
from model_cards import run_card
from vitlab.export import folder as export_folder
from vitlab.export.export import FORMATS, largest_difference
from vitlab.export.folder import RECORD, atomic_folder, folder_problem, write_json, write_tensors
from vitlab.weights.load import load_pretrained
from vitlab.weights.open import open_weights


def contents(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_the_folder_comes_into_its_place_when_all_is_written(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with atomic_folder(out) as folder:
        write_json(folder / RECORD, {"café": 1})
        assert not out.exists()
    assert contents(tmp_path / "deep") == {"out"}
    assert json.loads((out / RECORD).read_text()) == {"café": 1}


def test_nothing_is_left_of_one_that_failed(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interrupted() -> None:
        with atomic_folder(out) as folder:
            (folder / "new").write_text("2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(tmp_path) == set()


@pytest.mark.parametrize("target", ["folder", "nothing"])
def test_a_link_is_not_written_through(tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    (out := tmp_path / "out").symlink_to(target)
    problem = f"out={out} is a link; name the folder that it leads to, {tmp_path / target}, or another one"
    assert folder_problem(out) == problem


def test_what_has_come_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def late() -> None:
        with atomic_folder(out) as folder:
            (folder / "new").write_text("2")
            out.mkdir()
            (out / "thesis.tex").write_text("1")

    with pytest.raises(OSError, match="not empty"):
        late()
    assert contents(tmp_path) == {"out"}
    assert contents(out) == {"thesis.tex"}


def test_only_a_new_or_an_empty_folder_is_written_to(tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    assert folder_problem(tmp_path / "new") is None
    assert folder_problem(out) is None
    (out / "thesis.tex").write_text("1")
    for place in (out, out / "thesis.tex"):
        assert folder_problem(place) == (
            f"out={place} exists already, and nothing is overwritten; remove it, or name another folder"
        )


def test_views_are_written_as_what_they_show_and_everybody_who_may_can_read_them(tmp_path: Path) -> None:
    numbers = torch.arange(12.0).view(3, 4)
    state = {"one": numbers[0], "two": numbers[1:].t()}
    write_tensors(tmp_path / "a.safetensors", state)
    (tmp_path / "a.txt").write_text("text")
    found = load_file(tmp_path / "a.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {k: v.tolist() for k, v in state.items()}
    modes = {(tmp_path / f"a.{ending}").stat().st_mode for ending in ("safetensors", "txt")}
    assert len(modes) == 1


EVERYTHING = {"num_registers": 2, "layer_scale": 0.1, "pool": "avg", "image_size": (16, 32), "activation": "swiglu"}


@pytest.mark.parametrize("options", [{"pos_embed": "sincos2d"}, EVERYTHING], ids=["sincos2d", "everything"])
def test_the_folder_makes_the_network_again(options: dict[str, Any], exportable: Exportable, tmp_path: Path) -> None:
    trained = exportable(**options)
    found = run_card(trained, "safetensors", folder := tmp_path / "out")
    assert largest_difference(FORMATS["safetensors"], trained, folder, False) == 0
    images = torch.randn(2, 3, *trained.image_size)
    assert torch.equal(found["model"](images), trained.network(images))


def test_the_folder_is_read_as_weights_with_its_preprocessing(exportable: Exportable, tmp_path: Path) -> None:
    trained = exportable(**EVERYTHING, heads=4)
    (folder := tmp_path / "out").mkdir()
    export_folder.write_safetensors(trained, folder, fold=False)
    weights = open_weights(str(folder))
    network, _ = load_pretrained(weights)
    images = torch.randn(2, 3, *trained.image_size)
    assert torch.equal(network.eval()(images), trained.network(images))
    assert weights.preprocessing.mean == trained.mean
