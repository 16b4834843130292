"""The card is in Hugging Face's layout, and shows a score only where it was measured with these weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from conftest import Exportable
from vitlab.config.schema import Node
from vitlab.export import model_card
from vitlab.export.export import export_network

GIVEN: Node = {"fold": False, "tolerance": 1e-4, "license": None}
SCORES = {"test/acc": 0.75, "test/loss": 0.5, "test/correct": 15, "test/count": 20}
RESULTS = {
    "status": "finished",
    "checkpoint": "runs/here/checkpoints/best.ckpt",
    **SCORES,
    "val/acc": 0.9,
    "val/acc5": 1.0,
    "val/loss": 0.25,
    "val/correct": 9,
    "val/count": 10,
    "command": "python /home/me/src/train.py data_dir=/data/mine/photos lr=1e-3",
    "commit": "abc123",
    "started": "2026-11-25T01:37:07+00:00",
    "versions": {"torch": "2.14.1"},
}


def card_of(trained: Any, out: Path, **given: Any) -> Any:
    export_network(trained, "timm", out, **{**GIVEN, **given})
    return ModelCard.load(out / "README.md")


def test_the_card_says_what_the_run_recorded(exportable: Exportable, tmp_path: Path) -> None:
    weights = exportable().weights
    (weights.run / "results.json").write_text(json.dumps(RESULTS))
    found = card_of(exportable(), tmp_path / "out", license="mit")
    assert (found.data.library_name, found.data.license, found.data.model_name) == ("timm", "mit", "tiny")
    assert [
        (r.dataset_name, r.dataset_split, r.metric_name, r.metric_value) for r in found.data.eval_results or []
    ] == [
        ("shapes", "test", "Accuracy", 0.75),
        ("shapes", "test", "Cross-entropy", 0.5),
        ("shapes", "val", "Accuracy", 0.9),
        ("shapes", "val", "Top-5 accuracy", 1.0),
        ("shapes", "val", "Cross-entropy", 0.25),
    ]
    for line in (
        "| test | Accuracy | 75.00 % |",
        "| val | Cross-entropy | 0.2500 |",
        "started 2026-11-25T01:37:07+00:00, commit abc123, torch 2.14.1, an unknown device:",
        "\npython .../train.py data_dir=.../photos lr=1e-3\n",
        "shapes: 90 images (training), 10 images (validation), 20 images (test).",
        "normalized by mean 0.5, 0.4, 0.3 and std 0.2, 0.25, 0.3.",
        "0 kind 0, 1 kind 1",
        'timm.create_model("local-dir:FOLDER", pretrained=True)',
    ):
        assert line in found.text or line in found.content, line


def test_no_license_and_no_scores_are_made_up(exportable: Exportable, tmp_path: Path) -> None:
    found = card_of(exportable(), tmp_path / "out")
    assert found.data.license is None
    assert "license" not in found.content.partition("\n---\n")[0]
    assert found.data.eval_results is None
    assert "None were measured with these weights (best.ckpt)." in found.text


@pytest.mark.parametrize("status", ["running", "crashed"])
def test_a_run_that_is_not_finished_has_no_scores(status: str, exportable: Exportable) -> None:
    weights = exportable().weights
    (weights.run / "results.json").write_text(json.dumps({**RESULTS, "status": status}))
    assert model_card.scores(weights) == []


def test_the_scores_of_the_best_checkpoint_are_not_those_of_another(exportable: Exportable) -> None:
    last = exportable(keep="last").weights
    (last.run / "results.json").write_text(json.dumps(RESULTS))
    assert model_card.scores(last) == []
    assert len(model_card.scores(exportable(keep="best").weights)) == 5
    raw = exportable(keep="best", averaged=True).weights._replace(chosen="raw")
    assert model_card.scores(raw) == []


def test_folders_of_the_machine_are_left_out() -> None:
    assert model_card.without_local_paths("x data_dir=/data/mine/photos\n") == r"x data_dir=.../photos\n"
    for line in ("a/b and/or 1/2", "https://arxiv.org/abs/2010.11929", "runs/NAME/STAMP"):
        assert model_card.without_local_paths(line) == line


def test_a_name_is_shown_as_it_is_and_makes_no_markdown() -> None:
    assert model_card.plain_markdown("golden_retriever été") == "golden_retriever été"
    assert model_card.plain_markdown("<b>|[x](y)`\n\x1b") == r"\<b\>\|\[x\](y)\`\\n\\x1b"
