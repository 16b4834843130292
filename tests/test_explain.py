"""`python src/explain.py` draws what a network looks at, scores it, and shows it on a page."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import explain
from conftest import Exportable

Run = Callable[..., Path]


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the program in this process: overrides -> its folder."""

    def run(*overrides: str) -> Path:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["explain.py", *overrides, "hydra.run.dir=out"])
        explain.main()
        return tmp_path / "out"

    return run


def test_a_runs_images_are_explained_and_its_networks_compared(twins: list[Path], explained: Run) -> None:
    out = explained(f"run={twins[0]}", f"compare={twins[1]}", "count=2", "samples=10", "batch_size=4", "baseline=mean")
    pictures = {"spread", "norms", "tokens", "positions", "filters", "cka", "curves"}
    assert {file.stem for file in out.glob("*.png")} == pictures | {"maps_0", "maps_1", "heads_0", "heads_1"}
    with (out / "scores.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["method"] for row in rows] == ["attention", "rollout", "relevance", "random"]
    assert {row["images"] for row in rows} == {"10"}
    numbers = json.loads((out / "explain.json").read_text())
    assert [row["deletion"] for row in numbers["scores"]] == [float(row["deletion"]) for row in rows]
    assert len(numbers["images"]) == 10
    assert all(name.startswith("val ") and len(top) == 3 for name, top in numbers["images"].items())
    page = (out / "index.html").read_text()
    assert page.count("<img") == len(pictures) + 4
    assert "http:" not in page.replace("http://www.w3.org", "")
    first = next(iter(numbers["images"]))
    assert f"{first}: {numbers['images'][first][0][0]} " in page
    again = explained(f"run={twins[0]}", "count=1", "samples=10", "batch_size=4", "baseline=mean")
    assert json.loads((again / "explain.json").read_text())["scores"] == numbers["scores"]


def test_rows_of_a_runs_splits_are_explained_by_the_names_of_images_csv(
    twins: list[Path], explained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with (twins[0] / "evaluation" / "best-test" / "images.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    out = explained(f"run={twins[0]}", "images=[test:17,test:3,val:0]", "batch_size=4", "count=1")
    numbers = json.loads((out / "explain.json").read_text())["images"]
    assert [*numbers][:2] == [f"test {row}, {rows[row]['label']}" for row in (17, 3)]
    assert [*numbers][2].startswith("val 0, ")
    for row, top in zip((17, 3), numbers.values(), strict=False):
        assert top[0][0] == rows[row]["prediction"]
        assert top[0][1] == pytest.approx(float(rows[row]["probability"]), abs=1e-4)
    with pytest.raises(SystemExit):
        explained(f"run={twins[0]}", "images=test:360")
    assert f"images=test:360: run={twins[0]} has 360 test images" in capsys.readouterr().err


def test_a_users_images_are_explained_for_a_class_and_names_are_escaped(
    exportable: Exportable, explained: Run, tmp_path: Path
) -> None:
    exportable(image_size=(16, 24), num_registers=2, pos_embed="none")
    for name in ("<b>one.png", "two.jpg"):
        Image.effect_noise((30, 20), 90).convert("RGB").save(tmp_path / name)
    out = explained("run=run", f"images={tmp_path}/*.*g", "target=kind 3", "count=1")
    assert not (out / "positions.png").exists()
    assert not (out / "cka.png").exists()  # of two images
    page = (out / "index.html").read_text()
    assert "&lt;b&gt;one.png: kind" in page
    assert "<b>" not in page
    assert "no picture of position embeddings" in (out / "explain.log").read_text()


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["run=gone"], "run=gone doesn't exist; name a run, an export"),
        (["run=run", "images=gone.png"], "images=gone.png is no image, and no folder or pattern with images"),
        (["run=timm:vit_tiny_patch16_224"], "images is not set, and run=timm:vit_tiny_patch16_224 has none"),
        (["run=timm:vit_tiny_patch16_224", "images=test:3"], "images is test:3, and run=timm:vit_tiny_patch16_224 has"),
        (["run=run", "images=[test:3,a.png]"], "images=test:3 is no image, and no folder or pattern with images"),
        (["run=run", "compare=gone"], "compare=gone doesn't exist; name a run, weights, timm:NAME or hf:NAME"),
        (["run=run", "baseline=black"], "baseline=black is not one of 'blur', 'mean'"),
        (["run=run", "count=0"], "count=0 must be at least 1"),
    ],
)
def test_a_mistake_is_reported_before_the_start(
    overrides: list[str], problem: str, exportable: Exportable, explained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    exportable()
    with pytest.raises(SystemExit):
        explained(*overrides)
    assert f"- {problem}" in capsys.readouterr().err


def test_an_unknown_class_is_named(exportable: Exportable, explained: Run, tmp_path: Path) -> None:
    exportable()
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit):
        explained("run=run", "images=a.png", "target=kin")
    assert (
        "target=kin is no class of the network" in json.loads((tmp_path / "out" / "results.json").read_text())["error"]
    )
