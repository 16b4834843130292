"""Every rule of the configuration: what breaks it is told in one line that names value, knob and remedy."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import Configure
from vitlab.cli import checks
from vitlab.config.schema import Node

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
    (
        ["trainer=fsdp", "callbacks=ema", CPU],
        "callbacks.ema can't average weights that trainer=fsdp shards over devices",
    ),
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
    # trainer
    (["trainer.accelerator=cpuu"], "trainer.accelerator=cpuu: there is no such accelerator; did you mean 'cpu'"),
    (["trainer.strategy=dpd"], "trainer.strategy=dpd: there is no such strategy; did you mean 'ddp'"),
    (["trainer.devices=0"], "trainer.devices=0 is not a number of devices; use 1 or more, or -1 for all"),
    (["trainer.devices=two"], "trainer.devices=two is not a number of devices; use 1 or more, auto, or -1 for all"),
    (["trainer.devices=-2"], "trainer.devices=-2 is not a number of devices; use 1 or more, or -1 for all"),
    (["trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches=0 must be at least 1"),
    (["trainer.num_nodes=0"], "trainer.num_nodes=0 must be at least 1"),
    (["trainer.log_every_n_steps=0"], "trainer.log_every_n_steps=0 must be at least 1"),
    (["trainer.max_epochs=0"], "trainer.max_epochs=0 must be at least 1, or -1 for no limit"),
    (["trainer.max_steps=-3"], "trainer.max_steps=-3 must be at least 1, or -1 for no limit"),
    (["trainer.max_epochs=-1"], "trainer.max_epochs=-1 and trainer.max_steps=-1 set no end"),
    (["trainer.use_distributed_sampler=true"], "trainer.use_distributed_sampler=true would share out twice"),
    # data
    (["data.val_fraction=0.0"], "data.val_fraction=0.0 must lie between 0 and 1"),
    (["data.val_fraction=1.5"], "data.val_fraction=1.5 must lie between 0 and 1"),
    (["data.val_fraction=0.001"], "to train on and 2 to validate on: fewer than one of each of the 10 classes"),
    (["data.val_fraction=0.9999"], "into 0 to train on and 1437 to validate on"),
    (["data.num_workers=-1"], "data.num_workers=-1 must be at least 0"),
    (["data.max_train_samples=0"], "data.max_train_samples=0 must be at least 1"),
    (["data.eval_batch_size=0"], "data.eval_batch_size=0 must be at least 1"),
    (["data.augment.erasing=2"], "data.augment.erasing=2 must be a probability between 0 and 1"),
    (["data.augment.scale=[2,1]"], "data.augment.scale=(2.0, 1.0) must be [low, high] with 0 < low <= high"),
    (["data.max_skipped=1.0"], "data.max_skipped=1.0 must be at least 0 and below 1: a share of the images"),
    (["data.on_error=skip"], "data.on_error=skip is for image folders, and digits is none; leave it out"),
    (
        ["data=image_folder", "data_dir=.", "data.on_error=skip", "data.scan=none"],
        "data.on_error=skip decodes every image",
    ),
    (["data.scaled_decoding=true"], "data.scaled_decoding=true is for JPEG files, and digits lies in memory"),
    (["data.on_error=ignore"], "data.on_error=ignore is not one of 'raise', 'skip'"),
    (["data=image_folder", "data_dir=no/such"], "no/such is not a folder; data=image_folder wants"),
    # batch size against processes, accumulation and samples
    (["batch_size=0"], "batch_size=0 must be at least 1"),
    (["batch_size=3", CPU, "trainer.devices=4"], "leaves nothing for some of 4 parts (4 processes"),
    (["batch_size=3", "trainer.accumulate_grad_batches=4"], "the least is 4"),
    (["batch_size=3", CPU, "trainer.devices=4"], "(4 processes x"),
    (
        [CPU, "trainer.num_nodes=2"],
        "trainer.num_nodes=2: start the processes of all nodes yourself, with torchrun or srun, or leave that to -m",
    ),
    ([CPU, "trainer.devices=-1"], "trainer.devices=-1 means all GPUs, and there is none to be used"),
    (
        ["callbacks.best=null"],
        "callbacks has no vitlab.training.checkpoints.BestCheckpoint, which keeps the checkpoint",
    ),
    (["callbacks.monitor=null"], "callbacks has no vitlab.training.monitor.Monitor, which logs the training"),
    (["optimizer.weight_decay=-1"], "optimizer.weight_decay=-1 must be 0 or more"),
    (["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val=-1 must be 0 (off) or more"),
    (["trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch=0 must be at least 1"),
    (
        ["data.max_train_samples=5", CPU, "trainer.devices=8", "schedule.warmup_steps=0"],
        "batch_size=64: 5 images can't be shared by 8 processes",
    ),
    (["data.drop_last=true", "batch_size=1294"], "more than the 1293 images to train on, and data.drop_last drops"),
    # warm-up against the steps of training
    (["schedule.warmup_steps=-1"], "schedule.warmup_steps=-1 must be 0 or more"),
    (["schedule.warmup_steps=2520"], "schedule.warmup_steps=2520 leaves nothing of the 2520 steps of training; lower"),
    (["trainer.max_steps=50"], "schedule.warmup_steps=50 leaves nothing of the 50 steps"),
    (["trainer.max_epochs=2"], "leaves nothing of the 42 steps"),
    (["trainer.max_epochs=2", "data.drop_last=true"], "leaves nothing of the 40 steps"),
    (["trainer.max_epochs=5", "++trainer.limit_train_batches=10"], "leaves nothing of the 50 steps"),
    (["trainer.max_epochs=4", "++trainer.limit_train_batches=0.5"], "leaves nothing of the 44 steps"),
    (
        ["trainer.max_epochs=2", "trainer.accumulate_grad_batches=4", "++trainer.limit_train_batches=10"],
        "leaves nothing of the 6 steps",
    ),
    (
        ["schedule=reciprocal_sqrt", "schedule.cooldown_steps=2470"],
        "schedule.warmup_steps=50 and schedule.cooldown_steps=2470 leave nothing of the 2520 steps",
    ),
    # the root
    (["objective=val/f1"], "objective=val/f1 is not measured; use one of val/acc, val/acc5, val/loss"),
    (["seed=-1"], "seed=-1 must lie in 0 .. 2**32 - 1"),
    (["seed=4294967296"], "seed=4294967296 must lie in 0 .. 2**32 - 1"),
    (["name=../escaped"], "name='../escaped' must be a plain folder name below runs/"),
    (["name=''"], "name='' must be a plain folder name below runs/"),
    (["optimizer.lr=0"], "optimizer.lr=0 must be above 0"),
    (["optimizer.lr=nan"], "optimizer.lr=nan must be above 0"),
    (["classifier.label_smoothing=1.0"], "classifier.label_smoothing=1.0 is not in [0, 1)"),
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
    assert all(line.startswith(beginning) for line, beginning in zip(lines, beginnings, strict=True))


def test_a_missing_value_is_told_with_how_to_set_it(configure: Configure, train_function: Callable[..., Node]) -> None:
    config = configure()
    config["seed"] = config["optimizer"]["lr"] = "???"
    del config["compile"]
    assert checks.problems(train_function, config) == [
        "seed is not set, and has no default: add seed=VALUE",
        "compile is not set, and has no default: add compile=VALUE",
        "optimizer.lr is not set, and has no default: add optimizer.lr=VALUE",
    ]


def test_what_the_lines_above_advise_passes(found: Found) -> None:
    assert found("batch_size=4", CPU, "trainer.devices=4") == []
    assert found("image_size=96", "model/patch=p16") == []
    assert found("data.drop_last=true", "batch_size=1293", "schedule.warmup_steps=0") == []
    assert found("schedule.warmup_steps=2099") == []


def test_devices_are_counted_against_the_gpus_that_are_there(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    # the one thing that can't be had here at will is a machine with two GPUs
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    (line,) = found("trainer.devices=4")
    assert line == "trainer.devices=4: this machine has 2 GPUs; use trainer.devices=2, or trainer.accelerator=cpu"
    assert found("trainer.devices=4", CPU) == []
    assert found("trainer.devices=2") == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert found("trainer.devices=4") == [], "without a GPU, devices are processes on the CPU"


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read everything")
def test_a_data_folder_that_cant_be_read_is_told(found: Found, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    assert found(f"data_dir={locked}") == [f"data_dir={locked} can't be read"]


def test_a_cluster_has_other_machines_and_must_be_asked_for_a_number_of_devices(
    train_function: Callable[..., Node], configure: Configure
) -> None:
    several = configure("trainer.num_nodes=2", "trainer.devices=4", "batch_size=64")
    assert checks.problems(train_function, several, elsewhere=True) == []
    (problem,) = checks.problems(train_function, configure("trainer.devices=-1"), elsewhere=True)
    assert problem == "trainer.devices=-1: a cluster must be asked for a number of devices; name it"
    (problem,) = checks.problems(train_function, {**several, "max_restarts": 2}, elsewhere=True)
    assert problem == "max_restarts=2 starts one machine's processes again, not 2; use max_restarts=0"
