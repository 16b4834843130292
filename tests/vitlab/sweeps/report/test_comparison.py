"""Runs are compared image by image where they have the same ones, and with scipy's and statsmodels' numbers."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from vitlab.evaluation.judgement_pictures import dataset_images, draw_gallery
from vitlab.runs import folder
from vitlab.sweeps.report.comparison import paired_test, varying_settings, write_comparison
from vitlab.training.build import build_data

DATA = {
    "_target_": "vitlab.data.datamodule.DataModule",
    "source": {"_target_": "vitlab.data.sets.digits.digits", "_partial_": True},
    "augment": {"_target_": "vitlab.data.augment.Augment"},
    "image_size": 8,
    "batch_size": 8,
    "seed": 0,
}


def make_run(run: Path, predictions: list[int], *, lr: float, digest: str = "same", judged: bool = True) -> Path:
    config = {"objective": "val/acc", "optimizer": {"lr": lr}, "seed": 0, "data": DATA, "run_dir": str(run)}
    folder.write_config(run, config)
    (run / "results.json").write_text(json.dumps({"status": "finished", "val/acc": 0.5, "test/acc": 0.5}))
    (run / "metrics.csv").write_text("step,images,val/acc,train/loss\n1,64,0.4,2\n2,128,0.5,1\n")
    if judged:
        inner = run / "evaluation" / "best-test"
        inner.mkdir(parents=True)
        labels = [k % 2 for k in range(len(predictions))]
        lines = [[k, "", i, p, i == p, 0.5 + k / 100] for k, (i, p) in enumerate(zip(labels, predictions, strict=True))]
        with (inner / "images.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["index", "path", "label", "prediction", "correct", "probability"], *lines])
        recalls = [["class", "precision", "recall"], ["0", 1.0, 0.25], ["1", None, 0.5 + lr]]
        scores = {"acc": [float(np.mean([line[4] for line in lines])), 0.1, 0.9], "ece": [None]}
        judgement = {"split": "test", "digest": digest, "scores": {"predictions": scores}, "classes": recalls}
        (inner / "judgement.json").write_text(json.dumps(judgement))
    return run


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return [*csv.DictReader(lines)]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    first = generator.integers(2, size=40).tolist()
    second = [1 - p if k % 4 == 0 else p for k, p in enumerate(first)]
    return [
        make_run(tmp_path / "a", first, lr=0.1),
        make_run(tmp_path / "b", second, lr=0.2),
        make_run(tmp_path / "c", first, lr=0.3, digest="other"),
        make_run(tmp_path / "d", first, lr=0.4, judged=False),
    ]


def test_the_tables_have_settings_scores_classes_and_images_that_differ(runs: list[Path], tmp_path: Path) -> None:
    sweep = write_comparison(runs, "best-test", out := tmp_path / "out")
    assert [job.choices for job in sweep.jobs] == [
        {"run": name, "optimizer.lr": lr} for name, lr in zip("abcd", ("0.1", "0.2", "0.3", "0.4"), strict=True)
    ]
    scores = read(out / "scores.csv")
    assert [(line["score"], line["run"]) for line in scores[:3]] == [("acc", "a"), ("acc", "b"), ("acc", "c")]
    assert (scores[3]["value"], scores[3]["low"]) == ("", ""), "no ECE, no 0"
    assert [line["class"] for line in read(out / "classes.csv")] == ["1", "0"], "the largest difference first"
    assert [line["run"] for line in read(out / "paired.csv")] == ["b"], "c has other images, d none"
    differ = read(out / "disagreements.csv")
    assert [int(line["index"]) for line in differ] == [*range(36, -1, -4)], "the most confident first"
    assert [*differ[0]] == ["index", "path", "label", "a", "b", "probability, a", "probability, b"]
    page = (out / "index.html").read_text()
    assert all(f"<h2>{title} of best-test</h2>" in page for title in ("Scores", "Paired", "Classes", "Disagreements"))
    assert '<p class="over">vitlab comparison</p>' in page


def test_images_on_which_runs_disagree_are_shown_with_the_answers(runs: list[Path], tmp_path: Path) -> None:
    write_comparison(runs, "best-test", out := tmp_path / "out")
    data = build_data(DATA)
    lines = [[str(cell) for cell in line.values()] for line in read(out / "disagreements.csv")]
    assert lines[0][0] == "36"
    rows = [
        (f"{label}   #{k}", f"1 → {a}  {float(p):.1%}", f"2 → {b}  {float(q):.1%}") for k, _, label, a, b, p, q in lines
    ]
    titles = ["\n".join(row) for row in rows]
    images = dataset_images(data, "test", [int(line[0]) for line in lines])
    draw_gallery(tmp_path / "own.png", images, titles)
    assert (out / "disagreements.png").read_bytes() == (tmp_path / "own.png").read_bytes()
    assert "predictions of 1: a, 2: b</figcaption>" in (out / "index.html").read_text()


def test_pictures_whose_data_is_gone_are_left_out(
    runs: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = runs[0] / "evaluation" / "best-test" / "judgement.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"test_dir": "gone"}))
    write_comparison(runs, "best-test", out := tmp_path / "out")
    assert "no pictures of disagreements: " in caplog.text
    assert (out / "index.html").is_file()
    assert not (out / "disagreements.png").exists()


def test_settings_of_one_class_alone_and_without_effect_follow_the_others() -> None:
    one = {"optimizer.lr": "1", "model.dim": "8", "trainer.devices": "1", "name": "a", "model.seed": "0"}
    two = {"optimizer.lr": "2", "trainer.devices": "2", "name": "b", "model.width": "3", "model.seed": "1"}
    one["model._target_"], two["model._target_"] = "A", "B"
    expected = ["model._target_", "optimizer.lr", "model.dim", "model.width", "trainer.devices"]
    assert varying_settings([one, two]) == expected


def test_many_settings_are_in_a_table_and_few_in_the_results(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, [0], lr=0.1) for name in "ab"]
    for number, run in enumerate(runs):
        folder.write_config(run, folder.read_config(run) | {"model": {f"x{k}": number for k in range(45)}})
    sweep = write_comparison(runs, "best-test", out := tmp_path / "out")
    assert len(sweep.jobs[0].choices) == 7
    page = (out / "index.html").read_text()
    assert "20 of 45 lines of settings.csv." in page
    assert ">model.x19<" in page
    assert ">model.x20<" not in page
    assert len(read(out / "settings.csv")) == 45


def test_runs_without_an_evaluation_are_compared_by_settings_and_curves(runs: list[Path], tmp_path: Path) -> None:
    write_comparison(runs, "last-val", out := tmp_path / "out")
    assert not (out / "scores.csv").exists()
    assert "val/acc" in (out / "index.html").read_text()


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (5, 5), (1, 9), (12, 3)])
def test_the_test_is_mcnemar_s_exact_one(lost: int, gained: int) -> None:
    one = np.array([1.0] * lost + [0.0] * gained + [1.0] * 30)
    two = np.array([0.0] * lost + [1.0] * gained + [1.0] * 30)
    difference, low, high, *counts, p = paired_test(one, two)
    assert counts == [lost, gained]
    assert difference == pytest.approx((gained - lost) / len(one))
    assert low <= difference <= high
    assert p == (1.0 if lost == gained else pytest.approx(binomtest(min(lost, gained), lost + gained).pvalue))
    known: Any = {(1, 9): 0.021484375, (12, 3): 0.03515625}  # 2 * sum of binomial(n, k) / 2^n
    assert p == pytest.approx(known.get((lost, gained), 1.0))
