"""The gradient of the global batch, clipping, and scores that are counts."""

import itertools
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from timm.optim.muon import Muon
from timm.utils.clip_grad import dispatch_clip_grad
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchvision.ops import sigmoid_focal_loss

from teachers import NAMES, digits_teacher
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import EvalBatch, TrainBatch
from vitlab.data.sampler import EpochBatches
from vitlab.data.sets.digits import digits
from vitlab.models.vit import VisionTransformer
from vitlab.runs.metrics_file import MetricsFile
from vitlab.training import schedules
from vitlab.training.classifier import Classifier, gradient_norm, logged_scores

MakeTrainer = Callable[..., Trainer]


def digits_module(**knobs: Any) -> DataModule:
    """Plain digits: 101 images in steps of 34, 34 and 33, so neither 2 nor 3 parts are ever equal."""
    defaults = {"max_train_samples": 101, "batch_size": 34, "augment": Augment(), "image_size": 8, "seed": 0}
    module = DataModule(source=digits, **{**defaults, **knobs})
    module.setup()
    return module


def classifier(*, make_optimizer: Any = None, network: nn.Module | None = None, **knobs: Any) -> Classifier:
    torch.manual_seed(0)
    network = network or VisionTransformer(
        image_size=8, patch_size=4, dim=16, depth=1, heads=2, num_classes=10, in_channels=1
    )
    optimizer = make_optimizer or partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    return Classifier(network, num_classes=10, optimizer=optimizer, schedule=schedules.constant, **knobs)


# -------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_label_smoothing_outside_its_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match=rf"label_smoothing={smoothing} must be at least 0 and below 1"):
        classifier(label_smoothing=smoothing)


# ------------------------------------------------------------------------------------------------------ gradient


def by_hand(data: DataModule, epochs: int) -> dict[str, Tensor]:
    """Weights after plain SGD on the mean loss over each complete step, in a loop without Lightning."""
    network = classifier().network.double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    train = data._splits["train"]
    assert train.images is not None
    for epoch in range(epochs):
        position = partial(divmod, epoch * data.steps_per_epoch, data.steps_per_epoch)
        for plan in EpochBatches(samples=101, batch_size=34, seed=0, position=position):
            images, targets = train.images[plan.indices], train.labels[plan.indices]
            optimizer.zero_grad()
            mean, std = data.source.mean[0], data.source.std[0]
            F.cross_entropy(network((images.double() / 255 - mean) / std), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return network.state_dict()


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_gradient_is_that_of_the_mean_over_the_step_however_it_is_cut_up(
    parts: int, make_trainer: MakeTrainer
) -> None:
    data, module = digits_module(), classifier()
    make_trainer(max_epochs=2, precision="64-true", accumulate_grad_batches=parts).fit(module, data)
    expected = by_hand(digits_module(), epochs=2)
    weights = module.network.state_dict()
    for name, weight in weights.items():
        # the images were normalised in float32
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.equal(weights["head.weight"], classifier().network.state_dict()["head.weight"].double())


def test_cutting_a_step_up_changes_nothing_but_rounding(make_trainer: MakeTrainer) -> None:
    weights = []
    for parts in (1, 2, 3):
        module = classifier()
        make_trainer(max_epochs=2, precision="64-true", accumulate_grad_batches=parts).fit(module, digits_module())
        weights.append(torch.cat([p.detach().flatten() for p in module.network.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(weights[2], weights[0], rtol=1e-10, atol=1e-12)


class Gradients(Callback):
    """Keeps the gradient's norm before clipping and after it, with the one that the module names."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []
        self.reported: list[float] = []

    def norm(self, module: LightningModule) -> float:
        squares = [float(p.grad.double().square().sum()) for p in module.parameters() if p.grad is not None]
        return float(sum(squares) ** 0.5)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.before.append(self.norm(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step > len(self.after):
            assert isinstance(pl_module, Classifier)
            assert pl_module.gradient_norm is not None
            self.after.append(self.norm(pl_module))
            self.reported.append(float(pl_module.gradient_norm))


@pytest.mark.parametrize(("clip", "parts"), [(None, 1), (0.5, 1), (0.5, 2)])
def test_the_norm_logged_is_that_before_clipping_and_clipping_clips(
    clip: float | None, parts: int, make_trainer: MakeTrainer
) -> None:
    seen = Gradients()
    trainer = make_trainer(max_epochs=1, callbacks=[seen], gradient_clip_val=clip, accumulate_grad_batches=parts)
    trainer.fit(classifier(), digits_module())
    assert len(seen.reported) == trainer.global_step == 3
    assert seen.reported == pytest.approx(seen.before, rel=1e-5)
    assert min(seen.before) > 0.5, "else nothing would be clipped"
    assert seen.after == pytest.approx(seen.before if clip is None else [clip] * 3, rel=1e-4)


def test_clipping_by_value_is_left_to_lightning(make_trainer: MakeTrainer) -> None:
    module = classifier()
    trainer = make_trainer(max_steps=1, gradient_clip_val=1e-3, gradient_clip_algorithm="value")
    trainer.fit(module, digits_module())
    largest = max(float(p.grad.abs().max()) for p in module.network.parameters() if p.grad is not None)
    assert largest == pytest.approx(1e-3)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_adaptive_clipping_is_timm_s_after_that_by_norm_and_leaves_the_head(
    clip: float | None, make_trainer: MakeTrainer
) -> None:
    found: dict[float | None, dict[str, Tensor]] = {}
    for factor in (None, 1e-4):
        module = classifier(adaptive_clip=factor, make_optimizer=partial(torch.optim.SGD, lr=0.0))
        nn.init.normal_(module.get_parameter("network.head.weight"))
        make_trainer(max_steps=1, gradient_clip_val=clip).fit(module, digits_module())
        found[factor] = {name: p.grad.clone() for name, p in module.network.named_parameters() if p.grad is not None}
        if factor is None:
            body = [parameter for name, parameter in module.network.named_parameters() if not name.startswith("head")]
            dispatch_clip_grad(body, 1e-4, mode="agc")
            expected = {name: p.grad for name, p in module.network.named_parameters() if p.grad is not None}
    assert found[1e-4].keys() == expected.keys()
    for name, gradient in found[1e-4].items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
        if name.startswith("head"):
            torch.testing.assert_close(gradient, found[None][name])
    assert not torch.allclose(found[1e-4]["blocks.0.mlp.fc1.weight"], found[None]["blocks.0.mlp.fc1.weight"])


def test_bf16_mixed_trains_with_the_fused_optimizer_and_clipping(make_trainer: MakeTrainer) -> None:
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        seen, module = Gradients(), classifier(make_optimizer=partial(torch.optim.AdamW, lr=1e-3, fused=True))
        trainer = make_trainer(precision=precision, max_epochs=1, gradient_clip_val=0.5, callbacks=[seen])
        trainer.fit(module, digits_module())
        assert trainer.optimizers[0].defaults["fused"]
        assert seen.after == pytest.approx([0.5] * 3, rel=1e-2)
        found[precision] = torch.cat([p.detach().flatten() for p in module.network.parameters()])
        assert found[precision].dtype == torch.float32
    difference = (found["32-true"] - found["bf16-mixed"]).abs().max()
    assert 0 < difference < 6e-3, "bfloat16 was used, and no step went elsewhere (three of 1e-3 each)"


# -------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("batch_size", [7, 360, 1000])
def test_scores_are_exact_counts_whatever_the_batches(batch_size: int, make_trainer: MakeTrainer) -> None:
    data, module = digits_module(batch_size=batch_size, max_train_samples=None), classifier()
    nn.init.normal_(module.get_parameter("network.head.weight"))  # a fresh head is 0: all logits are equal
    trainer = make_trainer()
    trainer.test(module, data, verbose=False)
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}

    test = data._splits["test"]
    assert test.images is not None
    with torch.inference_mode():
        logits = module.eval()(data._prepare(test.images))
    ranks = logits.argsort(dim=1, descending=True)
    right = sum(int(r[0]) == int(y) for r, y in zip(ranks, test.labels, strict=True))
    among_five = sum(int(y) in r[:5].tolist() for r, y in zip(ranks, test.labels, strict=True))
    assert found["test/count"] == 360
    assert found["test/correct"] == right
    assert found["test/acc"] == pytest.approx(right / 360, rel=1e-6)
    assert found["test/acc5"] == pytest.approx(among_five / 360, rel=1e-6)
    assert 0 < right < among_five < 360
    assert found["test/loss"] == pytest.approx(F.cross_entropy(logits, test.labels).item(), rel=1e-5)


def test_a_batch_without_images_as_a_rank_may_have_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = classifier()
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    for count in (0, 3, 0):
        images, labels = torch.zeros(count, 1, 8, 8), torch.zeros(count, dtype=torch.long)
        module.evaluation_step(EvalBatch(images, labels), "test")
    sums = module.scores["test_scores"]
    assert isinstance(sums, MetricCollection)
    scores = sums.compute()
    assert scores["test/count"] == 3
    assert math.isfinite(scores["test/loss"])


def test_validation_scores_are_exact_too_and_two_are_in_the_bar(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    rows = MetricsFile(folder=str(tmp_path))
    module, trainer = classifier(), make_trainer(max_epochs=1, log_every_n_steps=1, logger=[rows])
    trainer.fit(module, digits_module())
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert found["val/count"] == 144
    assert found["val/acc"] == pytest.approx(found["val/correct"] / 144)
    assert {name for name in trainer.progress_bar_metrics if "/" in name} == {"train/loss", "val/acc", "val/loss"}
    assert any("val/acc" in row for row in rows.read_rows()), "without a Monitor they are logged here"
    module.monitored = True
    assert not module.own_log()


def test_no_smoothing_and_no_other_loss_enters_the_scores(make_trainer: MakeTrainer) -> None:
    reported = []
    choices: list[dict[str, Any]] = [{}, {"loss": "sigmoid", "label_smoothing": 0.3}]
    for knobs in choices:
        trainer = make_trainer()
        trainer.test(classifier(**knobs), digits_module(), verbose=False)
        reported.append({name: value.item() for name, value in trainer.callback_metrics.items()})
    assert reported[0] == reported[1]


def test_top_5_is_left_out_where_it_says_nothing() -> None:
    for classes, reported in ((5, False), (6, True)):
        scores = Classifier(nn.Identity(), num_classes=classes).scores["val_scores"]
        assert ("val/acc5" in scores.keys()) is reported  # type: ignore[operator]  # noqa: SIM118


def test_scores_of_one_evaluation_do_not_leak_into_the_next(make_trainer: MakeTrainer) -> None:
    module, data, trainer = classifier(), digits_module(), make_trainer()
    for split, count in (("test", 360), ("val", 144), ("train", 101), ("test", 360)):
        module.split = split
        data.tested = split  # type: ignore[assignment]
        trainer.test(module, data, verbose=False)
        assert {k: int(v) for k, v in trainer.callback_metrics.items() if k.endswith("count")} == {
            f"{split}/count": count
        }


# ------------------------------------------------------------------------------------------------------- wiring


def test_the_rate_changes_with_every_step_and_the_schedule_knows_all_steps(make_trainer: MakeTrainer) -> None:
    used: list[float] = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            used.append(optimizer.param_groups[0]["lr"])

    module = classifier()
    module.make_schedule = partial(schedules.warmup_linear, warmup_steps=2)
    make_trainer(max_epochs=2, accumulate_grad_batches=2, callbacks=[Rates()]).fit(module, digits_module())
    assert used == pytest.approx([0.05, 0.1, 0.1, 0.075, 0.05, 0.025]), "2 epochs of 3 steps, of 2 batches each"


@pytest.mark.parametrize(
    ("limits", "steps"),
    [({"max_epochs": 4}, 12), ({"max_epochs": 4, "max_steps": 5}, 5), ({"max_epochs": -1, "max_steps": 5}, 5)],
)
def test_the_steps_of_a_training_are_counted_by_lightning_for_other_loaders(
    make_trainer: MakeTrainer, limits: dict[str, int], steps: int
) -> None:
    """Our DataModule counts itself: Lightning's count would be another where an epoch ends within a step."""
    counts: list[int] = []

    class Count(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            assert isinstance(pl_module, Classifier)
            counts.append(pl_module.total_steps())
            trainer.should_stop = True

    data = digits_module()
    trainer = make_trainer(**limits, callbacks=[Count()])
    trainer.fit(classifier(), data.train_dataloader(), data.val_dataloader())
    make_trainer(**limits, callbacks=[Count()]).fit(classifier(), data)
    assert counts == [steps, steps]


def test_every_trainable_parameter_is_in_exactly_one_group_of_the_optimizer(make_trainer: MakeTrainer) -> None:
    module, trainer = classifier(), make_trainer(max_steps=1)
    trainer.fit(module, digits_module())
    groups = trainer.optimizers[0].param_groups
    held = list(itertools.chain.from_iterable(group["params"] for group in groups))
    assert {id(p) for p in held} == {id(p) for p in module.network.parameters()}
    assert len(held) == len(list(module.network.parameters()))
    assert [group["name"] for group in groups] == ["decay", "no_decay"]


def test_muon_gets_to_know_which_parameters_are_not_for_it(make_trainer: MakeTrainer) -> None:
    module = classifier(make_optimizer=partial(Muon, lr=1e-3))
    trainer = make_trainer(max_steps=1)
    trainer.fit(module, digits_module())
    fallback = {group["name"]: group["use_fallback"] for group in trainer.optimizers[0].param_groups}
    assert fallback == {"decay": False, "decay_ends": True, "no_decay": True}


def test_with_a_teacher_both_heads_learn_of_a_network_with_two_and_the_only_one_of_others() -> None:
    class Two(nn.Module):
        distilled_training = False

        def forward(self, x: Tensor) -> Any:
            return (x, -x) if self.distilled_training else x

    images, labels = torch.randn(3, 10), torch.arange(3)
    for network, sign in ((Two(), -1), (nn.Identity(), 1)):
        module = Classifier(network, num_classes=10, distillation="soft", teacher="any")
        learned: list[tuple[Tensor, Tensor]] = []
        module.distillation.losses = lambda own, logits, seen, to=learned: to.append((own, logits)) or own  # type: ignore
        losses = module.batch_losses(TrainBatch(images, labels, 3, 0, 0))
        torch.testing.assert_close(losses, F.cross_entropy(images, labels, reduction="none"))
        assert torch.equal(learned[0][1], sign * images)
        assert not network.distilled_training


def test_a_classifier_without_an_optimizer_evaluates_but_has_none() -> None:
    module = Classifier(nn.Identity(), num_classes=3)
    assert module.configure_optimizers() is None
    assert torch.equal(module(torch.ones(2, 3)), torch.ones(2, 3))


# --------------------------------------------------------------------------------------------------- fine-tuning


@pytest.mark.parametrize(
    ("wrong", "reported"),
    [
        ({"layer_decay": 0.0}, r"layer_decay=0\.0 must be above 0 and at most 1"),
        ({"layer_decay": 1.1}, r"layer_decay=1\.1 must be"),
        ({"head_lr_factor": 0.0}, r"head_lr_factor=0\.0 must be above 0"),
        ({"base_batch_size": 256}, r"classifier\.base_batch_size=256 needs batch_size"),
        ({"freeze": "blok"}, r"classifier\.freeze=blok: no parameter or module"),
    ],
)
def test_a_fine_tuning_knob_outside_its_range_is_refused(wrong: dict[str, Any], reported: str) -> None:
    with pytest.raises(ValueError, match=reported):
        classifier(**wrong)


def test_frozen_weights_stay_to_the_bit_and_all_others_move(make_trainer: MakeTrainer) -> None:
    make_optimizer = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.5)
    module = classifier(make_optimizer=make_optimizer, freeze=("patch_embed", "blocks.*.norm1"), layer_decay=0.7)
    before = {name: p.detach().clone() for name, p in module.network.named_parameters()}
    make_trainer(max_epochs=1).fit(module, digits_module())
    same = {name for name, p in module.network.named_parameters() if torch.equal(p, before[name])}
    frozen = {f"{part}.{kind}" for part in ("patch_embed.proj", "blocks.0.norm1") for kind in ("weight", "bias")}
    assert same == frozen


def test_a_frozen_convolutional_network_trains_its_head_on_features_that_stay(make_trainer: MakeTrainer) -> None:
    network = timm.create_model("resnet18", num_classes=10, in_chans=1)
    module = classifier(network=network, freeze="all-but-head")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    make_trainer(max_epochs=2).fit(module, digits_module())
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"fc.weight", "fc.bias"}, "BatchNorm's statistics are not among them"


def test_a_run_with_rates_by_layer_that_is_resumed_ends_as_one_that_was_never_interrupted(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    def made() -> Classifier:
        make_optimizer = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
        module = classifier(make_optimizer=make_optimizer, layer_decay=0.6, head_lr_factor=4.0, freeze="patch_embed")
        module.make_schedule = partial(schedules.warmup_cosine, warmup_steps=2)
        return module

    rates: list[list[float]] = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            rates.append([group["lr"] for group in optimizer.param_groups])

    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.should_stop = True

    complete, part, resumed = made(), made(), made()
    make_trainer(max_epochs=3, callbacks=[Rates()]).fit(complete, digits_module())
    expected, rates[:] = list(rates), []
    first = make_trainer(max_epochs=3, callbacks=[Rates(), Stop()])
    first.fit(part, digits_module())
    first.save_checkpoint(tmp_path / "half.ckpt")
    trainer = make_trainer(max_epochs=3, callbacks=[Rates()])
    trainer.fit(resumed, digits_module(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert rates == expected
    assert {len(row) for row in rates} == {5}, "layer 0's vectors, then matrices and vectors of layer 1 and of the head"
    assert [row[-1] / row[0] for row in rates[:-1]] == pytest.approx([4 / 0.6**2] * (len(rates) - 1))
    for name, value in complete.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


def test_the_groups_are_reported_when_a_run_starts(make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture) -> None:
    module = classifier(layer_decay=0.5, freeze="blocks")
    with caplog.at_level(logging.INFO, logger="vitlab"):
        make_trainer(max_steps=1).fit(module, digits_module())
    lines = [record.getMessage().split() for record in caplog.records if record.name == "vitlab.training.classifier"]
    assert [line[0] for line in lines] == [
        *("group", "layer0_decay", "layer0_no_decay", "layer1_no_decay", "head_decay", "head_no_decay", "frozen"),
    ]
    assert lines[1][2] == "0.025", "0.1 x 0.5 ^ 2: the peak, not the first step's"


def test_the_norm_is_that_of_clipping() -> None:
    model = nn.Linear(3, 1)
    model(torch.ones(2, 3)).sum().backward()
    expected = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    torch.testing.assert_close(gradient_norm([p.grad for p in model.parameters() if p.grad is not None]), expected)


def test_evaluation_mode_is_that_of_the_network_too_and_frozen_parts_stay_in_it() -> None:
    module = classifier(freeze="blocks")
    network: Any = module.network
    assert network.training
    assert not network.blocks[0].mlp.training
    assert not any(part.training for part in module.eval().modules())
    assert module.train().training
    assert network.training
    assert not network.blocks[0].mlp.training


def test_a_peak_is_scaled_where_both_batch_sizes_are_known() -> None:
    for base, expected in ((512, 0.1 * 96 / 512), (None, 0.1)):
        groups = classifier(batch_size=96, base_batch_size=base).build_optimizer().param_groups
        assert [group["lr"] for group in groups] == pytest.approx([expected] * len(groups))


def test_focal_loss_and_distillation_have_their_papers_settings(tmp_path: Path) -> None:
    """gamma 2 (arXiv 1708.02002); alpha 0.5 and temperature 1 of DeiT's program."""
    logits, labels = torch.randn(6, 10), torch.arange(6)
    targets = F.one_hot(labels, 10).float()
    focal = Classifier(nn.Identity(), num_classes=10, loss="focal").batch_losses(TrainBatch(logits, labels, 6, 0, 0))
    torch.testing.assert_close(focal, sigmoid_focal_loss(logits, targets, alpha=-1).sum(dim=1))

    module = classifier(distillation="soft", teacher=digits_teacher(tmp_path / "teacher")).eval()
    module.distillation.load_teacher(classes=NAMES, mean=[0.3], std=[0.4])
    images = torch.randn(6, 1, 8, 8)
    learned, taught = (x.log_softmax(dim=1) for x in (module(images), module.distillation.teacher_logits(images)))
    divergence = F.kl_div(learned, taught, reduction="none", log_target=True).mean(dim=1)
    expected = (F.nll_loss(learned, labels, reduction="none") + divergence) / 2
    torch.testing.assert_close(module.batch_losses(TrainBatch(images, labels, 6, 0, 0)), expected)


def test_metrics_of_ones_own_are_measured_in_each_split_and_null_turns_one_off(make_trainer: MakeTrainer) -> None:
    module = classifier(metrics={"own": MulticlassAccuracy(10, average="micro"), "off": None})
    trainer = make_trainer()
    trainer.test(module, digits_module(), verbose=False)
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert found["test/own"] == found["test/acc"]
    assert found.keys() == {f"test/{name}" for name in ("acc", "acc5", "loss", "correct", "count", "own")}
    with pytest.raises(ValueError, match="metrics has count, loss, which is measured anyway; use another name"):
        classifier(metrics={name: MulticlassAccuracy(10) for name in ("loss", "own", "count")})


def test_the_training_loss_leaves_out_what_is_not_finite_and_scores_do_not() -> None:
    module = classifier()
    module.train_loss.update(torch.tensor([1.0, math.nan, 3.0, math.inf]))
    assert module.train_loss.compute() == 2
    (val,) = [metric for name, metric in module.scores["val_scores"].items() if name == "val/loss"]  # type: ignore[operator]
    val.update(torch.tensor([1.0, math.inf]))
    assert val.compute() == math.inf


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collect the names of torch's operators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def test_where_a_label_stands_for_several_classes_each_of_them_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Classifier(nn.Identity(), num_classes=3)
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    module.accepted = torch.tensor([[True, False, True], [False, True, False]])
    logits = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [2.0, 1.0, 0.0]])
    found = module.evaluation_step(EvalBatch(logits, torch.tensor([0, 0, 0, 1])), "test")
    assert found["labels"].tolist() == [2, 0, 2, 1]
    sums: Any = module.scores["test_scores"]
    assert sums.compute()["test/correct"] == 2


@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "bce", "focal"])
def test_predictions_are_the_probabilities_of_the_loss(loss: Any) -> None:
    module, logits = Classifier(nn.Identity(), num_classes=3, loss=loss), torch.randn(2, 3).bfloat16()
    expected = logits.float().softmax(dim=1) if loss == "softmax" else logits.float().sigmoid()
    for batch in (logits, EvalBatch(logits, torch.zeros(2, dtype=torch.long))):
        torch.testing.assert_close(module.predict_step(batch, 0), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_the_norm_of_gradients_is_not_narrower_than_float32(kind: torch.dtype) -> None:
    gradients = [torch.full((1000,), 300.0, dtype=kind), torch.full((10, 10), 100.0, dtype=kind)]  # 300^2 > 65504
    norm = gradient_norm(gradients)
    assert norm.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    assert float(norm) == pytest.approx(math.sqrt(1000 * 300.0**2 + 100 * 100.0**2), rel=1e-6)


@pytest.mark.parametrize("parts", [1, 2])
def test_batches_of_other_loaders_have_the_mean_of_their_images_as_loss(parts: int, make_trainer: MakeTrainer) -> None:
    module = classifier()
    nn.init.normal_(module.get_parameter("network.head.weight"))
    module._trainer, module.monitored = make_trainer(accumulate_grad_batches=parts), True
    for images, labels in ((torch.randn(5, 1, 8, 8), torch.arange(5)), (torch.randn(3, 1, 8, 8), torch.arange(3))):
        expected = F.cross_entropy(module(images), labels)
        torch.testing.assert_close(module.training_step((images, labels), 0), expected)
        torch.testing.assert_close(module.train_loss.compute(), expected.double())
        module.train_loss.reset()


def test_under_fsdp2_blocks_and_network_are_sharded_once_and_otherwise_nothing_is(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    plain = classifier()
    plain.configure_model()  # as in load_from_checkpoint
    plain._trainer = make_trainer()
    plain.configure_model()
    assert not any(isinstance(part, FSDPModule) for part in plain.modules())
    store = distributed.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        module = classifier()
        module._trainer = make_trainer(strategy=ModelParallelStrategy())
        module._device_mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("data_parallel",))
        for _ in range(2):
            module.configure_model()
        shards = {name for name, part in module.network.named_modules() if isinstance(part, FSDPModule)}
        assert shards == {"", "blocks.0"}
        assert all(isinstance(parameter, DTensor) for parameter in module.network.parameters())
    finally:
        distributed.destroy_process_group()


def test_before_each_step_the_norm_before_clipping_is_seen_and_gradients_can_be_dropped(
    make_trainer: MakeTrainer,
) -> None:
    norms: list[float] = []

    def drop(module: Classifier, optimizer: Any, norm: Tensor) -> None:
        norms.append(float(norm))
        optimizer.zero_grad()

    module, seen = classifier(), Gradients()
    before = {name: weight.clone() for name, weight in module.network.state_dict().items()}
    module.before_step = drop
    make_trainer(max_epochs=1, callbacks=[seen], gradient_clip_val=0.5).fit(module, digits_module())
    assert norms == pytest.approx(seen.before)
    assert all(torch.equal(weight, before[name]) for name, weight in module.network.state_dict().items())


@pytest.mark.parametrize("lambdas", [True, False])
def test_the_settings_of_the_configuration_replace_those_of_a_checkpoint(
    lambdas: bool, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    def made(lr: float, decay: float, last: float) -> tuple[Classifier, Trainer]:
        module = classifier(make_optimizer=partial(torch.optim.AdamW, lr=lr, weight_decay=decay))
        module.make_schedule = partial(schedules.warmup_linear, final_fraction=last)
        if not lambdas:
            module.make_schedule = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)  # type: ignore
        return module, make_trainer(max_epochs=2)

    module, trainer = made(0.1, 0.3, 0.0)
    trainer.fit_loop.max_epochs = 1
    trainer.fit(module, digits_module())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    module, trainer = made(0.01, 0.2, 0.5)
    trainer.fit(module, digits_module(), ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    groups = trainer.optimizers[0].param_groups
    assert {group["name"]: group["weight_decay"] for group in groups} == {"decay": 0.2, "no_decay": 0.0}
    expected = 0.01 * 0.5 if lambdas else 0.1 * 0.5**6  # after 6 of 6 steps; other schedules keep their own state
    assert [group["lr"] for group in groups] == pytest.approx([expected] * 2)


def test_the_teacher_is_loaded_once_as_a_training_starts(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    module = classifier(distillation="hard", teacher=digits_teacher(tmp_path / "teacher"))
    teachers = []
    for _ in range(2):
        make_trainer(max_steps=1).fit(module, digits_module())
        teachers.append(module.distillation.teacher)
    assert isinstance(teachers[0], VisionTransformer)
    assert teachers[0] is teachers[1]


def test_the_norm_of_float32_gradients_takes_one_pass_over_all_of_them() -> None:
    with Operators() as called:
        norm = gradient_norm([torch.full((3,), 2.0) for _ in range(12)])
    assert float(norm) == 12
    assert "_foreach_norm" in called.names


def test_scores_are_read_by_split_and_counts_are_integers(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.test(classifier(), digits_module(), verbose=False)
    found = logged_scores(trainer, "test")
    assert {name: type(value) for name, value in found.items()} == {
        **{f"test/{name}": float for name in ("acc", "acc5", "loss")},
        **{f"test/{name}": int for name in ("correct", "count")},
    }
    assert logged_scores(trainer, "tes") == {}
