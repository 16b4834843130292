"""`python src/prepare.py` as users run it: killed and resumed, verified, refused; and runs on what it made."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import evaluate
import image_fixtures
import prepare
from conftest import Program, Start
from vitlab.config.schema import ConfigView, Node
from vitlab.data.decode import read_bytes
from vitlab.data.packing.manifest import NAME, WORK
from vitlab.data.sets.shards import shards

Prepared = Callable[..., Any]


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Prepared:
    """Runs the program in this process: overrides -> what it recorded."""

    def run(*overrides: str) -> Any:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["prepare.py", "processes=0", "hydra.run.dir=log", *overrides])
        prepare.main()
        return json.loads((tmp_path / "log" / "results.json").read_text())

    return run


def test_digits_are_packed_verified_and_recorded(prepared: Prepared, tmp_path: Path) -> None:
    found = prepared("data=digits", "shard_images=500", "out=digits")
    assert (found["status"], found["broken"]) == ("finished", 0)
    assert (found["train/images"], found["train/shards"], found["test/images"]) == (1437, 3, 360)
    assert prepared("verify", "data_dir=digits")["train/bytes"] == found["train/bytes"]
    log = (tmp_path / "log" / "prepare.log").read_text()
    assert "all checksums are right" in log
    assert json.loads((tmp_path / "digits" / NAME).read_text())["name"] == "digits"


def test_parquet_files_of_the_hub_s_kind_are_packed_and_keep_their_bytes(prepared: Prepared, tmp_path: Path) -> None:
    files = sorted(map(str, image_fixtures.draw(tmp_path / "drawn").rglob("*.*")))[:20]
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    images = [{"bytes": Path(file).read_bytes(), "path": None} for file in files]
    complete = datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(20)]}, features=kinds)
    (tmp_path / "tiny").mkdir()
    for split, rows in (("train", range(14)), ("test", range(14, 20))):
        complete.select(rows).to_parquet(tmp_path / "tiny" / f"{split}.parquet", batch_size=5)
    line = ["data=huggingface", "data.name=tiny", "data.source.cache_dir=cache"]
    found = prepared(*line, "shard_images=8", "out=packed")
    assert (found["train/images"], found["train/shards"], found["test/images"], found["broken"]) == (14, 2, 6, 0)
    source = shards(data_dir="packed")
    assert source.classes == ("even", "odd")
    for part, rows in ((source.train, range(14)), (source.test, range(14, 20))):
        read = [(read_bytes(file), label) for file, label in zip(part.files or [], part.labels.tolist(), strict=True)]
        assert sorted(read) == sorted((images[i]["bytes"], i % 2) for i in rows)


@pytest.mark.parametrize(
    ("overrides", "problems"),
    [
        ([], ["out is not set; name the folder to pack into: out=FOLDER"]),
        (["verify", "data_dir=b"], ["data_dir=b is no folder; data=shards needs one that src/prepare.py made"]),
        (
            ["verify", "data_dir=b", "out=c"],
            ["out=c is where images are packed, and verify packs", "data_dir=b is no folder; data=shards needs one"],
        ),
        (["out=/proc/x"], ["out=/proc/x"]),
        (["out=log", "size=0", "processes=-1"], ["processes=-1 must be at least 0", "size=0 must be at least 1"]),
        (
            ["out=a", "logger=csv", "model/size=tiny", "size=0"],
            [
                "logger=csv: prepare.py has no group logger (it has data); leave it out",
                "model/size=tiny: prepare.py has no group model/size (it has data); leave it out",
                "size=0 must be at least 1",
            ],
        ),
        (
            ["out=a", "action=zip", "data.max_skipped=2"],
            ["action=zip is not one of", "data.max_skipped=2 must be at least 0"],
        ),
        (["out=a", "data=shards", "data_dir=b"], ["data_dir=b is no folder; data=shards needs one"]),
    ],
)
def test_impossible_settings_are_reported_before_anything_starts(
    prepared: Prepared, capsys: pytest.CaptureFixture[str], overrides: list[str], problems: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        prepared(*overrides)
    assert caught.value.code == 2
    reported = capsys.readouterr().err.replace(f"{Path.cwd()}/", "")
    assert [problem in reported for problem in problems] == [True] * len(problems), reported
    assert f"prepare: {len(problems)} problem" in reported


@pytest.mark.long
def test_killed_with_its_processes_at_work_the_same_command_ends_in_the_same_bytes(
    prepared: Prepared, start: Start, program: Program, tmp_path: Path
) -> None:
    line = ["data=fake", "data.source.samples=6000", "data.source.size=64", "shard_images=100"]
    prepared(*line, "out=complete")
    process = start("prepare", *line, "processes=2", "out=killed", cwd=tmp_path)
    records = tmp_path / "killed" / WORK
    while len(list(records.glob("train-*.json"))) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / NAME).exists()
    output = program("prepare", *line, "processes=2", "out=killed", cwd=tmp_path)
    assert "resuming: " in output
    assert image_fixtures.content(tmp_path / "killed") == image_fixtures.content(tmp_path / "complete")


TRAIN = [
    *("data=shards", "data.num_workers=2", "image_size=16", "model=vit_mini", "model.patch_size=4", "model.dim=16"),
    *("model.depth=1", "model.heads=2", "batch_size=12", "trainer.accelerator=cpu", "trainer.max_epochs=4"),
    *("trainer.enable_progress_bar=false", "logger=csv", "objective=val/loss", "schedule.warmup_steps=2"),
    *("callbacks.last.every_n_train_steps=2", "data.source.shuffle_buffer=30", "data.augment.auto_augment=randaugment"),
    "trainer.devices=2",
]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


def scores(file: Path) -> dict[str, int]:
    return {key: json.loads(file.read_text())[key] for key in ("test/correct", "test/count")}


@pytest.mark.long
def test_two_ranks_that_are_killed_resume_at_the_exact_image_and_one_and_three_count_the_same(
    packed: Callable[..., Path],
    start: Start,
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = [*TRAIN, f"data_dir={packed()}"]
    program("train", *line, "hydra.run.dir=complete", cwd=tmp_path)
    process = start("train", *line, "hydra.run.dir=killed", cwd=tmp_path)
    while not any((tmp_path / "killed" / "checkpoints").glob("*.ckpt")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert "test/acc" not in json.loads((tmp_path / "killed" / "results.json").read_text())
    program("train", *line, "hydra.run.dir=killed", "resume=auto", cwd=tmp_path)
    complete, killed = weights(tmp_path / "complete"), weights(tmp_path / "killed")
    assert all(torch.equal(complete[name], killed[name]) for name in complete)

    found = scores(tmp_path / "complete" / "results.json")
    assert found["test/count"] == 20
    again = tmp_path / "complete" / "evaluation" / "best-test" / "results.json"
    program("evaluate", "run=complete", "trainer.devices=3", "trainer.accelerator=cpu", cwd=tmp_path)
    assert scores(again) == found
    again.unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "run=complete", "trainer.devices=1", "trainer.accelerator=cpu"])
    evaluate.main()
    assert scores(again) == found


USUAL: Node = {"action": "pack", "size": None, "quality": 90, "shard_images": 1024, "shuffle": True, "seed": 0}


def lines(bad: set[str] | None = None, **config: object) -> list[str]:
    return list(prepare.problems(ConfigView({**USUAL, **config}, bad or set())))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "out is not set; name the folder to pack into: out=FOLDER"),
        ({"out": __file__}, f"out={__file__} is a file; name a folder"),
        ({"action": "verify", "out": "new"}, "out=new is where images are packed, and verify packs none; leave it out"),
        ({"action": "verify", "data_dir": "hf://a"}, "data_dir=hf://a: verify reads a folder of this machine; do"),
    ],
)
def test_a_mistake_is_reported_with_value_knob_and_remedy(config: Node, problem: str) -> None:
    (line,) = lines(**config)
    assert line.startswith(problem)


def test_a_folder_that_can_t_be_verified_is_reported(packed: Callable[..., Path], tmp_path: Path) -> None:
    assert lines(action="verify", data_dir=str(packed())) == []
    (tmp_path / NAME).write_text('{"vitlab": 9}')
    (line,) = lines(action="verify", data_dir=str(tmp_path))
    assert "has version 9" in line
