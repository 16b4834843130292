"""Every rule of the configuration: what breaks it is told in one line that names value, knob and remedy."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import train
from conftest import Configure
from vitlab.cli import checks

Found = Callable[..., list[str]]
CPU = "trainer.accelerator=cpu"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model=vit_b16", CPU, "trainer.devices=4"],
        ["image_size=[8,16]"],
        ["data=fake", "++data.source.size=40", "image_size=40", "schedule.warmup_steps=5"],
        ["logger=[wandb,csv,tensorboard]", "optimizer=muon", "schedule=reciprocal_sqrt"],
        ["model=timm", "model.model_name=resnet18"],
        ["trainer=fsdp", CPU],
        ["++trainer.devices=[0,1]", CPU],
        ["trainer.devices='2'", CPU],
        ["trainer.max_epochs=-1", "trainer.max_steps=51"],
        ["++model.num_classes=10", "++model.in_channels=1"],
        ["callbacks.progress=null", "seed=4294967295", "objective=val/loss"],
        ["data.val_fraction=0.0069"],  # ten images of ten classes
    ],
    ids=" ".join,
)
def test_a_configuration_that_can_run_has_no_problem(found: Found, overrides: list[str]) -> None:
    assert found(*overrides) == []


ONE_LINE: list[tuple[list[str], str]] = [
    # settings and types
    (["++sede=7"], "sede=7: there is no such setting; did you mean 'seed'"),
    (["seed=abc"], "seed=abc is not an int"),
    (["batch_size=8.5"], "batch_size=8.5 is not an int"),
    (["image_size=abc"], "image_size=abc is not an int or a list of 2 (an int, an int)"),
    (["image_size=8.0"], "image_size=8.0 is not an int or a list of 2 (an int, an int)"),
    (["image_size=null"], "image_size=null is not an int or a list of 2 (an int, an int)"),
    (["image_size=[8,8,3]"], "image_size=[8, 8, 3] is not an int or a list of 2 (an int, an int)"),
    (["++classifier.los=x"], "classifier.los=x: there is no such setting; did you mean 'loss'?"),
    (["classifier.loss=softmx"], "is not one of 'softmax', 'sigmoid'; did you mean 'softmax'?"),
    (["++optimizer.momentum=0.9"], "optimizer.momentum=0.9: there is no such setting"),
    (["optimizer._target_=torch.optim.AdmW"], "torch.optim has no 'AdmW'; did you mean 'AdamW'"),
    (["++data.source.sise=3", "data=fake"], "data.source.sise=3: there is no such setting; did you mean 'size'?"),
    # what is set in the wrong place
    (["data.batch_size=32"], "data.batch_size=32, but batch_size=64; set batch_size alone"),
    (["data.seed=1"], "data.seed=1, but seed=0; set seed alone"),
    (["data.image_size=16"], "data.image_size=16, but image_size=8; set image_size alone"),
    (["model.image_size=13"], "model.image_size=13, but image_size=8; set image_size alone"),
    (["++trainer.logger=true"], "trainer.logger=true can't be set here; use the group logger"),
    (["++trainer.callbacks=[]"], "trainer.callbacks=[] can't be set here; use the group callbacks"),
    (["++trainer.default_root_dir=x"], "trainer.default_root_dir=x can't be set here; use hydra.run.dir"),
    (["++classifier.num_classes=3"], "classifier.num_classes=3 can't be set here; the data has it"),
    # the root
    (
        ["callbacks.best=null"],
        "callbacks has no vitlab.training.checkpoints.BestCheckpoint, which keeps the checkpoint",
    ),
    (["callbacks.monitor=null"], "callbacks has no vitlab.training.monitor.Monitor, which logs the training"),
    (["optimizer.weight_decay=-1"], "optimizer.weight_decay=-1 must be 0 or more"),
    (["objective=val/f1"], "objective=val/f1 is not measured; use one of val/acc, val/acc5, val/loss"),
    (["seed=-1"], "seed=-1 must be at least 0 and below 4294967296"),
    (["seed=4294967296"], "seed=4294967296 must be at least 0 and below 4294967296"),
    (["name=../escaped"], "name='../escaped' must be a plain folder name below runs/"),
    (["name=''"], "name='' must be a plain folder name below runs/"),
    (["optimizer.lr=0"], "optimizer.lr=0 must be above 0"),
    (["optimizer.lr=nan"], "optimizer.lr=nan must be above 0"),
    (["classifier.label_smoothing=1.0"], "classifier.label_smoothing=1.0 must be at least 0 and below 1"),
    (["++logger.mine.project=x"], "logger.mine is no logger: it has no _target_; remove it, or complete it"),
    (["++callbacks.mine=3"], "callbacks.mine is no callback: it has no _target_; remove it, or complete it"),
]


@pytest.mark.parametrize(
    ("overrides", "words"), ONE_LINE, ids=lambda case: " ".join(case) if type(case) is list else ""
)
def test_one_mistake_is_one_line_that_names_value_knob_and_remedy(
    found: Found, overrides: list[str], words: str
) -> None:
    (line,) = found(*overrides)
    assert words in line


def test_mistakes_of_every_kind_are_told_together(found: Found) -> None:
    lines = found(
        "++sede=7",
        "++model.dmi=3",
        "model.pool=max",
        "optimizer.lr=fast",
        "++trainer.max_epoch=3",
        "trainer.devices=0",
        "data.val_fraction=2.0",
        "batch_size=0",
        "schedule.warmup_steps=-5",
        "objective=test/acc",
    )
    beginnings = [
        "sede=7",
        "model.pool=max",
        "model.dmi=3",
        "optimizer.lr=fast",
        "trainer.max_epoch=3",
        "trainer.devices=0",
        "data.val_fraction=2.0",
        "batch_size=0",
        "schedule.warmup_steps=-5",
        "objective=test/acc",
    ]
    assert len(lines) == len(beginnings)
    pairs = zip(sorted(lines), sorted(beginnings), strict=True)
    assert all(line.startswith(beginning) for line, beginning in pairs)


def test_a_missing_value_is_told_with_how_to_set_it(configure: Configure) -> None:
    config = configure()
    config["seed"] = config["optimizer"]["lr"] = "???"
    del config["compile"]
    assert checks.problems(train.main, config) == [
        "seed is not set, and has no default: add seed=VALUE",
        "optimizer.lr is not set, and has no default: add optimizer.lr=VALUE",
        "compile is not set, and has no default: add compile=VALUE",
    ]


def test_what_the_lines_above_advise_passes(found: Found) -> None:
    assert found("batch_size=4", CPU, "trainer.devices=4") == []
    assert found("image_size=96", "model/patch=p16") == []
    assert found("data.drop_last=true", "batch_size=1293", "schedule.warmup_steps=0") == []
    assert found("schedule.warmup_steps=2099") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read everything")
def test_a_data_folder_that_cant_be_read_is_told(found: Found, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    assert found(f"data_dir={locked}") == [f"data_dir={locked} can't be read"]
