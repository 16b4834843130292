"""Distillation has DeiT's formulas, and the teacher sees the same images, however a step is divided."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

import parity
from conftest import SRC, Configure
from forked_ranks import RANKS
from teachers import FROM_DATA, NAMES, VIT, digits_teacher, save_run
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import TrainBatch
from vitlab.data.sets.digits import digits
from vitlab.models.vit import VisionTransformer
from vitlab.runs.folder import read_metrics
from vitlab.training import schedules
from vitlab.training.classifier import Classifier
from vitlab.training.distillation import Distillation, open_teacher
from vitlab.weights import locate

MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """A run of a ViT for digits of 8 pixels, with weights of ordinary size."""
    return digits_teacher(tmp_path / "teacher")


def data_module(**changes: Any) -> DataModule:
    settings: dict[str, Any] = {"max_train_samples": 101, "batch_size": 34, "image_size": 8, "seed": 0}
    module = DataModule(source=digits, augment=Augment(crop_padding=1, mixup=0.4), **settings | changes)
    module.setup()
    return module


def student(
    source: str | None, *, distilled: bool = False, network: nn.Module | None = None, **knobs: Any
) -> Classifier:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"distilled": distilled, "dropout": 0.1, **VIT}
    network = VisionTransformer(image_size=8, **arguments) if network is None else network
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    given = {"distillation": "none" if source is None else "soft", "teacher": source, **knobs}
    return Classifier(network, num_classes=10, optimizer=optimizer, schedule=schedules.constant, **given)


def load(module: Classifier, mean: float = 0.3, std: float = 0.4) -> None:
    module.distillation.load_teacher(classes=NAMES, mean=[mean], std=[std])


def logits_of(source: str, images: Tensor, *, classes: Any = NAMES, mean: Any = (0.3,), std: Any = (0.5,)) -> Tensor:
    """A teacher's logits of images that are normalized with `mean` and `std`."""
    distillation = Distillation("soft", source, 0.5, 1.0)
    distillation.load_teacher(classes=classes, mean=mean, std=std)
    return distillation.teacher_logits(images)


def weights(module: Classifier) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.network.parameters()])


# -------------------------------------------------------------------------------------------------------- formulas


def deits(kind: str, alpha: float, tau: float, base: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """The loss of a batch, as facebookresearch/deit's losses.py has it."""
    if kind == "soft":
        both = F.log_softmax(student / tau, dim=1), F.log_softmax(teacher / tau, dim=1)
        learned = F.kl_div(*both, reduction="sum", log_target=True) * tau**2 / student.numel()
    else:
        learned = F.cross_entropy(student, teacher.argmax(dim=1))
    return base * (1 - alpha) + learned * alpha


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize(("kind", "alpha", "tau"), [("soft", 0.5, 1.0), ("soft", 0.3, 3.0), ("hard", 0.5, 1.0)])
def test_the_loss_is_deits(kind: str, alpha: float, tau: float, distilled: bool, teacher: str) -> None:
    settings: dict[str, Any] = {"distillation": kind, "distillation_alpha": alpha, "distillation_temperature": tau}
    module = student(teacher, distilled=distilled, label_smoothing=0.1, **settings).double().eval()
    parity.fill(module.network)
    load(module)
    images, labels = torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.randint(10, (6,))
    losses = module.batch_losses(TrainBatch(images, labels, 6, 0, 0))
    assert losses.shape == (6,)
    network: Any = module.network
    tokens = network.forward_features(images)
    first, second = network.head(tokens[:, 0]), network.head_dist(tokens[:, 1])
    second = second if distilled else first
    assert module.distillation.teacher is not None
    base = F.cross_entropy(first, labels, label_smoothing=0.1)
    expected = deits(kind, alpha, tau, base, second, module.distillation.teacher_logits(images))
    torch.testing.assert_close(losses.mean(), expected)
    torch.testing.assert_close(module(images), (first + second) / 2)


@pytest.mark.parametrize(("alpha", "silent"), [(0.0, "head_dist"), (1.0, "head")])
def test_one_head_learns_the_labels_and_the_other_the_teacher(alpha: float, silent: str, teacher: str) -> None:
    module = student(teacher, distilled=True, distillation="hard", distillation_alpha=alpha)
    load(module)
    module.batch_losses(TrainBatch(torch.randn(6, 1, 8, 8), torch.randint(10, (6,)), 6, 0, 0)).sum().backward()  # type: ignore[no-untyped-call]
    for name in ("head", "head_dist"):
        gradient = module.network.get_parameter(f"{name}.weight").grad
        assert gradient is not None
        assert bool(gradient.any()) == (name != silent)


def test_timms_distilled_network_learns_with_both_heads_too(teacher: str) -> None:
    sizes: dict[str, Any] = {
        "img_size": 8,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "num_classes": 10,
        "in_chans": 1,
    }
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", **sizes)
    ours = student(teacher, distilled=True)
    ours.network.load_state_dict(theirs.state_dict())
    ours.network.blocks[0].mlp.dropout = ours.network.blocks[0].attn.dropout = 0.0  # type: ignore[index, union-attr]
    batch = TrainBatch(torch.randn(6, 1, 8, 8), torch.randint(10, (6,)), 6, 0, 0)
    losses = []
    for module in (student(teacher, network=theirs), ours):
        load(module)
        losses.append(module.train().batch_losses(batch))
        assert module(batch.images).shape == (6, 10), "outside of the loss, the mean of both"
    torch.testing.assert_close(losses[0], losses[1])


# -------------------------------------------------------------------------------------------------- what it looks at


def test_the_teacher_sees_images_with_its_own_normalization_and_size(tmp_path: Path) -> None:
    parity.fill(network := VisionTransformer(image_size=16, **VIT).eval())
    node = {"_target_": "vitlab.models.vit.VisionTransformer", "image_size": 16}
    node |= {k: v for k, v in VIT.items() if k not in FROM_DATA}
    source = save_run(tmp_path / "run", network, node, size=16)
    pixels = torch.rand(5, 1, 8, 8)
    seen = logits_of(source, (pixels - 0.3) / 0.5)
    larger = F.interpolate((pixels - 0.4) / 0.2, (16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(seen, network(larger), rtol=1e-4, atol=1e-5)
    assert not seen.requires_grad


def test_a_convolutional_run_teaches_with_its_statistics_which_training_does_not_change(
    tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    network = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    node = {"_target_": "vitlab.models.timm_model.timm_model", "model_name": "test_resnet", "pretrained": True}
    module = student(save_run(tmp_path / "run", network, node))
    make_trainer(max_steps=2).fit(module, data_module())
    assert module.distillation.teacher is not None
    state = module.distillation.teacher.state_dict()
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert not any(part.training for part in module.distillation.teacher.modules())


def cached_network_of_timm(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "test_resnet.r160_in1k"
) -> tuple[nn.Module, str]:
    """A network of timm with random weights, which are in the Hub's cache under the name returned."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    folder = folder / f"models--timm--{name}"
    (snapshot := folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    network = timm.create_model("test_resnet").eval()
    save_file(network.state_dict(), snapshot / "model.safetensors")
    return network, f"timm:{name}"


def test_a_name_of_timm_is_any_of_its_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, source = cached_network_of_timm(tmp_path, monkeypatch)
    opened = open_teacher(source)
    assert (opened.num_classes, opened.image_size) == (1000, (160, 160))
    cfg = timm.get_pretrained_cfg("test_resnet.r160_in1k")
    assert cfg is not None
    images = torch.randn(2, 3, 160, 160)
    classes = [str(i) for i in range(1000)]
    got = logits_of(source, images, classes=classes, mean=cfg.mean, std=cfg.std)
    torch.testing.assert_close(got, network(images))
    assert logits_of(source, images[:, :1], classes=classes).shape == (2, 1000), "gray images"


def test_a_file_of_a_vit_teaches_gray_images(tmp_path: Path) -> None:
    wide: dict[str, Any] = {**VIT, "in_channels": 3, "dim": 64, "heads": 1}
    parity.fill(network := VisionTransformer(image_size=8, **wide).eval())
    save_file(network.state_dict(), file := tmp_path / "vit.safetensors")
    opened = open_teacher(str(file))
    assert (opened.num_classes, opened.classes, opened.mean, opened.image_size) == (10, None, None, (8, 8))
    gray = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(logits_of(str(file), gray), network(gray.expand(-1, 3, -1, -1)))


# ---------------------------------------------------------------------------------------------------------- training


def test_a_step_in_parts_and_a_resumed_run_are_exact(teacher: str, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    results = []
    for parts in (1, 2):
        module = student(teacher, network=VisionTransformer(image_size=8, distilled=True, **VIT))
        data = data_module()
        data.augment = Augment()  # random numbers are drawn by part
        torch.manual_seed(0)
        trainer = make_trainer(max_epochs=1, precision="64-true", accumulate_grad_batches=parts)
        trainer.fit(seeded(module), data)
        results.append(weights(module))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-11)

    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.should_stop = True

    complete, part, resumed = (student(teacher, distilled=True) for _ in range(3))
    make_trainer(max_epochs=2).fit(complete, data_module())
    first = make_trainer(max_epochs=2, callbacks=[Stop()])
    first.fit(part, data_module())
    first.save_checkpoint(tmp_path / "half.ckpt")
    make_trainer(max_epochs=2).fit(resumed, data_module(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert torch.equal(weights(resumed), weights(complete))
    assert not torch.equal(weights(part), weights(complete))


def seeded(module: Classifier) -> Classifier:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.normal_(std=0.2)
    return module


def test_a_teacher_of_no_weight_changes_no_number(teacher: str, make_trainer: MakeTrainer) -> None:
    """It draws no random numbers, neither as it is loaded nor as it computes."""
    results = []
    for module in (student(None), student(teacher, distillation_alpha=0.0), student(teacher)):
        make_trainer(max_epochs=1).fit(module, data_module())
        results.append(weights(module))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_no_checkpoint_optimizer_or_average_has_the_teacher(
    teacher: str, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    states = []
    for source in (None, teacher):
        ema = WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.5))  # type: ignore[no-untyped-call]
        module, trainer = student(source), make_trainer(max_steps=2, callbacks=[ema])
        trainer.fit(module, data_module())
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        content = torch.load(tmp_path / "last.ckpt", weights_only=True)
        optimizer = content["optimizer_states"][0]["state"]
        states.append((content["state_dict"].keys(), content["current_model_state"].keys(), len(optimizer)))
    assert states[0] == states[1]


@pytest.mark.long
def test_two_ranks_learn_from_the_teacher_as_one_does(teacher: str, small: list[str], tmp_path: Path) -> None:
    settings = [*small, "logger=csv", "trainer.log_every_n_steps=1", "trainer.max_epochs=1", "model.drop_path=0.0"]
    settings += [f"data.augment.{key}=0" for key in ("degrees", "translate", "shear", "mixup")]
    settings += ["data.augment.scale=[1,1]", "data.max_train_samples=500", "model.distilled=true"]
    settings += [f"classifier.teacher={teacher}", "classifier.distillation=hard"]
    jobs: list[list[Any]] = [["train", str(ranks), ranks, *settings] for ranks in (1, 2)]
    jobs.append(["train", "fsdp", 2, *settings, "trainer=fsdp"])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SRC)}
    subprocess.run([sys.executable, "-c", RANKS, json.dumps(jobs)], cwd=tmp_path, env=environment, check=True)
    losses = [
        [float(row["train/loss"]) for row in read_metrics(tmp_path / ranks / "metrics.csv") if row.get("train/loss")]
        for ranks in ("1", "2", "fsdp")
    ]
    assert len(losses[0]) == 8
    for others in losses[1:]:
        assert others == pytest.approx(losses[0], rel=1e-4)


# ---------------------------------------------------------------------------------------------------------- refusals


def test_a_teacher_of_other_classes_or_channels_is_refused_before_training(
    tmp_path: Path, make_trainer: MakeTrainer, found: Callable[..., list[str]]
) -> None:
    node = {"_target_": "vitlab.models.vit.VisionTransformer", "image_size": 8}
    node |= {k: v for k, v in VIT.items() if k not in FROM_DATA}
    network = VisionTransformer(image_size=8, **VIT)
    changes: dict[str, dict[str, Any]] = {
        "seven": {"classes": NAMES[:7]},
        "order": {"classes": NAMES[::-1]},
        "color": {"channels": 3},
    }
    sources = {name: save_run(tmp_path / name, network, node, **change) for name, change in changes.items()}
    messages = {
        "seven": "has 7 classes, and the data 10; take one of the same classes",
        "order": "has other classes than the data, or in another order: '9', not '0'",
        "color": "is for images of 3 channels, and the data has 1",
    }
    for name, source in sources.items():
        with pytest.raises(ValueError, match=messages[name]):
            make_trainer(max_steps=1).fit(student(source), data_module())
        problems = found("classifier.distillation=soft", f"classifier.teacher={source}")
        expected = [] if name == "order" else [f"classifier.teacher={source} {messages[name]}"]
        assert problems == expected, "the names of the classes are known when the data is"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["classifier.distillation=soft"],
            "classifier.teacher=None with classifier.distillation=soft: set both, or neither of them",
        ),
        (
            ["classifier.teacher=x"],
            "classifier.teacher=x with classifier.distillation=none: set both, or neither of them",
        ),
        (
            ["classifier.teacher=x", "classifier.distillation=hard"],
            "classifier.teacher=x: there is no file or folder x",
        ),
        (["classifier.distillation_alpha=1.5"], "classifier.distillation_alpha=1.5 must be at least 0 and at most 1"),
        (["classifier.distillation_temperature=0"], "classifier.distillation_temperature=0 must be above 0"),
    ],
)
def test_settings_without_meaning_are_refused(
    overrides: list[str], message: str, found: Callable[..., list[str]]
) -> None:
    (problem,) = found(*overrides)
    assert problem.startswith(message)


def test_a_teacher_passes_the_checks(teacher: str, found: Callable[..., list[str]], configure: Configure) -> None:
    assert found("classifier.distillation=hard", f"classifier.teacher={teacher}", "model.distilled=true") == []


def test_gray_images_are_normalized_with_the_mean_over_the_teachers_colors(tmp_path: Path, monkeypatch: Any) -> None:
    network, source = cached_network_of_timm(tmp_path, monkeypatch)
    cfg = timm.get_pretrained_cfg(source.removeprefix("timm:"))
    assert cfg is not None
    mean, std = (sum(values) / 3 for values in (cfg.mean, cfg.std))
    pixels = torch.rand(2, 1, 160, 160)
    seen = logits_of(source, (pixels - 0.3) / 0.5, classes=[str(i) for i in range(1000)])
    torch.testing.assert_close(seen, network(((pixels - mean) / std).expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_a_teacher_computes_in_float32_at_least(teacher: str) -> None:
    images = torch.randn(3, 1, 8, 8).bfloat16()
    distillation = Distillation("soft", teacher, 0.5, 1.0)
    distillation.load_teacher(classes=NAMES, mean=[0.3], std=[0.5])
    logits = distillation.teacher_logits(images)
    assert logits.dtype == torch.float32
    assert distillation.teacher is not None
    assert not any(parameter.requires_grad for parameter in distillation.teacher.parameters())
    torch.testing.assert_close(logits, logits_of(teacher, images.float()), rtol=0, atol=0)
    student = torch.randn(3, 10).bfloat16()
    for labels in (torch.zeros(3), torch.ones(3)):
        losses = distillation.losses(labels, student, images)
        torch.testing.assert_close(losses, distillation.losses(labels, student.float(), images), rtol=0, atol=0)
        assert losses.dtype == torch.float32


def test_a_teacher_whose_checkpoint_is_damaged_is_refused_and_its_structure_needs_none(teacher: str) -> None:
    file = Path(teacher) / "checkpoints" / "best.ckpt"
    opened = open_teacher(teacher)
    fresh, loaded = opened.build(in_chans=1, pretrained=False), opened.build(in_chans=1)
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in loaded.state_dict().items()}
    assert not torch.equal(fresh.state_dict()["head.weight"], loaded.state_dict()["head.weight"])
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    with pytest.raises(OSError, match=r"best.ckpt is damaged"):
        opened.build(in_chans=1)


def test_what_is_known_of_a_teacher_is_reported(teacher: str, tmp_path: Path, caplog: Any) -> None:
    wide: dict[str, Any] = {**VIT, "dim": 64, "heads": 1}
    save_file(VisionTransformer(image_size=8, **wide).state_dict(), file := tmp_path / "vit.safetensors")
    known = {teacher: "mean [0.4]", str(file): "mean and std are unknown: the data's"}
    for source, normalization in known.items():
        caplog.clear()
        with caplog.at_level("INFO", logger="vitlab"):
            logits_of(source, torch.zeros(1, 1, 8, 8))
        assert caplog.messages[-1] == f"teacher {source}: images of 8 x 8 pixels, {normalization}"


def test_images_for_a_teacher_may_be_higher_than_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "vit_base_patch16_sapiens2.fb"
    if (cfg := timm.get_pretrained_cfg(name)) is None:
        pytest.skip("this timm has only networks for square images")
    _, source = cached_network_of_timm(tmp_path, monkeypatch, name)
    assert open_teacher(source).image_size == cfg.input_size[1:] == (1024, 768)


def test_a_checkpoint_of_another_program_is_its_weights_alone(tmp_path: Path) -> None:
    parity.fill(network := VisionTransformer(image_size=8, **{**VIT, "dim": 64, "heads": 1}).eval())
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, file := tmp_path / "checkpoint.pth")
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(logits_of(str(file), images), network(images))
    assert locate.cached_read.cache_info().currsize == 0, "the file doesn't stay mapped"
