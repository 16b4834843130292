"""The recipes of experiments/ are those that were published: the objects built from each file have the numbers of its
source, which recipes.yaml keeps, and follow the libraries' own classes step by step.
"""

import functools
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from lightning import Trainer
from safetensors.torch import save_file
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from conftest import Configure
from vitlab.config import paths
from vitlab.config.instantiate import build_object
from vitlab.config.schema import Node
from vitlab.data.datamodule import DataModule
from vitlab.data.source import IMAGENET_MEAN, IMAGENET_STD, Source, Split
from vitlab.models.layers import LayerScale
from vitlab.training import build
from vitlab.training.averages import WeightAveraging
from vitlab.training.classifier import Classifier
from vitlab.training.schedules import call_schedule

CONTRACTS: dict[str, Node] = yaml.safe_load(Path(__file__).with_name("recipes.yaml").read_text())
# experiments that reproduce nobody's numbers
OWN = ("digits", "fashion_mnist", "openclipart", "search_random", "search_tpe")
TRAIN, CLASSES = 1_281_167, 1000  # ImageNet-1k


@functools.cache
def imagenet() -> Source:
    """ImageNet's labels, with names of files that don't exist."""
    labels = torch.arange(TRAIN) % CLASSES
    train, test = (Split(None, labels[:n], [f"/{k}.JPEG" for k in range(n)]) for n in (TRAIN, 50_000))
    names = tuple(f"class{k}" for k in range(CLASSES))
    return Source("imagenet", names, 3, IMAGENET_MEAN, IMAGENET_STD, None, train, test)


def cifar(classes: int) -> Source:
    """As many black images as CIFAR has."""
    train, test = (
        Split(torch.zeros(n, 3, 32, 32, dtype=torch.uint8), torch.arange(n) % classes) for n in (50_000, 10_000)
    )
    names = tuple(f"class{k}" for k in range(classes))
    return Source("cifar", names, 3, IMAGENET_MEAN, IMAGENET_STD, 32, train, test)


class Recipe:
    """The objects of an experiment's training, as `train.py` builds them, with stand-ins for data and weights."""

    def __init__(self, name: str, configure: Configure, folder: Path) -> None:
        self.expected = CONTRACTS[name]
        overrides = [f"experiment={name}", f"data_dir={folder}", "trainer.accelerator=cpu", "logger=csv"]
        text = (paths.EXPERIMENTS / f"{name}.yaml").read_text()
        if "/model: auto" in text:
            overrides += [f"model.weights={write_weights(folder, name)}", "++model.heads=2"]
        self.teaching = configure(*overrides)["classifier"]
        if self.teaching["teacher"]:
            overrides += ["classifier.teacher=null", "classifier.distillation=none"]
        self.config = configure(*overrides, "trainer.enable_progress_bar=false")
        source = self.config["data"].pop("source")["_target_"].rpartition(".")[2]
        loaded = {"cifar10": functools.partial(cifar, 10), "cifar100": functools.partial(cifar, 100)}
        node = self.config["data"] | {"scan": "none", "skipped_file": None}
        self.data: DataModule = build_object(node, source=loaded.get(source, imagenet))
        self.data.setup()
        parts = {key: self.config[key] for key in ("weights", "optimizer", "schedule")}
        torch.manual_seed(0)
        self.module: Classifier = build.build_classifier(
            self.config["model"], self.data, self.config["classifier"], **parts
        )
        self.network: nn.Module = self.module.network
        self.trainer: Trainer = build.build_trainer(
            self.config["trainer"] | {"precision": "32-true"},
            run_dir=folder,
            logger=self.config["logger"],
            callbacks=self.config["callbacks"],
        )
        epochs, self.steps_per_epoch = self.trainer.max_epochs or -1, self.data.steps_per_epoch
        ends = (self.trainer.max_steps, epochs * self.steps_per_epoch)
        self.steps = min(end for end in ends if end > 0)
        self.optimizer = self.module.build_optimizer()
        assert self.module.make_schedule is not None
        steps = {"total_steps": self.steps, "steps_per_epoch": self.steps_per_epoch}
        self.schedule = call_schedule(self.module.make_schedule, self.optimizer, **steps)

    def group(self, parameter: str) -> int:
        """The number of a parameter's group."""
        wanted = self.network.get_parameter(parameter)
        groups = enumerate(self.optimizer.param_groups)
        return next(k for k, group in groups if any(p is wanted for p in group["params"]))

    def rate(self, parameter: str, step: int) -> float:
        number = self.group(parameter)
        return float(self.schedule.base_lrs[number]) * self.schedule.lr_lambdas[number](step)


def write_weights(folder: Path, name: str) -> Path:
    """A narrow ViT of twelve blocks in timm's layout, with the patches and the size of the published weights."""
    patch, size = (14, 518) if name.startswith("dinov2") else (16, 192 if name.startswith("deit3") else 224)
    settings: Any = {"img_size": size, "patch_size": patch, "embed_dim": 32, "num_heads": 2, "num_classes": 7}
    model = timm.create_model("vit_tiny_patch16_224", **settings)
    save_file(model.state_dict(), file := folder / "weights.safetensors")
    return file


@pytest.fixture(scope="module", params=sorted(CONTRACTS))
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, configured: Configure) -> Recipe:
    return Recipe(request.param, configured, tmp_path_factory.mktemp(request.param))


def test_every_published_recipe_has_a_contract() -> None:
    names = {file.stem for file in paths.EXPERIMENTS.glob("*.yaml")}
    assert names - set(OWN) == set(CONTRACTS)
    assert all(contract["source"] for contract in CONTRACTS.values())


def test_images_and_steps(recipe: Recipe) -> None:
    expected, data = recipe.expected, recipe.data
    assert data.samples["train"] == expected["train_images"]
    assert data.repeats == expected.get("repeats", 1)
    assert recipe.steps_per_epoch == expected["steps_per_epoch"]
    assert recipe.steps == expected["steps"]
    assert recipe.config["data"]["drop_last"] == ("images_seen" in expected)
    if "images_seen" in expected:
        assert recipe.steps * recipe.config["batch_size"] == expected["images_seen"]


def test_network(recipe: Recipe) -> None:
    expected, network = recipe.expected, recipe.network
    if "parameters" in expected:
        assert sum(p.numel() for p in network.parameters()) == expected["parameters"]
    blocks: Any = network.blocks
    first, last = expected["drop_path"]
    ladder = torch.linspace(first, last, 12 if len(blocks) == 12 else len(blocks)).tolist()
    assert [block.drop_path for block in blocks] == pytest.approx(ladder)
    assert {block.attn.dropout for block in blocks} == {expected.get("dropout", 0.0)}
    built = {name: getattr(network, name, None) for name in ("heads", "position_dropout")}
    built |= {"norm_eps": blocks[0].norm1.eps, "attention_dropout": blocks[-1].attn.attn_drop.p}
    built |= {"fc_norm": isinstance(network.fc_norm, nn.LayerNorm)}
    built |= {
        "layer_scale": float(scale.gamma.detach()[0]) if isinstance(scale := blocks[-1].ls2, LayerScale) else None
    }
    wanted = expected.get("network", {})
    assert {name: built[name] for name in wanted} == pytest.approx(wanted)
    for parameter, std in expected.get("start", {}).items():
        found = float(network.get_parameter(parameter).detach().std())
        assert found == pytest.approx(std, rel=0.1, abs=1e-9), parameter
    if "head" in expected:
        std, bias = expected["head"]
        head: Any = network.head
        assert float(head.weight.detach().std()) == pytest.approx(std, rel=0.05, abs=1e-9)
        torch.testing.assert_close(head.bias.detach(), torch.full_like(head.bias, bias))


def test_optimizer(recipe: Recipe) -> None:
    expected = dict(recipe.expected["optimizer"])
    assert type(recipe.optimizer).__name__ == expected.pop("name")
    for key, value in expected.items():
        found = recipe.optimizer.param_groups[0][key]
        assert (list(found) if isinstance(found, tuple) else found) == value, key
    for parameter, decay in recipe.expected["decay"].items():
        assert recipe.optimizer.param_groups[recipe.group(parameter)]["weight_decay"] == decay, parameter
    for parameter in recipe.expected.get("frozen", []):
        assert not recipe.network.get_parameter(parameter).requires_grad
    assert recipe.trainer.gradient_clip_val == recipe.expected["clip"]


def test_rates(recipe: Recipe) -> None:
    for parameter, rates in recipe.expected["rates"].items():
        found = {step: recipe.rate(parameter, step) for step in rates}
        assert found == pytest.approx(rates, rel=2e-6, abs=1e-15), parameter


def test_loss(recipe: Recipe) -> None:
    ((kind, values),) = recipe.expected["loss"].items()
    classes = recipe.data.num_classes
    assert recipe.module.losses.name == kind
    logits = torch.zeros(1, classes)
    logits[0, :2] = torch.tensor([2.0, 1.0])
    mixed = torch.zeros(1, classes)
    mixed[0, :2] = torch.tensor([0.7, 0.3])
    found = [float(recipe.module.losses(logits, targets)) for targets in (torch.tensor([0]), mixed)]
    assert found == pytest.approx(values, rel=1e-6)
    teaching = recipe.expected.get("distillation", {"teacher": None, "distillation": "none"})
    assert {key: recipe.teaching[key] for key in teaching} == teaching


def test_augmentation_and_evaluation(recipe: Recipe) -> None:
    expected, data = recipe.expected, recipe.data
    settings = recipe.config["data"]["augment"]
    named = {key: settings[key] for key in AUGMENTATION if settings[key] != AUGMENTATION[key]}
    if "randaugment" in settings["auto_augment"]:
        named |= {key: settings[key] for key in ("randaugment_ops", "randaugment_magnitude")}
    assert named == {k: pytest.approx(v) if k == "erasing_area" else v for k, v in expected["augment"].items()}
    augment, kind = data.augment, settings["auto_augment"]
    values = {key: getattr(augment, key) for key in AUGMENTATION}
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()} == {k: settings[k] for k in values}
    if kind != "none":
        auto = augment.auto(data.interpolation, (0.5, 0.5, 0.5))
        assert (auto.kind, auto.ops) == (kind, settings["randaugment_ops"])
        assert (auto.level, auto.std) == (settings["randaugment_magnitude"], settings["randaugment_std"])
    if "transforms" in expected:
        dataset: Any = data.train_dataloader().dataset
        assert dataset.crop == "inception"
        assert [type(step).__name__ for step in dataset.steps] == expected["transforms"]
    assert data.interpolation == expected.get("interpolation", data.interpolation)
    if "evaluation" in expected:
        short, size, interpolation = expected["evaluation"]
        assert data.image_size == (size, size)
        assert int(size / data.augment.crop_fraction) == short
        assert data.interpolation == interpolation
    if "normalize" in expected:
        imagenet_s = expected["normalize"] == [0.485, 0.229]
        assert data.mean == pytest.approx(IMAGENET_MEAN if imagenet_s else [0.5] * 3)
        assert data.std == pytest.approx(IMAGENET_STD if imagenet_s else [0.5] * 3)
    assert data.image_size[0] == recipe.config["image_size"]


def test_average(recipe: Recipe) -> None:
    averages: list[Any] = [c for c in recipe.trainer.callbacks if isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
    assert len(averages) == ("ema" in recipe.expected)
    for average in averages:
        trainer: Any = recipe.trainer
        trainer.datamodule, recipe.data.trainer, recipe.module.trainer = recipe.data, trainer, trainer
        average.setup(trainer, recipe.module, "fit")
        expected = recipe.expected["ema"]
        assert (average.every_n_steps, average._start, average.per_epoch) == (
            expected["every_n_steps"],
            expected["start"],
            True,
        )
        assert [average.decay_of(update) for update in (1, 1000)] == pytest.approx([expected["decay"]] * 2)


AUGMENTATION: Node = {  # that does nothing, or as torchvision has it
    "crop": None, "crop_scale": [0.08, 1.0], "crop_interpolation": None, "crop_antialias": True, "crop_padding": 0,
    "flip": False, "degrees": 0.0, "translate": 0.0, "scale": [1.0, 1.0], "shear": 0.0, "auto_augment": "none",
    "randaugment_std": 0.0, "color_jitter": 0.0, "erasing": 0.0,
    "erasing_mode": "const", "erasing_area": [0.02, 0.33], "mixup": 0.0, "cutmix": 0.0, "mix_probability": 1.0,
    "mix_switch_probability": 0.5, "mix_mode": "batch", "mix_off_epoch": None,
}  # fmt: skip


def test_deit_follows_timm_step_by_step(configured: Configure, tmp_path: Path) -> None:
    """Parameters after four epochs equal those of timm's optimizer, schedule and loss, used as DeiT uses them."""
    sizes = [
        "model.dim=32",
        "model.heads=2",
        "model.depth=2",
        "model.drop_path=0",
        "image_size=32",
        "trainer.max_epochs=4",
    ]
    config = configured("experiment=deit_b16", f"data_dir={tmp_path}", "schedule.warmup_epochs=2", *sizes)
    network = build_object(config["model"], num_classes=10, in_channels=3)
    theirs = deepcopy(network)
    module = Classifier(
        network,
        num_classes=10,
        optimizer=build_object(config["optimizer"]),
        schedule=build_object(config["schedule"]),
        batch_size=config["batch_size"],
        **config["classifier"],
    )
    ours = module.build_optimizer()
    assert module.make_schedule is not None
    schedule = call_schedule(module.make_schedule, ours, total_steps=8, steps_per_epoch=2)
    optimizer = create_optimizer_v2(theirs, opt="adamw", lr=5e-4 * 1024 / 512, weight_decay=0.05)
    timms = CosineLRScheduler(
        optimizer, t_initial=4, lr_min=1e-5, warmup_t=2, warmup_lr_init=1e-6, cycle_limit=1, t_in_epochs=True
    )
    criterion: Any = SoftTargetCrossEntropy()  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(0)
    for epoch in range(4):
        for _ in range(2):
            images = torch.randn(4, 3, 32, 32, generator=generator)
            mixed = torch.rand(4, 10, generator=generator).softmax(dim=1)
            ours.zero_grad()
            module.losses(module(images), mixed).mean().backward()  # type: ignore[no-untyped-call]
            ours.step()
            schedule.step()
            optimizer.zero_grad()
            criterion(theirs(images), mixed * 0.9 + 0.1 / 10).backward()
            optimizer.step()
        timms.step(epoch)
    after = dict(theirs.named_parameters())
    for name, parameter in network.named_parameters():
        if not name.endswith("qkv.bias"):  # that of keys has no gradient but rounding, which Adam enlarges
            torch.testing.assert_close(parameter, after[name], rtol=1e-3, atol=1e-6, msg=name)
