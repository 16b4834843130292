"""Every rule of the configuration: a mistake is reported in one line that names value, knob and remedy."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train
from conftest import Configure
from vitlab.cli import checks
from vitlab.cli.checks import Program, message, with_settings_of
from vitlab.config.docstrings import parse_arguments
from vitlab.config.schema import ConfigView, Node, call_problems

Found = Callable[..., list[str]]
CPU = "trainer.accelerator=cpu"
WARMUP = "schedule.warmup_steps=50"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model=vit_b16", CPU, "trainer.devices=4"],
        ["image_size=[8,16]"],
        ["data=fake", "++data.source.size=40", "image_size=40", "schedule.warmup_steps=5"],
        ["logger=[wandb,csv,tensorboard]", "optimizer=muon", "schedule=reciprocal_sqrt"],
        ["model=timm", "model.model_name=resnet18"],
        ["data.size_schedule={0: 4, 2: 6}"],
        ["trainer=fsdp", CPU],
        ["trainer=fsdp", "callbacks=ema", "trainer.precision=bf16-true", CPU],
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
    (["classifier.loss=softmx"], "is not one of 'softmax', 'sigmoid', 'bce', 'focal'; did you mean 'softmax'?"),
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
    # the data and its batches
    (["data.val_fraction=-0.1"], "data.val_fraction=-0.1 must be at least 0 and below 1 (the best checkpoint"),
    (["data.val_fraction=1.5"], "data.val_fraction=1.5 must be at least 0 and below 1"),
    (["data.val_fraction=0", "callbacks=early_stopping"], "reads val/loss, and data.val_fraction=0 holds out no"),
    (["data.val_fraction=0.001"], "to train on and 2 to validate on: fewer than one of each of the 10 classes"),
    (["data.val_fraction=0.9999"], "into 0 to train on and 1437 to validate on"),
    (["data.num_workers=-1"], "data.num_workers=-1 must be at least 0"),
    (["data.max_train_samples=0"], "data.max_train_samples=0 must be at least 1"),
    (["data.eval_batch_size=0"], "data.eval_batch_size=0 must be at least 1"),
    (["data.augment.erasing=2"], "data.augment.erasing=2 must be at least 0 and at most 1 (a probability)"),
    (["data.augment.scale=[2,1]"], "data.augment.scale=[2, 1] must be [low, high] with low <= high"),
    (
        ["data=fashion_mnist", "data.augment.crop=inception"],
        "data.augment.crop_padding=2 is for data.augment.crop=simple and none, not inception; set crop_padding to 0",
    ),
    (["data.max_skipped=1.0"], "data.max_skipped=1.0 must be at least 0 and below 1 (a share of the images)"),
    (["data.on_error=skip"], "data.on_error=skip is for image folders, and digits is none; leave it out"),
    (
        ["data=image_folder", "data_dir=.", "data.on_error=skip", "data.scan=none"],
        "data.on_error=skip decodes every image",
    ),
    (
        ["data.augment.mix_mode=pair", "data.augment.mixup=0"],
        "mix_mode=pair has no effect without mixing; set data.augment",
    ),
    (["data.augment.mix_off_epoch=9", "data.augment.mixup=0"], "mix_off_epoch=9 has no effect without mixing"),
    (
        ["model.drop_path_kept_only=true", "model.drop_path=0.1"],
        "no effect with model.drop_path=0.1: it is for rates above",
    ),
    (
        [
            "data=image_folder",
            "data_dir=.",
            "image_size=32",
            "data.scan=none",
            "data.scaled_decoding=true",
            "data.augment.crop=none",
        ],
        "data.scaled_decoding=true has no effect with data.augment.crop=none",
    ),
    (["data.scaled_decoding=true"], "data.scaled_decoding=true is for JPEG files, and digits is stored in memory"),
    (["data.on_error=ignore"], "data.on_error=ignore is not one of 'raise', 'skip'"),
    (["data=image_folder", "data_dir=no/such"], "no/such is not a folder; data=image_folder wants"),
    # batch size against processes, accumulation and samples
    (["batch_size=0"], "batch_size=0 must be at least 1"),
    (["batch_size=3", CPU, "trainer.devices=4"], "leaves nothing for some of 4 parts (4 processes"),
    (["batch_size=3", "trainer.accumulate_grad_batches=4"], "the least is 4"),
    (["batch_size=3", CPU, "trainer.devices=4"], "(4 processes x"),
    (
        ["data.max_train_samples=5", CPU, "trainer.devices=8", "schedule.warmup_steps=0"],
        "batch_size=64: 5 images can't be shared by 8 processes",
    ),
    (["data.drop_last=true", "batch_size=1294"], "more than the 1293 images to train on, and data.drop_last drops"),
    (["data.size_schedule={0: 7}"], "data.size_schedule: 7 is not a multiple of model.patch_size=2; the nearest are 6"),
    (["data.size_schedule={a: 8}"], "data.size_schedule={'a': 8} has a: 8; set sizes by epoch, such as {0: 160, 60:"),
    (["data.size_schedule={0: 0}"], "data.size_schedule={0: 0} has 0: 0; set sizes by epoch"),
    (
        ["data.size_schedule={0: 4, 10: 8}", "trainer.max_epochs=10", "schedule.warmup_steps=0"],
        "data.size_schedule has 8 after 10 epochs, and trainer.max_epochs=10; set it earlier",
    ),
    # the trainer, its devices and the schedule
    (
        ["trainer=fsdp", "callbacks=ema", "callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging", CPU],
        "callbacks.ema can't average weights that trainer=fsdp shards over devices",
    ),
    (
        ["trainer=fsdp", "callbacks=ema", "trainer.strategy.save_distributed_checkpoint=true", CPU],
        "callbacks.ema can't average weights that trainer=fsdp shards over devices",
    ),
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
    (["trainer.use_distributed_sampler=true"], "trainer.use_distributed_sampler=true would divide the data twice"),
    (
        [CPU, "trainer.num_nodes=2"],
        "trainer.num_nodes=2: start the processes of all nodes yourself, with torchrun or srun, or leave that to -m",
    ),
    ([CPU, "trainer.devices=-1"], "trainer.devices=-1 means all GPUs, and there is none"),
    (["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val=-1 must be 0 (off) or more"),
    (["trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch=0 must be at least 1"),
    (["++trainer.fast_dev_run=true"], "trainer.fast_dev_run=True leaves out checkpoints and logs; use trainer=debug"),
    # warm-up against the steps of training
    (["schedule.warmup_fraction=1"], "schedule.warmup_fraction=1"),
    (["schedule.warmup_steps=-1"], "schedule.warmup_steps=-1 must be at least 0"),
    (["schedule.warmup_steps=2520"], "schedule.warmup_steps=2520 leaves nothing of the 2520 steps of training; use"),
    ([WARMUP, "trainer.max_steps=50"], "schedule.warmup_steps=50 leaves nothing of the 50 steps"),
    ([WARMUP, "trainer.max_epochs=2"], "leaves nothing of the 42 steps"),
    ([WARMUP, "trainer.max_epochs=2", "data.drop_last=true"], "leaves nothing of the 40 steps"),
    ([WARMUP, "trainer.max_epochs=5", "++trainer.limit_train_batches=10"], "leaves nothing of the 50 steps"),
    ([WARMUP, "trainer.max_epochs=4", "++trainer.limit_train_batches=0.5"], "leaves nothing of the 40 steps"),
    (
        [WARMUP, "trainer.max_epochs=2", "trainer.accumulate_grad_batches=4", "++trainer.limit_train_batches=10"],
        "leaves nothing of the 6 steps",
    ),
    (
        ["schedule=reciprocal_sqrt", "schedule.cooldown_steps=2470"],
        "schedule.cooldown_steps=2470 and a warm-up of 50 steps leave nothing of the 2520 steps",
    ),
    (
        ["schedule=timm_cosine", "trainer.max_epochs=5"],
        "schedule.warmup_epochs=5 leaves nothing of the 105 steps of training; use fewer epochs, or raise",
    ),
    (
        ["schedule=timm_cosine", "schedule.cooldown_epochs=115"],
        "schedule.cooldown_steps=2415 and a warm-up of 105 steps leave nothing of the 2520 steps",
    ),
    (["schedule.warmup_epochs=120"], "schedule.warmup_epochs=120 leaves nothing of the 2520 steps"),
    (["++schedule.steps_per_epoch=7"], "schedule.steps_per_epoch=7 can't be set here; it follows from the data"),
    (["++schedule.total_steps=7"], "schedule.total_steps=7 can't be set here; set trainer.max_epochs"),
    (["++classifier.batch_size=7"], "classifier.batch_size=7 can't be set here; set batch_size"),
    (["classifier.adaptive_clip=0"], "classifier.adaptive_clip=0 must be above 0"),
    (
        ["classifier.adaptive_clip=0.01", "trainer.precision=16-mixed"],
        "classifier.adaptive_clip=0.01 needs gradients without a scale; use trainer.precision=bf16-mixed",
    ),
    (
        ["classifier.adaptive_clip=0.01", "trainer=fsdp", CPU],
        "classifier.adaptive_clip=0.01 can't clip gradients that trainer=fsdp shards over devices; use trainer=ddp",
    ),
    (
        ["optimizer=muon_qkv", "trainer=fsdp", CPU],
        "optimizer=muon_qkv can't split matrices that trainer=fsdp shards over devices; use trainer=ddp, or",
    ),
    (
        ["optimizer=sgd", "trainer=fsdp", CPU],
        "optimizer.fused=true of optimizer=sgd can't update weights that trainer=fsdp shards over devices; use",
    ),
    (
        ["optimizer=adafactor", "trainer=fsdp", CPU],
        "optimizer=adafactor can't save moments that trainer=fsdp shards over devices; use trainer=ddp, or",
    ),
    (
        ["optimizer=sam", "trainer.accumulate_grad_batches=2"],
        "optimizer=sam with trainer.accumulate_grad_batches=2: it runs each batch twice; set it to 1",
    ),
    (["optimizer=sam", "trainer.precision=16-mixed"], "optimizer=sam needs gradients without a scale; use trainer."),
    (["optimizer=schedule_free"], "optimizer=schedule_free and callbacks=schedule_free need each other: the average"),
    (["callbacks=schedule_free"], "optimizer=schedule_free and callbacks=schedule_free need each other: the average"),
    (["optimizer=muon_qkv", "++optimizer.algo=adamuon"], "optimizer.algo=adamuon is not for optimizer=muon_qkv; use"),
    (["classifier.base_batch_size=0"], "classifier.base_batch_size=0 must be at least 1"),
    # the network
    (["++model.num_classes=12"], "model.num_classes=12, but the data has 10 classes; leave model.num_classes out"),
    (["++model.in_channels=3"], "model.in_channels=3, but the data has 1 channels; leave model.in_channels out"),
    (
        ["image_size=100", "model/patch=p16"],
        "image_size=100 is not a multiple of patch_size=16; the nearest are 96",
    ),
    (["image_size=[8,9]", "model.patch_size=2"], "image_size=(8, 9) is not a multiple of patch_size=2"),
    (["model.heads=7"], "model.dim=64 is not a multiple of heads=7; the nearest are 63 and 70"),
    (["model.dim=66", "model.heads=6"], "model.dim=66 is not a multiple of 4, which pos_embed='sincos2d' needs"),
    (["model.drop_path=1.0"], "model.drop_path=1.0 must be at least 0 and below 1"),
    (["model.class_token=false"], "model.pool='cls' reads a token that class_token=False leaves out; set"),
    (["model.pool=none"], "model.pool=none gives logits for each token, which is not for training; use cls or avg"),
    (
        ["model=timm", "model.options={num_heads: 5}"],
        "model.options={'num_heads': 5}: vit_tiny_patch16_224: dim should",
    ),
    (
        ["model=timm", "model.options={dept: 5}"],
        "model.options.dept: timm's VisionTransformer has no such argument;",
    ),
    (["model=timm", "model.model_name=resnet81"], "model.model_name=resnet81 is no timm model; did you mean"),
    (["classifier.layer_decay=0"], "classifier.layer_decay=0 must be above 0 and at most 1 (1 is off)"),
    (["classifier.head_lr_factor=-1"], "classifier.head_lr_factor=-1 must be above 0"),
    (["classifier.freeze=[1]"], "classifier.freeze=[1] is not a string or a list of a string"),
    (
        ["classifier.freeze=[blok.0]"],
        "classifier.freeze=blok.0: no parameter or module has such a name; did you mean 'blocks.0'",
    ),
    (["classifier.freeze=blocks.9"], "classifier.freeze=blocks.9: no parameter or module has such a name"),
    (["classifier.freeze='*'"], "classifier.freeze=* leaves nothing to train"),
    (
        ["model=timm", "model.model_name=resnet18", "classifier.freeze=layer5"],
        "classifier.freeze=layer5: no parameter or module has such a name; did you mean 'layer",
    ),
]


@pytest.mark.parametrize(
    ("overrides", "words"), ONE_LINE, ids=lambda case: " ".join(case) if type(case) is list else ""
)
def test_one_mistake_is_one_line_that_names_value_knob_and_remedy(
    found: Found, overrides: list[str], words: str
) -> None:
    (line,) = found(*overrides)
    assert words in line


def test_mistakes_of_every_kind_are_reported_together(found: Found) -> None:
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


def test_a_missing_value_is_reported_with_how_to_set_it(configure: Configure) -> None:
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
def test_a_data_folder_that_cant_be_read_is_reported(found: Found, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    assert found(f"data_dir={locked}") == [f"data_dir={locked} can't be read"]


def test_a_program_without_a_rule_of_its_own_has_nothing_to_say() -> None:
    program = Program("count", lambda **settings: settings)
    assert list(program.check(ConfigView({"a": 1}, set()))) == []


def test_problems_are_shown_in_a_line_each() -> None:
    assert message("count", ["a=1 is wrong"]) == (
        "count: 1 problem in the configuration; nothing was started.\n  - a=1 is wrong"
    )
    assert message("count", ["a", "b"]).startswith("count: 2 problems in")


def test_a_setting_s_control_characters_stay_off_the_terminal() -> None:
    assert message("train", ["data_dir=\x1b[2J is not a folder"]).endswith("\n  - data_dir=\\x1b[2J is not a folder")


def test_a_program_may_have_another_program_s_settings() -> None:
    def train(*, seed: int, name: str, resume: bool) -> Node:
        """Train.

        Args:
            seed: Of the weights,
                and of the order.
            name: Of the run.
            resume: Whether it goes on.
        """
        return {}

    @with_settings_of(Program("train", train), without=["resume"])
    def measure(*, steps: int, name: str | None, **training: Any) -> Node:
        """Measure.

        Args:
            steps: How many.
            name: Of the report.
        """
        return {"steps": steps, "name": name, **training}

    assert [*inspect.signature(measure).parameters] == ["steps", "name", "seed"]
    lines = parse_arguments(inspect.getdoc(measure) or "")
    assert lines == {"steps": "How many.", "name": "Of the report.", "seed": "Of the weights, and of the order."}
    assert call_problems("", {"steps": 1, "name": None, "seed": "x", "resume": True}, measure) == [
        "seed=x is not an int",
        "resume=true: there is no such setting",
    ]
    assert measure(steps=1, name=None, seed=2) == {"steps": 1, "name": None, "seed": 2}
    assert [*inspect.signature(train).parameters] == ["seed", "name", "resume"], "as before"
