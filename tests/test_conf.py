"""Every file of `conf/` and `experiments/` is right, is instantiated, and takes a real training step.

The files are found when the tests are collected: a new one is tested without a line here, and a new preset
without its golden numbers fails. What is made smaller than it stands is said in `STEP`.
"""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import timm
import torch
import yaml
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from PIL import Image
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets

import evaluate
import image_fixtures
import train
from conftest import Configure
from vitlab.cli import checks, preflight
from vitlab.config import paths, signatures
from vitlab.config.schema import Node
from vitlab.data.sets.mnist import DEBIAN_FASHION_MNIST
from vitlab.jobs import compose
from vitlab.models.vit import VisionTransformer
from vitlab.runs.folder import CONFIG, write_config
from vitlab.training import build

FILES = sorted(file.relative_to(compose.CONF).with_suffix("") for file in compose.CONF.rglob("*.yaml"))
OTHERS = ["probe/"]  # groups of other programs than train
GROUPED = [file for file in FILES if file.parts[:-1]]  # the others are programs
OPTIONS = [f"{file.parent}={file.name}" for file in GROUPED if not str(file).startswith(tuple(OTHERS))]
PROBES = [file.name for file in GROUPED if str(file).startswith("probe/")]
EXPERIMENTS = [f"experiment={file.stem}" for file in sorted(paths.EXPERIMENTS.glob("*.yaml"))]
# Published recipes, whose warm-up is longer than an epoch
PUBLISHED = [f"experiment={name}" for name in yaml.safe_load(Path(__file__).with_name("recipes.yaml").read_text())]
INCOMPLETE = ["data=base"]  # what the data sets have in common is none itself
SEVERAL_PROCESSES = ["trainer=ddp", "trainer=fsdp"]  # trained in tests/test_train.py

# What a file can't do without.
NEEDS = {
    "callbacks=schedule_free": ["optimizer=schedule_free"],
    "optimizer=schedule_free": ["callbacks=schedule_free"],
    "model=vit": ["image_size=224"],
    "model/patch=p14": ["image_size=28"],
    "model/patch=p16": ["image_size=32"],
    "model/patch=p32": ["image_size=64"],
    "model/patch=p8": ["image_size=16"],
}
# Experiments that begin from weights that somebody else keeps: a tiny model with this patch stands for them.
PRETRAINED = {
    "model=auto": 2,
    "experiment=paper_finetune_cifar10": 16,
    "experiment=paper_finetune_cifar100": 16,
    "experiment=dinov2_linear": 14,
    "experiment=mae_finetune_b16": 16,
    "experiment=deit3_b16_224": 16,
}
# Parts of a search, which need one, and change nothing of a run
SEARCHES = [option for option in OPTIONS if option.startswith("hydra/")]
NEEDS |= {option: ["hydra/sweeper=optuna"] for option in SEARCHES if option.count("/") > 1}
# What makes one step of a file a matter of a second. Width, patch and heads stay what they are.
SMALL = ["model.dim=16", "model.depth=1", "model.heads=2"]
STEP = {
    "model=": ["batch_size=2"],
    "model/size=": ["model.depth=1"],
    "model=vit": ["model.depth=1", "batch_size=2"],
    "model=vit_b16": ["model.depth=1", "batch_size=2"],
    "model=vit_b32": ["model.depth=1", "batch_size=2"],
    "model=vit_l16": ["model.depth=1", "batch_size=2"],
    "model=vit_l32": ["model.depth=1", "batch_size=2"],
    "model=vit_h14": ["model.depth=1", "batch_size=2"],
    "experiment=": ["model.depth=1"],
    "experiment=cct_vit_lite_cifar10": ["model.depth=1", "schedule.cooldown_epochs=0"],
}
ONE_STEP = [
    "batch_size=4",
    "data.num_workers=0",
    "data.max_train_samples=40",
    "data.val_fraction=0.5",
    "schedule.warmup_steps=0",
    "trainer.accelerator=cpu",
    "trainer.max_steps=1",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "++trainer.limit_val_batches=1",
]

# Parameters and forward FLOPs (a multiplication and an addition are two) for one image of 224 px and 1000 classes;
# of vit_mini for a digit of 8 px and 10 classes. All tokens go through all blocks here: the papers' way to count.
GOLDEN = {
    "vit_ti16": (5_717_416, 2_507_366_400),
    "vit_s32": (22_878_952, 2_285_819_904),
    "vit_s16": (22_050_664, 9_197_764_608),
    "vit_b32": (88_224_232, 8_818_372_608),
    "vit_b16": (86_567_656, 35_127_656_448),
    "vit_l32": (306_535_400, 30_755_078_144),
    "vit_l16": (304_326_632, 123_109_425_152),
    "vit_h14": (632_045_800, 334_590_218_240),
    "vit_mini": (201_098, 6_990_080),
}


# ----------------------------------------------------------------------------------------------- data that is small


def write_mnist(folder: Path) -> None:
    """MNIST's four files with 60 images to train on and 20 to test on."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        images, labels = random.integers(0, 256, (count, 28, 28)), np.arange(count) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())


def write_cifar(folder: Path, dataset: Any, key: str, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR's pickles with four images a class in each file, their checksums not asked for."""
    base = folder / dataset.base_folder
    base.mkdir(parents=True)
    for part in ("train_list", "test_list"):
        files = [name for name, _ in getattr(dataset, part)]
        monkeypatch.setattr(dataset, part, [[name, None] for name in files])
        for name in files:
            pixels = np.random.default_rng(0).integers(0, 256, (4 * classes, 3072), dtype=np.uint8)
            labels = [number % classes for number in range(4 * classes)]
            (base / name).write_bytes(pickle.dumps({"data": pixels, key: labels}))
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": None})
    names = [f"name{number}" for number in range(classes)]
    (base / dataset.meta["filename"]).write_bytes(pickle.dumps({dataset.meta["key"]: names}))


def write_folder(folder: Path, classes: list[str]) -> None:
    """Ten small pictures a class."""
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (40, 30), (25 * number, 30 * index, 99)).save(folder / name / f"{number}.png")


def write_weights(folder: Path, patch: int, **others: int) -> Path:
    """A model of one block in timm's layout."""
    sizes: Any = {"embed_dim": 16, "num_heads": 2, "num_classes": 7, **others}
    model = timm.create_model("vit_tiny_patch16_224", img_size=2 * patch, patch_size=patch, depth=1, **sizes)
    save_file(model.state_dict(), file := folder / f"weights{sizes['num_classes']}.safetensors")
    return file


@pytest.fixture
def with_data(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parquet: Path
) -> Callable[..., list[str]]:
    """Overrides -> the same, with `data_dir` set to a folder where the data set that they choose lies, if in files, and
    with weights at hand for what begins from some.
    """

    def prepare(*overrides: str) -> list[str]:
        if patches := [PRETRAINED[override] for override in overrides if override in PRETRAINED]:
            overrides = (*overrides, f"model.weights={write_weights(tmp_path, patches[0])}", "++model.heads=2")
        config = configure(*overrides)
        data = config["data"]["source"]
        if config["classifier"]["teacher"]:
            teacher = write_weights(tmp_path, 16, embed_dim=192, num_heads=3, num_classes=3)
            overrides = (*overrides, f"classifier.teacher={teacher}")
        name, folder = data["_target_"].rsplit(".", 1)[-1], tmp_path / "data"
        if name in ("digits", "fake"):
            return list(overrides)
        if name == "huggingface":
            return [*overrides, f"data.name={parquet}", f"data.source.cache_dir={folder}"]
        if name == "fashion_mnist":
            if not DEBIAN_FASHION_MNIST.is_dir():
                pytest.skip("Debian's package dataset-fashion-mnist is not installed")
        elif name == "mnist":
            write_mnist(folder / "mnist")
        elif name == "cifar10":
            write_cifar(folder, datasets.CIFAR10, "labels", 10, monkeypatch)
        elif name == "cifar100":
            write_cifar(folder, datasets.CIFAR100, "fine_labels", 100, monkeypatch)
        elif name == "image_folder":
            write_folder(folder, data["classes"] or ["cat", "dog", "emu"])
        elif name == "shards":
            write_folder(tmp_path / "pictures", ["cat", "dog", "emu"])
            image_fixtures.pack(tmp_path / "pictures", folder)
        else:
            raise LookupError(f"this test can't make the data set {name}: teach it to")
        return [*overrides, f"data_dir={folder}"]

    return prepare


# ------------------------------------------------------------------------------------------------------- all files


@pytest.fixture
def with_data_of_any_size(with_data: Callable[..., list[str]], tmp_path: Path) -> Callable[..., list[str]]:
    """`with_data`, but of an image folder nothing is counted: the small one isn't what a recipe is for."""
    (empty := tmp_path / "empty").mkdir()

    def prepare(*overrides: str) -> list[str]:
        settings = with_data(*overrides)
        folders = [Path(s.removeprefix("data_dir=")) for s in settings if s.startswith("data_dir=")]
        has_classes = any(True for folder in folders for _ in folder.glob("*/0.png"))
        return [*settings, f"data_dir={empty}"] if has_classes else settings

    return prepare


def test_the_files_are_found() -> None:
    assert len(OPTIONS) > 40
    assert len(EXPERIMENTS) >= 4
    assert set(INCOMPLETE) | set(SEVERAL_PROCESSES) | set(NEEDS) <= set(OPTIONS)
    assert {case for case in STEP if not case.endswith("=")} <= {*OPTIONS, *EXPERIMENTS}


@pytest.mark.parametrize("option", [case for case in [*OPTIONS, *EXPERIMENTS] if case not in INCOMPLETE])
def test_a_file_is_right_as_it_stands(
    found: Callable[..., list[str]], with_data_of_any_size: Callable[..., list[str]], option: str
) -> None:
    assert found(*with_data_of_any_size(option, "trainer.accelerator=cpu", *NEEDS.get(option, []))) == []


def test_the_defaults_are_right_as_they_stand(found: Callable[..., list[str]]) -> None:
    assert found() == []


@pytest.mark.parametrize(
    "option", ["data=digits", "data=image_folder", *(case for case in EXPERIMENTS if case not in PUBLISHED)]
)
def test_a_run_can_be_cut_to_one_epoch(
    found: Callable[..., list[str]], with_data_of_any_size: Callable[..., list[str]], option: str
) -> None:
    settings = with_data_of_any_size(option, "trainer.accelerator=cpu", *NEEDS.get(option, []))
    assert found(*settings, "trainer.max_epochs=1") == []


@pytest.mark.parametrize("option", INCOMPLETE)
def test_a_file_that_others_are_built_on_is_refused_alone(capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit):
        preflight.preflight(train.main, [option])
    assert "source" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- one step


@pytest.fixture
def _global_settings() -> Iterator[None]:
    """Takes back what a Trainer sets for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


def in_one_step(option: str) -> list[str]:
    """The option with what makes a step of it short."""
    group = option.split("=")[0]
    small = [] if group in ("model", "model/size", "experiment") else SMALL
    reduced = [] if option in PRETRAINED else STEP.get(option, STEP.get(f"{group}=", []))
    classes = ["data.max_train_samples=null"] if "cifar100" in option else []  # a hundred of them
    return [option, *NEEDS.get(option, []), *ONE_STEP, *small, *reduced, *classes]


@pytest.mark.usefixtures("_global_settings")
@pytest.mark.parametrize(
    "option", [case for case in [*OPTIONS, *EXPERIMENTS] if case not in [*INCOMPLETE, *SEVERAL_PROCESSES, *SEARCHES]]
)
def test_a_file_takes_a_training_step(
    configure: Configure,
    with_data: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for kind in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / "wandb"))
    logger = [] if option.startswith("logger") else ["logger=csv"]
    checkpoints = [] if option.startswith("callbacks") else ["callbacks.best=null", "callbacks.last=null"]
    config = configure(*with_data(*in_one_step(option), *logger, *checkpoints))
    write_config(tmp_path / "run", config)
    seed_everything(0, verbose=False)
    datamodule = build.build_data(config["data"])
    parts = {key: config[key] for key in ("weights", "optimizer", "schedule")}
    module = build.build_classifier(config["model"], datamodule, config["classifier"], **parts)
    run = build.build_trainer(
        config["trainer"], run_dir=tmp_path / "run", logger=config["logger"], callbacks=config["callbacks"]
    )
    before = {name: p.detach().clone() for name, p in module.network.named_parameters()}
    run.fit(module, datamodule)
    end_wandb()

    assert run.global_step == 1
    after = dict(module.network.named_parameters())
    assert all(p.isfinite().all() for p in after.values())
    moved = [name for name, p in after.items() if not torch.equal(p, before[name])]
    if after["head.weight"].requires_grad:
        assert "head.weight" in moved
    blocked = config["classifier"]["freeze"] or not before["head.weight"].any()  # a head of 0 passes no gradient on
    assert blocked or len(moved) > len(after) / 2
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") >= 2
    if option.startswith("callbacks"):
        assert {f.name for f in (tmp_path / "run" / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    if option.startswith("logger") and config["logger"] != {"csv": None}:
        (name,) = config["logger"]
        assert list((tmp_path / "run" / name).rglob("*" + {"wandb": ".wandb", "tensorboard": "tfevents*"}[name]))


def end_wandb() -> None:
    """Ends a wandb run, if there is one."""
    import wandb

    if wandb.run is not None:
        wandb.finish()


@pytest.mark.parametrize(
    ("option", "strategy"), [("trainer=ddp", DDPStrategy), ("trainer=fsdp", ModelParallelStrategy)]
)
def test_a_trainer_of_several_processes_is_made_with_its_strategy(
    configure: Configure, option: str, strategy: type
) -> None:
    node = configure(option, "trainer.accelerator=cpu", "trainer.enable_progress_bar=false")["trainer"]
    trainer = instantiate(node, _convert_="all", logger=False, enable_checkpointing=False)
    assert isinstance(trainer, Trainer)
    assert isinstance(trainer.strategy, strategy)
    assert trainer.world_size == 2


@pytest.mark.usefixtures("_global_settings")
@pytest.mark.parametrize("settings", [["trainer.max_steps=1"], ["trainer.max_steps=22", "callbacks=ema"]])
def test_the_other_programs_configuration_is_right_and_gives_what_training_gave(
    settings: list[str], configure: Configure, train_function: Callable[..., Node], tmp_path: Path
) -> None:
    """Averaged weights are what is validated, tested, saved as best and evaluated."""
    run = tmp_path / "run"
    quick = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "schedule.warmup_steps=0"]
    config = configure("logger=csv", "batch_size=64", *settings, *SMALL, *quick)
    write_config(run, config)
    trained = train_function(**config)

    with hydra.initialize_config_dir(str(compose.CONF), version_base="1.3"):
        composed = compose.compose("evaluate", [f"run={run}", *quick[:2]])
        config = compose.resolve_config(composed, str(tmp_path / "evaluation"))  # type: ignore[assignment]
    assert checks.problems(evaluate.main, config) == []
    evaluated = evaluate.main.function(**config)
    assert {k: evaluated[k] for k in evaluated if k.startswith("test/")} == {
        k: trained[k] for k in trained if k.startswith("test/")
    }
    assert evaluated["test/count"] == 360


@pytest.mark.parametrize("kind", PROBES)
def test_a_probe_is_right_as_it_stands_for_a_run_and_for_any_model(kind: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name, text in ((CONFIG, "{}"), ("checkpoints/best.ckpt", "")):
        (run / name).write_text(text)
    for overrides in ([f"run={run}"], ["model=vit_mini", "data=digits"]):
        with hydra.initialize_config_dir(str(compose.CONF), version_base="1.3"):
            composed = compose.compose("evaluate", [*overrides, f"probe={kind}", "trainer.accelerator=cpu"])
            config = compose.resolve_config(composed, str(tmp_path / "probed"))
        assert isinstance(config, dict)
        assert checks.problems(evaluate.main, config) == []
        assert config["probe"] == {
            "_target_": config["probe"]["_target_"],
            **signatures.defaults(config["probe"]["_target_"]),
        }


# -------------------------------------------------------------------------------------------- golden sizes and costs

PRESETS = [option.removeprefix("model=") for option in OPTIONS if option.startswith("model=vit_")]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_parameters_and_operations_that_are_written_down(configure: Configure, preset: str) -> None:
    assert preset in GOLDEN, f"conf/model/{preset}.yaml is new: write its numbers into GOLDEN"
    node = configure(f"model={preset}")["model"]
    channels, classes = (1, 10) if preset == "vit_mini" else (3, 1000)
    with torch.device("meta"):
        model = instantiate(node, _convert_="all", in_channels=channels, num_classes=classes)
        assert isinstance(model, VisionTransformer)
        images = torch.empty(1, channels, *model.image_size)
        with FlopCounterMode(display=False) as counter:
            assert model.forward_head(model.forward_features(images)).shape == (1, classes)
    parameters = sum(p.numel() for p in model.parameters())
    assert (parameters, counter.get_total_flops()) == GOLDEN[preset]

    # the same from the sizes alone
    tokens, width, area = 1 + model.grid[0] * model.grid[1], model.dim, channels * model.patch_size[0] ** 2
    positions = 0 if node["pos_embed"] == "sincos2d" else tokens * width
    ends = (area + 1) * width + width + positions + 2 * width + (width + 1) * classes
    assert parameters == ends + model.depth * (12 * width**2 + 13 * width)
    products = (tokens - 1) * area * width + width * classes
    products += model.depth * (12 * tokens * width**2 + 2 * tokens**2 * width)
    assert counter.get_total_flops() == 2 * products


def test_no_golden_number_is_left_of_a_preset_that_is_gone() -> None:
    assert sorted(GOLDEN) == sorted(PRESETS)


def test_the_baseline_of_timm_costs_what_ours_of_the_same_name_does(configure: Configure) -> None:
    node = configure("model=timm")["model"]
    assert node["model_name"] == "vit_tiny_patch16_224"
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = instantiate(node, _convert_="all", in_channels=3, num_classes=1000)
        model(torch.empty(1, 3, 224, 224))
    assert (sum(p.numel() for p in model.parameters()), counter.get_total_flops()) == GOLDEN["vit_ti16"]
