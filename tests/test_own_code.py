"""A user's own data set, model, optimizer, schedule, augmentation, metric and callback, from a folder of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassRecall

import train
from conftest import Configure
from vitlab.cli import checks
from vitlab.config import paths
from vitlab.training.build import build_metrics
from vitlab.training.classifier import Classifier

FILES = {
    # a data set
    "stripes.py": '''
from vitlab.data.source import Facts, Source, Split


@Facts(native_size=8, channels=1, num_classes=2)
def stripes(samples: int = 96) -> Source:
    """Noise with bright rows (class 0) or columns (class 1)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 128, (samples, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(samples) % 2
    images[labels == 0, :, ::2, :] += 100
    images[labels == 1, :, :, ::2] += 100
    train, test = Split(images[:64], labels[:64]), Split(images[64:], labels[64:])
    return Source("stripes", ("rows", "columns"), 1, (0.4,), (0.25,), 8, train, test)
''',
    "conf/data/stripes.yaml": """
defaults: [base, _self_]
source:
  _target_: stripes.stripes
  _partial_: true
""",
    # a model
    "perceptron.py": '''
from torch import Tensor, nn


class Perceptron(nn.Module):
    def __init__(self, *, num_classes: int, in_channels: int, image_size: int, width: int = 32) -> None:
        super().__init__()
        pixels = in_channels * image_size**2
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(pixels, width), nn.GELU(), nn.Linear(width, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] for images [B, C, H, W]."""
        return self.layers(images)
''',
    "conf/model/perceptron.yaml": """
_target_: perceptron.Perceptron
image_size: ${image_size}
""",
    # an optimizer
    "sign_descent.py": """
import torch
from torch.optim import Optimizer


class SignDescent(Optimizer):
    def __init__(self, params, *, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad.sign(), alpha=group["lr"])
        return loss
""",
    "conf/optimizer/sign_descent.yaml": """
_target_: sign_descent.SignDescent
_partial_: true
lr: 1e-3
""",
    # a schedule
    "halving.py": '''
from torch.optim.lr_scheduler import LambdaLR


def halving(optimizer, total_steps: int, *, times: int = 3) -> LambdaLR:
    """Halve the rate at equal distances, `times` times in the training."""
    return LambdaLR(optimizer, lambda step: 0.5 ** (step * (times + 1) // (total_steps + 1)))
''',
    "conf/schedule/halving.yaml": """
_target_: halving.halving
_partial_: true
""",
    # an augmentation
    "salt.py": '''
import torch
from torch import Tensor
from vitlab.data.augment import Augment


class Salt(Augment):
    """White pixels, before everything that `Augment` does."""

    def __init__(self, *, share: float = 0.02, **options) -> None:
        super().__init__(**options)
        self.share = share

    def vary(self, images: Tensor, *args, **options) -> Tensor:
        salted = images.masked_fill(torch.rand_like(images, dtype=torch.float) < self.share, 255)
        return super().vary(salted, *args, **options)
''',
    # a metric
    "worst_class.py": '''
from torch import Tensor
from torchmetrics.classification import MulticlassRecall


class WorstClass(MulticlassRecall):
    """The accuracy of the class that is recognized worst."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> Tensor:
        return super().compute().min()
''',
    # a callback
    "enough.py": '''
from lightning import Callback


class Enough(Callback):
    """Stop when the validation's score is high enough."""

    def __init__(self, *, monitor: str, score: float) -> None:
        self.monitor, self.score = monitor, score

    def on_validation_end(self, trainer, pl_module) -> None:
        trainer.should_stop |= bool(trainer.callback_metrics[self.monitor] >= self.score)
''',
}
COMMAND = [
    *("--config-dir=conf", "data=stripes", "model=perceptron", "optimizer=sign_descent", "schedule=halving"),
    *("data.augment._target_=salt.Salt", "data.augment.share=0.05"),
    *("classifier.metrics.worst._target_=worst_class.WorstClass", "objective=val/worst"),
    *("callbacks.enough._target_=enough.Enough", "callbacks.enough.monitor=val/worst", "callbacks.enough.score=2"),
]
QUICK = ["trainer.accelerator=cpu", "trainer.max_epochs=4", "logger=csv", "batch_size=16", "hydra.run.dir=runs/own"]


def call(folder: Path, program: str, *arguments: str, status: int = 0, **variables: str) -> str:
    """Run a program in a folder, without vitlab's variables -> what it prints."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("VITLAB_", "PYTHONPATH"))}
    clean |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", **variables}
    line = [sys.executable, str(paths.PROGRAMS / f"{program}.py"), *arguments]
    ended = subprocess.run(line, cwd=folder, env=clean, capture_output=True, text=True, timeout=300)
    assert ended.returncode == status, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's folder, with a run of all seven parts in it."""
    home = tmp_path_factory.mktemp("user")
    for name, text in FILES.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text.lstrip("\n"))
    call(home, "train", *COMMAND, *QUICK)
    return home


@pytest.mark.parametrize("name", FILES)
def test_each_file_has_at_most_15_lines(name: str) -> None:
    lines = [line for line in FILES[name].splitlines() if line.strip()]
    assert len(lines) <= 15


def results(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_a_run_of_own_parts_trains_and_is_chosen_by_the_own_metric(folder: Path) -> None:
    scores = results(folder / "runs/own/results.json")
    assert scores["status"] == "finished"
    assert scores["epochs"] == 4
    assert {"val/worst", "test/worst", "test/acc"} <= scores.keys()
    assert scores["test/worst"] <= scores["test/acc"]


@pytest.mark.long
def test_resume_and_evaluate_work_with_own_parts(folder: Path) -> None:
    """In two processes, whose scores are those of one; the own callback ends the resumed run."""
    more = ["trainer.max_epochs=9", "trainer.devices=2", "callbacks.enough.score=0"]
    call(folder, "train", "--config-dir=conf", "resume=runs/own", *more)
    trained = results(folder / "runs/own/results.json")
    assert trained["epochs"] == 5
    call(folder, "evaluate", "run=runs/own", "trainer.accelerator=cpu")
    (file,) = folder.glob("runs/own/evaluation/**/results.json")
    evaluated = results(file)
    for name in ("test/worst", "test/acc", "test/correct", "test/count"):
        assert evaluated[name] == trained[name]


def test_a_misspelled_metric_is_refused_before_the_start(folder: Path) -> None:
    printed = call(folder, "train", *COMMAND, "objective=val/wrost", status=2)
    assert "objective=val/wrost is not measured; use one of val/acc, val/acc5, val/loss, val/worst" in printed


# ---------------------------------------------------------------------------------------------- classifier.metrics

CALIBRATION = "torchmetrics.classification.MulticlassCalibrationError"
RECALL = "torchmetrics.classification.MulticlassRecall"


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["objective=val/recall"], None),
        (["objective=val/acc"], None),
        (["objective=test/recall"], "objective=test/recall is not measured; use one of"),
        (
            ["++classifier.metrics.recall.averag=macro"],
            "classifier.metrics.recall can't be built: Unexpected keyword arguments: `averag`",
        ),
        ([f"++classifier.metrics={{acc: {{_target_: {RECALL}}}}}"], "classifier.metrics.acc: use a plain name; acc,"),
        (
            ["++classifier.metrics.recall._target_=torch.nn.GELU"],
            "recall._target_=torch.nn.GELU is no torchmetrics.Met",
        ),
        (
            ["objective=val/ece", f"++classifier.metrics={{ece: {{_target_: {CALIBRATION}}}}}"],
            "objective=val/ece: lower values of this metric are better; call it ece_error",
        ),
        (
            ["objective=val/recall_error", f"++classifier.metrics={{recall_error: {{_target_: {RECALL}}}}}"],
            "objective=val/recall_error: higher values of this metric are better; leave 'loss' and 'error' out",
        ),
    ],
)
def test_a_metric_is_checked_before_the_start(configure: Configure, overrides: list[str], problem: str | None) -> None:
    lines = checks.problems(train.main, configure(f"++classifier.metrics.recall._target_={RECALL}", *overrides))
    assert len(lines) == (problem is not None), lines
    assert problem is None or problem in lines[0]


def test_a_metric_gets_the_classes_of_the_data_and_is_not_shared_between_splits() -> None:
    metrics = build_metrics({"recall": {"_target_": RECALL}, "off": None}, num_classes=3)
    scores: Any = Classifier(nn.Identity(), num_classes=3, metrics=metrics).scores
    assert list(metrics) == ["recall"]
    scores["val_scores"]["recall"].update(torch.eye(3), torch.arange(3))
    assert isinstance(scores["val_scores"]["recall"], MulticlassRecall)
    assert float(scores["val_scores"]["recall"].compute()) == 1
    assert scores["test_scores"]["recall"].update_count == 0
    with pytest.raises(ValueError, match="metrics has acc, which is measured anyway; use another name"):
        Classifier(nn.Identity(), num_classes=3, metrics={"acc": metrics["recall"]})
