"""`python src/evaluate.py` gives training's numbers, on any split, and the same ones on any number of processes; it
measures any weights on any data, and finds the features that another probe has kept.
"""

import csv
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import evaluate
import parity
import vitlab
from conftest import SRC, Program, Tracked
from forked_ranks import RANKS
from vitlab.data.sets.digits import digits
from vitlab.models.vit import VisionTransformer

Evaluate = Callable[..., Any]


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def scores(found: Any, split: str) -> Any:
    return {k: v for k, v in found.items() if k.startswith(f"{split}/")}


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Evaluate]:
    """Runs the program in this process, which has torch loaded already: run folder, overrides -> its results."""

    def run(folder: Path, *overrides: str) -> Any:
        quiet = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "wandb=false"]
        monkeypatch.chdir(folder.parent)
        monkeypatch.setattr(sys, "argv", ["evaluate.py", f"run={folder.name}", *quiet, *overrides])
        evaluate.main()
        split = next((o.partition("=")[2] for o in overrides if o.startswith("split=")), "test")
        checkpoint = next((o.partition("=")[2] for o in overrides if o.startswith("checkpoint=")), "best")
        probe = next((f"-{o.partition('=')[2]}" for o in overrides if o.startswith("probe=")), "")
        return results(folder / "evaluation" / f"{checkpoint}-{split}{probe}")

    yield run
    torch.use_deterministic_algorithms(False)


def test_the_test_split_gives_exactly_the_numbers_of_training(twins: list[Path], evaluated: Evaluate) -> None:
    training = results(twins[0])
    before = {file: file.stat().st_mtime_ns for file in twins[0].iterdir() if file.is_file()}
    found = evaluated(twins[0])
    assert scores(found, "test") == scores(training, "test")
    assert found["test/count"] == 360
    assert (found["run"], found["split"], found["status"]) == ("a", "test", "finished")
    assert {file: file.stat().st_mtime_ns for file in twins[0].iterdir() if file.is_file()} == before, "untouched"


def test_the_validation_split_gives_the_score_that_the_checkpoint_was_chosen_by(
    twins: list[Path], evaluated: Evaluate
) -> None:
    assert scores(evaluated(twins[0], "split=val"), "val") == scores(results(twins[0]), "val")


@pytest.mark.parametrize("batch_size", [1000, 7])
def test_the_training_split_can_be_scored_in_batches_of_any_size(
    batch_size: int, twins: list[Path], evaluated: Evaluate
) -> None:
    found = evaluated(twins[0], "split=train", f"batch_size={batch_size}")
    assert found["train/count"] == 1292
    assert found["train/correct"] == evaluated(twins[0], "split=train")["train/correct"]
    assert 0 < found["train/acc"] < 1


def test_the_last_checkpoint_can_be_scored_instead_of_the_best(twins: list[Path], evaluated: Evaluate) -> None:
    last = evaluated(twins[0], "checkpoint=last", "split=val")
    with (twins[0] / "metrics.csv").open() as lines:
        header = next(lines).strip().split(",")
        accuracies = [v for v in (line.strip().split(",")[header.index("val/acc")] for line in lines) if v]
    assert last["val/acc"] == pytest.approx(float(accuracies[-1]))
    assert last["checkpoint"].endswith("last.ckpt")


def test_the_precision_is_that_of_training_unless_set_otherwise(
    twins: list[Path], evaluated: Evaluate, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(twins[0], run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["precision"] = "bf16-true"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    exact = scores(results(twins[0]), "test")
    rounded, reported = evaluated(run), evaluated(run, "trainer.precision=32-true")
    assert scores(rounded, "test")["test/loss"] != exact["test/loss"], "bfloat16 rounds"
    assert rounded["test/loss"] == pytest.approx(exact["test/loss"], rel=0.05)
    assert scores(reported, "test") == exact


def test_a_folder_that_is_no_run_is_named(
    evaluated: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as end:
        evaluated(tmp_path / "empty")
    assert end.value.code not in (0, None)
    assert "run=empty is not a run folder: it has no config.yaml" in capsys.readouterr().err


@pytest.mark.long
def test_one_two_and_three_processes_count_the_same_images_right(
    twins: list[Path], evaluated: Evaluate, program: Program
) -> None:
    one = evaluated(twins[0], "split=val")
    arguments = ["run=a", "split=val", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "wandb=false"]
    program("evaluate", "-m", "trainer.devices=2,3", *arguments, cwd=twins[0].parent)
    for job in ("0", "1"):
        found = results(twins[0] / "evaluation" / job)
        assert found["val/count"] == one["val/count"] == 145, "a size that neither 2 nor 3 divides"
        assert found["val/correct"] == one["val/correct"]
        assert found["val/acc"] == pytest.approx(one["val/acc"], rel=1e-6)
        assert found["val/acc5"] == pytest.approx(one["val/acc5"], rel=1e-6)
        assert found["val/loss"] == pytest.approx(one["val/loss"], rel=1e-5)
        rows, alone = (rows_of(twins[0] / "evaluation" / name) for name in (job, "best-val"))
        assert [row[:4] for row in rows] == [row[:4] for row in alone], "the same predictions, in the split's order"
        torch.testing.assert_close(numbers(rows), numbers(alone), rtol=1e-3, atol=1e-5)
        assert not [*(twins[0] / "evaluation" / job).glob("*rows*")], "the ranks' shares are deleted"


def rows_of(folder: Path) -> list[list[str]]:
    with (folder / "images.csv").open(newline="") as lines:
        return [*csv.reader(lines)][1:]


def numbers(rows: list[list[str]]) -> torch.Tensor:
    return torch.tensor([[float(cell) for cell in row[4:7]] for row in rows])


def test_the_run_s_wandb_run_gets_scores_pictures_and_classes_unless_wandb_is_false(
    twins: list[Path], evaluated: Evaluate, tracked: Tracked, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(twins[0], run)
    evaluated(run, "split=val")
    found = evaluated(run, "split=val", "wandb=true")
    (trained, history), (summary, resent) = tracked(run)
    assert (summary["run_id"], summary["state"]) == (trained["run_id"], "finished")
    logged = summary["summary"]
    assert logged["evaluate/val/acc"] == pytest.approx(found["val/acc"])
    assert logged["evaluate/val/ece"] == pytest.approx(found["judgement"]["predictions"]["ece"][0])
    assert {"evaluate/val/confusion", "evaluate/val/errors", "evaluate/val/classes"} <= logged.keys()
    assert logged["best/val/acc"] == trained["summary"]["best/val/acc"], "the newest part of an offline run has all"
    assert summary["config"]["model"] == trained["config"]["model"]
    rows = [[row for row in rows if "train/loss" in row or "val/acc" in row] for rows in (history, resent)]
    assert [row["trainer/global_step"] for row in rows[0]] == [row["trainer/global_step"] for row in rows[1]]
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"logger": {"csv": None}}))
    evaluated(run, "split=val", "wandb=true")
    assert len([*run.glob("wandb/offline-run-*")]) == 2, "the run's logger is not wandb"


# ---------------------------------------------------------------------------------------------------------- judgement


def test_the_judgement_s_scores_are_the_results(twins: list[Path], evaluated: Evaluate, tmp_path: Path) -> None:
    shutil.copytree(twins[0], run := tmp_path / "run")
    shutil.rmtree(run / "evaluation")
    found = evaluated(run)
    own = found["judgement"]["predictions"]
    for name in ("acc", "acc5", "loss"):
        assert own[name][0] == pytest.approx(found[f"test/{name}"], rel=1e-6)
        assert own[name][1] <= own[name][0] <= own[name][2]
    rows = rows_of(run / "evaluation" / "best-test")
    assert sum(row[-1] == "True" for row in rows) == found["test/correct"]
    assert [row[2] for row in rows] == [str(int(label)) for label in digits().test.labels]
    page = (run / "report" / "index.html").read_text()
    assert "<h2>best-test</h2>" in page
    assert page.count("data:image/png") >= 5


def test_a_temperature_is_fitted_to_validation_alone_and_loaded_with_the_run(
    twins: list[Path], evaluated: Evaluate, tmp_path: Path
) -> None:
    shutil.copytree(twins[0], run := tmp_path / "run")
    before = evaluated(run)
    found = evaluated(run, "fit_temperature=true")
    temperature = json.loads((run / "evaluation" / "temperature.json").read_text())["temperature"]
    assert scores(found, "test") == scores(before, "test")
    assert found["judgement"]["predictions"] == before["judgement"]["predictions"]
    assert found["judgement"]["tempered"]["acc"] == before["judgement"]["predictions"]["acc"]
    val = evaluated(run, "split=val")["judgement"]
    assert val["tempered"]["loss"][0] < val["predictions"]["loss"][0], "the best for validation"
    again = evaluated(run, "fit_temperature=true", "split=val")
    assert json.loads((run / "evaluation" / "temperature.json").read_text())["temperature"] == temperature
    assert again["judgement"] == val
    loaded = vitlab.load(str(run))
    assert loaded.temperature == temperature
    assert "tempered" not in evaluated(run, "checkpoint=last")["judgement"], "of other weights"


@pytest.mark.parametrize(
    ("overrides", "reported"),
    [
        (["checkpoint=last"], "fit_temperature=true is for the best checkpoint of a run and its head"),
        (["probe=knn"], "fit_temperature=true is for the best checkpoint of a run and its head"),
        ([], "fit_temperature=true: classifier.loss=sigmoid of run has no softmax to calibrate; leave it out"),
    ],
)
def test_a_temperature_without_meaning_is_refused(
    twins: list[Path],
    evaluated: Evaluate,
    tmp_path: Path,
    overrides: list[str],
    reported: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(twins[0], run := tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["classifier"]["loss"] = "sigmoid"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        evaluated(run, "fit_temperature=true", *overrides)
    assert reported in capsys.readouterr().err


def test_a_part_of_the_images_has_no_judgement(twins: list[Path], evaluated: Evaluate, tmp_path: Path) -> None:
    shutil.copytree(twins[0], run := tmp_path / "run")
    shutil.rmtree(run / "evaluation")
    assert "judgement" not in evaluated(run, "+trainer.limit_test_batches=1")
    assert not (run / "evaluation" / "best-test" / "images.csv").exists()


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images of digits as PNG in folders of other names, and a mapping of them."""
    folder, test = tmp_path_factory.mktemp("files"), digits().test
    assert test.images is not None
    for number, (image, label) in enumerate(zip(test.images, test.labels.tolist(), strict=True)):
        (folder / "images" / f"digit {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / "images" / f"digit {label}" / f"{number}.png")
    (folder / "map.yaml").write_text(yaml.safe_dump({f"digit {label}": str(label) for label in range(10)}))
    return folder


CORRUPTED = ["corruptions=[gaussian_noise,brightness]", "severities=[1,5]"]


def test_another_test_set_and_its_corruptions_are_scored_as_the_runs_own(
    twins: list[Path], evaluated: Evaluate, digit_files: Path, tmp_path: Path
) -> None:
    shutil.copytree(twins[0], run := tmp_path / "run")
    own = evaluated(run, *CORRUPTED)
    folder = run / "evaluation" / "folders"
    other = [f"test_dir={digit_files / 'images'}", f"class_map={digit_files / 'map.yaml'}", f"hydra.run.dir={folder}"]
    evaluated(run, *other, *CORRUPTED)
    found = results(folder)
    assert {key: found[f"test/{key}"] for key in ("correct", "count")} == {
        key: own[f"test/{key}"] for key in ("correct", "count")
    }
    assert found["test/loss"] == pytest.approx(own["test/loss"], rel=1e-4)
    assert found["judgement"]["predictions"]["acc"][0] == own["judgement"]["predictions"]["acc"][0]
    for place in (run / "evaluation" / "best-test", folder):
        with (place / "corruptions.csv").open(newline="") as lines:
            rows = {row["corruption"]: row for row in csv.DictReader(lines)}
        assert rows.keys() == {"gaussian_noise", "brightness"}
        assert 0 < float(rows["gaussian_noise"]["1"]) < float(rows["gaussian_noise"]["5"]) < 1
    assert "mce" not in own["corruptions"]
    page = (run / "report" / "index.html").read_text()
    assert "Errors on images that are corrupted as in ImageNet-C" in page
    why = json.loads((run / "evaluation" / "best-test" / "judgement.json").read_text())["why"]
    assert why.startswith('python src/explain.py run=run "images=[test:')
    assert "images=[test:" in page
    assert "why" not in json.loads((folder / "judgement.json").read_text()), "of images that aren't the run's"


@pytest.mark.parametrize(
    ("overrides", "reported"),
    [
        (["test_dir=nowhere"], "test_dir=nowhere is not a folder; name one with a folder of images for each class"),
        (
            ["test_set=imagenet-a"],
            "test_set=imagenet-a and class_map=null, but test_dir=null; set test_dir, or leave them out",
        ),
        (["test_dir=.", "class_map=gone.yaml"], "class_map=gone.yaml is not a YAML or JSON file"),
        (["test_dir=.", "split=val"], "split=val or fit_temperature=true: test_dir=. has one split; leave it out"),
        (
            ["corruptions=all", "probe=knn"],
            "probe is set: test_dir=null and corruptions are for a network's head; leave probe out",
        ),
        (["corruptions=[fogg]"], "corruptions: there is no fogg; did you mean 'fog'"),
        (["corruptions=[frost]"], "frost_dir=null is not the folder of ImageNet-C's photographs, frost1.png"),
        (["corruptions=all", "severities=[6]"], "severities=[6] must be at least 1 and at most 5"),
    ],
)
def test_a_test_set_or_corruption_that_cannot_be_is_refused(
    twins: list[Path], evaluated: Evaluate, overrides: list[str], reported: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluated(twins[0], *overrides)
    assert reported in capsys.readouterr().err


@pytest.mark.long
def test_a_test_set_with_several_right_labels_is_scored_alike_on_one_two_and_three_ranks(
    twins: list[Path], digit_files: Path, tmp_path: Path
) -> None:
    names = {f"digit {label}": [str(label), str((label + 3) % 10)] if label % 3 else label for label in range(9)}
    (tmp_path / "map.json").write_text(json.dumps(names | {"digit 9": None}))
    settings = [f"run={twins[0]}", f"test_dir={digit_files / 'images'}", f"class_map={tmp_path / 'map.json'}"]
    settings += [*CORRUPTED, "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    jobs = [["evaluate", f"ranks{world}", world, *settings] for world in (1, 2, 3)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SRC)}
    subprocess.run([sys.executable, "-c", RANKS, json.dumps(jobs)], cwd=tmp_path, env=environment, check=True)
    one, *others = (tmp_path / f"ranks{world}" for world in (1, 2, 3))
    assert results(one)["test/count"] < 360, "images of a folder without a class are left out"
    for other in others:
        for key in ("test/correct", "test/count"):
            assert results(other)[key] == results(one)[key]
        assert [row[:4] for row in rows_of(other)] == [row[:4] for row in rows_of(one)]
        torch.testing.assert_close(numbers(rows_of(other)), numbers(rows_of(one)), rtol=1e-3, atol=1e-5)
        assert (other / "corruptions.csv").read_text() == (one / "corruptions.csv").read_text()


# ------------------------------------------------------------------------------------------------------------- probes


def test_a_probe_measures_the_features_of_the_run_s_checkpoint_and_keeps_them(
    twins: list[Path], evaluated: Evaluate, tmp_path: Path
) -> None:
    shutil.copytree(twins[0], run := tmp_path / "run")
    linear = evaluated(run, "probe=linear", "probe.c=[0.1,1,10]")
    kept = {file: file.stat().st_mtime_ns for file in (run / "features").iterdir()}
    knn = evaluated(run, "probe=knn", "probe.k=5")
    head = results(run)["test/acc"]
    assert (linear["probe"], knn["probe"], knn["k"], linear["width"]) == ("linear", "knn", 5, 16)
    assert linear["test/count"] == knn["test/count"] == 360
    for found, name in ((linear, "linear"), (knn, "knn")):
        assert found[f"test/{name}_acc"] == found[f"test/{name}_correct"] / 360
        assert found[f"test/{name}_acc"] > head - 0.1, "the head reads the same features"
        assert found["checkpoint"].endswith("best.ckpt")
    assert linear["C"] in (0.1, 1.0, 10.0)
    assert {file: file.stat().st_mtime_ns for file in (run / "features").iterdir()} == kept, "computed once"
    assert len(kept) == 3


def test_a_probe_of_the_training_split_or_of_nonsense_is_refused(
    twins: list[Path], evaluated: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    for overrides, reported in (
        (["split=train"], "split=train: a probe is fitted to the training images; use val or test"),
        (["probe.k=0"], "probe.k=0 must be at least 1"),
        (["probe.neighbours=3"], "probe.neighbours=3: there is no such setting"),
        (
            ["probe.features=clss"],
            "probe.features=clss is not one of 'pooled', 'cls', 'mean', 'both'; did you mean 'cls'",
        ),
    ):
        with pytest.raises(SystemExit):
            evaluated(twins[0], "probe=knn", *overrides)
        assert reported in capsys.readouterr().err


@pytest.mark.long
def test_two_processes_give_a_probe_the_features_and_scores_that_one_gives(
    twins: list[Path], evaluated: Evaluate, program: Program, tmp_path: Path
) -> None:
    shutil.copytree(twins[0], run := tmp_path / "run")
    one = evaluated(run, "probe=knn", "split=val")
    alone = {file.name: torch.load(file) for file in (run / "features").iterdir()}
    shutil.rmtree(run / "features")
    arguments = ["run=run", "probe=knn", "split=val", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    program("evaluate", "trainer.devices=2", *arguments, cwd=tmp_path)
    together = {file.name: torch.load(file) for file in (run / "features").iterdir()}
    assert together.keys() == alone.keys()
    for name, rows in together.items():
        torch.testing.assert_close(rows, alone[name], rtol=1e-4, atol=1e-5)
    found = results(run / "evaluation" / "best-val-knn")
    assert {k: found[k] for k in found if "/" in k} == {k: one[k] for k in one if "/" in k}
    assert found["val/count"] == 145, "which 2 doesn't divide"


# ------------------------------------------------------------------------------------------ weights that are no run's


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Evaluate]:
    """Runs the program in this process, on digits: overrides -> its results."""

    def run(*overrides: str) -> Any:
        quiet = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "data=digits", "hydra.run.dir=out"]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *quiet, *overrides])
        evaluate.main()
        return results(tmp_path / "out")

    yield run
    torch.use_deterministic_algorithms(False)


def test_features_of_any_model_are_measured_and_found_again(measured: Evaluate, tmp_path: Path) -> None:
    model = ["model=vit_mini", "model.depth=1", "probe=knn", "probe.features=mean"]
    first = measured(*model)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs" / "features").iterdir()}
    again = measured(*model, "probe.k=1", "batch_size=7")
    assert (first["status"], first["test/count"], first["width"]) == ("finished", 360, 64)
    assert first["test/knn_acc"] > 0.3, "an untrained network sees some of what is alike; chance is 0.1"
    assert again["test/knn_acc"] != first["test/knn_acc"]
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs" / "features").iterdir()} == kept
    assert len(kept) == 3
    assert measured(*model, "seed=1")["test/knn_acc"] != first["test/knn_acc"], "other weights"


def test_the_head_of_any_weights_is_scored_where_its_classes_are_the_data_s(
    measured: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    network = VisionTransformer(image_size=8, patch_size=2, in_channels=1, dim=64, depth=1, heads=1, num_classes=10)
    parity.fill(network.eval())
    save_file(network.state_dict(), tmp_path / "ten.safetensors")
    found = measured("model.weights=ten.safetensors", "data.mean=[0.25]", "data.std=[0.5]")
    images, labels = digits().test.images, digits().test.labels
    assert images is not None
    with torch.no_grad():
        right = network((images.float() / 255 - 0.25) / 0.5).argmax(dim=1) == labels
    assert (found["status"], found["test/count"], found["split"]) == ("finished", 360, "test")
    assert found["test/correct"] == int(right.sum())
    assert found["test/acc"] == pytest.approx(found["test/correct"] / 360)

    other = {k: v[:7] if k.startswith("head.") else v for k, v in network.state_dict().items()}
    save_file(other, tmp_path / "seven.safetensors")
    with pytest.raises(SystemExit):
        measured("model.weights=seven.safetensors", "hydra.run.dir=other")
    assert "would get a new one: 10 classes, and 7 in the weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "reported"),
    [
        ([], "neither run nor model.weights is set"),
        (
            ["model=vit_mini"],
            "there are no weights whose own head could be scored; set model.weights=SOURCE, or probe=",
        ),
        (["model=vit_mini", "probe=knn", "optimizer.lr=1"], "optimizer"),
        (
            ["model=vit_mini", "model.class_token=false", "model.pool=avg", "probe=knn", "probe.features=cls"],
            "probe.features=cls: model.class_token=false leaves no [cls] token to read; use mean or pooled",
        ),
        (["model=vit_mini", "probe=knn", "model.dmi=3"], "model.dmi=3: there is no such setting; did you mean 'dim'?"),
    ],
)
def test_a_mistake_is_reported_before_anything_starts(
    measured: Evaluate, overrides: list[str], reported: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        measured(*overrides)
    assert reported in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_fewer_images_than_ranks_are_counted_right_also_at_the_end_of_training(tmp_path: Path) -> None:
    for split, name, number in itertools.product(("train", "test"), ("a", "b"), range(20)):
        if split == "train" or (name, number) == ("a", 0):
            (folder := tmp_path / "images" / split / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 200 * (name == "b"), 9)).save(folder / f"{number}.png")
    (tmp_path / "images" / "test" / "b").mkdir()
    data = [
        "data=image_folder",
        f"data_dir={tmp_path / 'images'}",
        "data.num_workers=0",
        "image_size=8",
        "batch_size=8",
    ]
    tiny = ["model.patch_size=4", "model.dim=16", "model.depth=1", "model.heads=2", "schedule.warmup_steps=1"]
    cpu = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    jobs = [
        ["train", "trained", 2, *data, *tiny, *cpu, "logger=csv", "trainer.max_epochs=1"],
        ["evaluate", "two", 2, f"run={tmp_path / 'trained'}", *cpu],
        ["evaluate", "one", 1, f"run={tmp_path / 'trained'}", *cpu],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SRC)}
    subprocess.run([sys.executable, "-c", RANKS, json.dumps(jobs)], cwd=tmp_path, env=environment, check=True)
    alone = scores(results(tmp_path / "one"), "test")
    assert alone["test/count"] == 1
    for name in ("trained", "two"):
        assert scores(results(tmp_path / name), "test") == pytest.approx(alone), name
