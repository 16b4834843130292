"""An export is compared with the live network before its folder appears; impossible ones are refused before that."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import Exportable
from vitlab.config.schema import Node
from vitlab.export import export as export_export
from vitlab.export.export import FORMATS, SIZES, OutputsDiffer, export_network, problems, unsupported_parts
from vitlab.export.folder import RECORD, write_tensors

GIVEN: Node = {"fold": False, "tolerance": 1e-4, "license": None}


def refusals(trained: Any, name: str, out: Path, **given: Any) -> list[str]:
    asked = {"checkpoint": "best", "part": None, "fold": False, **given}
    return list(problems(run=trained.weights.run, name=name, out=out, **asked))


@pytest.mark.parametrize("name", ["safetensors", "timm", "hf", "torch_export"])
def test_each_format_leaves_weights_a_card_and_a_record(
    name: str, exportable: Exportable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "vitlab")
    out = tmp_path / "out"
    found = export_network(exportable(depth=1), name, out, **GIVEN)
    record = json.loads((out / RECORD).read_text())
    assert {"out": str(out), **record} == found
    assert 0 <= record["largest_difference"] < 1e-5
    assert record["compared_with"].startswith(f"{FORMATS[name].checked_by} ")
    assert (record["format"], record["step"], record["checkpoint"]) == (name, 12, "best.ckpt")
    assert {*record["sha256"], "README.md", "export.json"} == {file.name for file in out.iterdir()}
    for file, digest in record["sha256"].items():
        assert hashlib.sha256((out / file).read_bytes()).hexdigest() == digest
    assert "the largest difference from the live network's logits is" in caplog.text
    assert {file.name for file in tmp_path.iterdir()} == {"out", "run"}, "nothing else"


def test_what_differs_is_refused_and_nothing_is_left(exportable: Exportable, tmp_path: Path) -> None:
    trained = exportable()

    timm = FORMATS["timm"]

    def write_other(_: Any, folder: Path, *, fold: bool) -> None:
        timm.write(trained, folder, fold=fold)
        state = load_file(folder / "model.safetensors")
        state["head.bias"] += 0.01
        write_tensors(folder / "model.safetensors", state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, "timm", timm._replace(write=write_other))
        with pytest.raises(OutputsDiffer, match=r"loaded with timm, logits differ by .* more than tolerance=0.0001"):
            export_network(trained, "timm", tmp_path / "out", **GIVEN)
        assert {file.name for file in tmp_path.iterdir()} == {"run"}
        record = export_network(trained, "timm", tmp_path / "out", **{**GIVEN, "tolerance": 1.0})
        assert record["largest_difference"] > 1e-3


def test_weights_that_are_no_numbers_are_refused(exportable: Exportable, tmp_path: Path) -> None:
    trained = exportable()
    with torch.no_grad():
        trained.network.head.bias[0] = torch.nan
    with pytest.raises(OutputsDiffer, match="differ by nan"):
        export_network(trained, "safetensors", tmp_path / "out", **GIVEN)


def test_a_library_that_is_not_installed_is_logged(
    exportable: Exportable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(export_export, "find_spec", lambda name: None if name in ("transformers", "onnx") else object())
    trained = exportable()
    found = export_network(trained, "hf", tmp_path / "out", **GIVEN)
    assert found["largest_difference"] is None
    assert "not compared with the live network: transformers isn't installed" in caplog.text
    assert "It was not compared with the trained network" in (tmp_path / "out" / "README.md").read_text()
    assert refusals(trained, "onnx", tmp_path / "other") == ["format=onnx needs onnx: python -m pip install onnx"]


def test_all_problems_are_reported_at_once(exportable: Exportable, tmp_path: Path) -> None:
    trained = exportable(pre_norm=True, pre_logits_dim=24)
    assert refusals(trained, "onnx", tmp_path / "out") == []
    able = "formats that do: safetensors, onnx, torch_export"
    kept = trained.weights.run / "checkpoints"
    assert refusals(trained, "hf", kept, fold=True) == [
        "fold=true: format=hf holds weights without preprocessing; use format=onnx or format=torch_export",
        f"out={kept} exists already, and nothing is overwritten; remove it, or name another folder",
        "format=hf doesn't support model.pre_norm=true: of transformers' classifiers only CLIP's has it, without a "
        f"final norm; {able}",
        "format=hf doesn't support model.pre_logits_dim=24: transformers' classifiers have no layer before their head; "
        + able,
    ]


def test_weights_that_the_checkpoint_does_not_have_are_refused(exportable: Exportable, tmp_path: Path) -> None:
    trained = exportable()
    (line,) = refusals(trained, "timm", tmp_path / "out", part="raw")
    assert line.startswith("part=raw: ")
    exportable(averaged=True)
    assert refusals(trained, "timm", tmp_path / "out", part="raw") == []


def test_a_network_of_another_kind_goes_where_any_does(exportable: Exportable) -> None:
    weights = exportable().weights
    resnet = weights._replace(kind="timm", arguments={"model_name": "resnet18"})
    assert [name for name in FORMATS if not unsupported_parts(resnet, name)] == [
        "safetensors",
        "timm",
        "onnx",
        "torch_export",
    ]
    assert unsupported_parts(resnet, "hf") == ["timm's resnet18: it is for plain Vision Transformers"]
    other = weights._replace(kind="other")
    assert [n for n in FORMATS if not unsupported_parts(other, n)] == ["safetensors", "onnx", "torch_export"]


@pytest.mark.parametrize("size", [32, (84, 112), (112, 84)], ids=str)
@pytest.mark.parametrize("fraction", [0.875, 1.0, 0.9])
def test_timm_crops_the_pixels_that_were_evaluated(
    size: int | tuple[int, int], fraction: float, exportable: Exportable, tmp_path: Path
) -> None:
    trained = exportable(image_size=size, patch_size=4, crop_fraction=fraction)
    record = export_network(trained, "timm", tmp_path / "out", **GIVEN)
    through = record["through_preprocessing"]
    assert (through["images"], through["other_pixels"]) == (len(SIZES), [])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "for equal pixels.\nThrough the preprocessing of this folder, on 12 images of odd sizes, they" in card
    assert "crops other pixels" not in card


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["timm", "hf"])
def test_squashed_images_have_the_pixels_that_were_evaluated(
    channels: int, name: str, exportable: Exportable, tmp_path: Path
) -> None:
    trained = exportable(in_channels=channels)
    record = export_network(trained, name, tmp_path / "out", **GIVEN)
    assert record["through_preprocessing"]["other_pixels"] == []


def test_sizes_that_a_library_crops_elsewhere_are_told(
    exportable: Exportable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = exportable(image_size=(84, 112), patch_size=4, crop_fraction=0.875)
    record = export_network(trained, "hf", tmp_path / "out", **GIVEN)
    through = record["through_preprocessing"]
    assert "83 x 83" in through["other_pixels"], "transformers can't cover a rectangle, and pads"
    assert "375 x 500" not in through["other_pixels"]
    assert through["largest_difference"] > 1e-3
    words = "crops other pixels than were evaluated"
    assert words in caplog.text
    assert words in (tmp_path / "out" / "README.md").read_text()
