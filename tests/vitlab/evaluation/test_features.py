"""Features are what the network's forward pass makes, are computed once, and are kept for just what they depend on."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning import Trainer
from torch import nn

from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.digits import digits
from vitlab.evaluation.features import Extractor, Features, Kind, digest, extract, merge_shares, share_file
from vitlab.models.vit import VisionTransformer

MakeTrainer = Callable[..., Trainer]
KINDS: tuple[Kind, ...] = ("pooled", "cls", "mean", "both")
MODEL = {"dim": 16}


def toy(**knobs: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "dim": 16, "depth": 2, "heads": 2, "num_classes": 10, "in_channels": 1}
    return VisionTransformer(**{**sizes, **knobs}).eval()


def timms(**knobs: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, "in_chans": 1, **knobs}).eval()


def data(**knobs: Any) -> DataModule:
    settings = {"batch_size": 100, "image_size": 8, "seed": 0, "max_train_samples": 101, "augment": Augment()}
    module = DataModule(source=digits, **{**settings, **knobs})
    module.setup()
    return module


# --------------------------------------------------------------------------------------------------------- which ones


@pytest.mark.parametrize("make", [toy, timms])
@torch.no_grad()
def test_the_kinds_are_the_tokens_that_they_say(make: Callable[..., nn.Module]) -> None:
    network: Any = make(**({"num_registers": 2} if make is toy else {"reg_tokens": 2}))
    images = torch.randn(3, 1, 8, 8)
    tokens = network.forward_features(images)
    found = {kind: Extractor(network, kind)(images) for kind in KINDS}
    torch.testing.assert_close(found["cls"], tokens[:, 0])
    torch.testing.assert_close(found["mean"], tokens[:, 3:].mean(dim=1))
    assert torch.equal(found["both"], torch.cat([found["cls"], found["mean"]], dim=1))
    torch.testing.assert_close(found["pooled"], found["cls"])
    torch.testing.assert_close(network.head(found["pooled"]), network(images))


@torch.no_grad()
def test_with_the_mean_as_the_pool_features_are_normed_as_the_head_reads_them() -> None:
    network, images = toy(pool="avg"), torch.randn(3, 1, 8, 8)
    nn.init.normal_(network.get_parameter("fc_norm.weight"))
    mean, pooled = Extractor(network, "mean")(images), Extractor(network, "pooled")(images)
    torch.testing.assert_close(mean, pooled)
    torch.testing.assert_close(network.head(pooled), network(images))


@torch.no_grad()
def test_a_convolutional_network_has_pooled_features_and_no_others() -> None:
    network: Any = timm.create_model("resnet18", num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.fc(Extractor(network, "pooled")(images)), network(images))
    with pytest.raises(ValueError, match=r"probe\.features=mean: ResNet has no tokens; use pooled"):
        Extractor(network, "mean")


def test_a_network_without_a_class_token_has_no_feature_of_it() -> None:
    with pytest.raises(ValueError, match=r"probe\.features=both: the network has no \[cls\] token"):
        Extractor(toy(pool="avg", class_token=False), "both")


# ------------------------------------------------------------------------------------------------------ once, and kept


@pytest.fixture
def extracted(make_trainer: MakeTrainer, tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """Network, data, ... -> the files of the features of the splits."""

    def run(network: nn.Module, module: DataModule, *, model: Any = MODEL, **knobs: Any) -> Any:
        precision = knobs.pop("precision", "32-true")
        chosen = {"kind": "pooled", "splits": ["val", "test"], **knobs}
        trainer = make_trainer(precision=precision)
        return extract(network, module, trainer, model=model, folder=tmp_path / "features", **chosen)

    return run


def test_they_are_in_the_order_of_the_split_and_those_of_a_plain_forward_pass(extracted: Any) -> None:
    network, module = toy(), data()
    files = extracted(network, module, splits=["train", "val", "test"])
    for name, file in files.items():
        split = module.split(name)
        found = Features(torch.load(file, weights_only=True), split.labels)
        assert split.images is not None
        with torch.no_grad():
            expected = Extractor(network, "pooled")(module._prepare(split.images))
        torch.testing.assert_close(found.rows, expected)
        assert len(found.rows) == len(found.labels) == {"train": 101, "val": 144, "test": 360}[name]


def test_they_are_computed_once(extracted: Any, caplog: pytest.LogCaptureFixture) -> None:
    network, module = toy(), data()
    first = extracted(network, module)
    before = {file: file.stat().st_mtime_ns for file in first.values()}
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="vitlab.evaluation.features"):
        again = extracted(toy(), data(batch_size=7))
    assert again == first
    assert {file: file.stat().st_mtime_ns for file in again.values()} == before
    reported = [record.getMessage() for record in caplog.records if record.name == "vitlab.evaluation.features"]
    assert len(reported) == 2
    assert all(": from " in line for line in reported)
    assert sorted(first["val"].parent.iterdir()) == sorted(first.values()), "no share is left"


def test_a_damaged_file_is_computed_again(extracted: Any) -> None:
    files = extracted(toy(), data())
    good = files["val"].read_bytes()
    files["val"].write_bytes(good[: len(good) // 2])
    assert extracted(toy(), data()) == files
    assert files["val"].read_bytes() == good


def changed() -> VisionTransformer:
    network = toy()
    with torch.no_grad():
        network.blocks[0].mlp.fc1.bias[0] += 1e-7
    return network


@pytest.mark.parametrize(
    ("network", "module", "knobs"),
    [
        (changed, data, {}),
        (toy, data, {"kind": "mean"}),
        (toy, data, {"precision": "bf16-mixed"}),
        (toy, data, {"model": {"dim": 16, "heads": 4}}),
        (toy, lambda: data(split_seed=1), {"splits": ["val"]}),
        (lambda: toy(image_size=12), lambda: data(image_size=12), {}),
    ],
    ids=["weights", "kind", "precision", "model", "images", "size"],
)
def test_what_they_depend_on_makes_others(network: Any, module: Any, knobs: Any, extracted: Any) -> None:
    first = set(extracted(toy(), data()).values())
    assert first.isdisjoint(extracted(network(), module(), **knobs).values())


@pytest.mark.parametrize("in_blocks", [False, True])
def test_the_shares_of_three_ranks_are_put_together_in_order(tmp_path: Path, *, in_blocks: bool) -> None:
    rows, file = torch.randn(10, 4), tmp_path / "test-0.pt"
    for rank, stop in enumerate((4, 7, 10)):
        torch.save(rows[stop - (4 if rank == 0 else 3) : stop] if in_blocks else rows[rank::3], share_file(file, rank))
    merge_shares(file, 3, 10, in_blocks=in_blocks)
    assert torch.equal(torch.load(file, weights_only=True), rows)
    assert list(tmp_path.iterdir()) == [file]


def test_a_digest_is_of_names_kinds_and_bits() -> None:
    state = {"a": torch.zeros(2), "b": torch.ones(())}
    others = [{**state, "a": torch.zeros(2, 1)}, {**state, "a": -torch.zeros(2)}, {**state, "a": torch.zeros(2).half()}]
    others += [{"c": state["a"], "b": state["b"]}]
    assert len({digest(s) for s in (state, *others)}) == 5
    assert digest(dict(reversed(state.items()))) == digest(state)
