"""What images: the sources, on real data."""

import ast
import hashlib
import inspect
import logging
from pathlib import Path

import pytest
import torch

from vitlab.data import sources
from vitlab.data.sources import FACTS, Source, Split

CLIPART = Path("/usr/share/openclipart/png")


def check(source: Source) -> None:
    """What holds for every source in memory."""
    for split in (source.train, source.test):
        assert split.images is not None
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.images.shape[1] == source.channels == len(source.mean) == len(source.std)
        assert split.images.shape[2] == split.images.shape[3] == source.native_size
        assert sorted(set(split.labels.tolist())) == list(range(len(source.classes)))


def test_digits_are_split_for_good() -> None:
    source = sources.digits()
    check(source)
    facts = FACTS["digits"]
    assert (len(source.train), len(source.test)) == (facts.train_samples, facts.test_samples) == (1437, 360)
    assert source.test.images is not None
    digest = hashlib.sha256(source.test.images.numpy().tobytes()).hexdigest()
    assert digest.startswith("de85aee14a9506dd"), "the test split of digits moved: old results can't be compared"
    counts = torch.bincount(source.test.labels)
    assert counts.min() >= 34
    assert counts.max() <= 38


def test_digits_carry_their_own_mean_and_deviation() -> None:
    source = sources.digits()
    assert source.train.images is not None
    pixels = source.train.images / 255
    assert pixels.max() == 1
    assert pixels.mean().item() == pytest.approx(source.mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(source.std[0], abs=1e-4)


@pytest.mark.skipif(not sources.DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_read_where_debian_puts_it(tmp_path: Path) -> None:
    source = sources.fashion_mnist(data_dir=str(tmp_path))
    check(source)
    assert (len(source.train), len(source.test)) == (60_000, 10_000)
    assert torch.bincount(source.test.labels).tolist() == [1000] * 10
    assert source.classes[int(source.train.labels[0])] == "Ankle boot"
    assert source.train.images is not None
    assert (source.train.images[:5000] / 255).mean().item() == pytest.approx(source.mean[0], abs=0.01)
    assert list(tmp_path.iterdir()) == [], "nothing is written where nothing is downloaded"


def test_fake_images_repeat_and_tell_their_class() -> None:
    source, again = sources.fake(size=16, samples=500), sources.fake(size=16, samples=500)
    check(source)
    assert source.train.images is not None
    assert source.test.images is not None
    assert again.train.images is not None
    assert torch.equal(source.train.images, again.train.images)
    means = torch.stack([source.train.images[source.train.labels == k].float().mean(0) for k in range(10)])
    nearest = (source.test.images[:, None].float() - means).flatten(2).norm(dim=2).argmin(1)
    assert (nearest == source.test.labels).float().mean() > 0.95


def test_fake_refuses_a_size_of_zero() -> None:
    with pytest.raises(ValueError, match=r"data\.source\.size=0 must be at least 1"):
        sources.fake(size=0)


def test_facts_cover_every_source_and_agree_with_it() -> None:
    for name, facts in FACTS.items():
        assert callable(getattr(sources, name))
        if name in ("digits", "fake"):
            source: Source = getattr(sources, name)()
            assert facts.channels in (None, source.channels)
            assert facts.num_classes in (None, len(source.classes))
            assert facts.native_size in (None, source.native_size)


def test_signatures_can_be_read_without_importing_torch() -> None:
    tree = ast.parse(inspect.getsource(sources))
    imported = {
        name.name.split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
    }
    assert imported.isdisjoint({"torch", "torchvision", "sklearn", "numpy", "filelock", "PIL"})
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        if function.name in FACTS:
            assert not function.args.args, f"{function.name} takes keyword-only arguments"
            for default in function.args.kw_defaults:
                if default is not None:
                    ast.literal_eval(default)


def test_a_split_selects_in_the_order_asked_for() -> None:
    split = Split(None, torch.tensor([3, 4, 5]), ["a", "b", "c"])
    part = split.subset(torch.tensor([2, 0]))
    assert part.files == ["c", "a"]
    assert part.labels.tolist() == [5, 3]
    assert len(part) == 2


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.0001, 1.5])
def test_a_fraction_that_leaves_nothing_names_its_knob(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"data\.val_fraction="):
        sources.stratified(torch.arange(10).repeat(9), fraction, seed=0, knob="data.val_fraction")


@pytest.mark.skipif(not CLIPART.is_dir(), reason="Debian's openclipart-png is not installed")
def test_clip_art_is_a_source_of_drawings(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        source = sources.image_folder(
            data_dir=str(CLIPART), classes=["plants", "animals"], max_pixels=1_000_000, test_fraction=0.25
        )
    assert source.classes == ("plants", "animals")
    assert source.train.files is not None
    assert source.test.files is not None
    assert len(source.test) == pytest.approx(0.25 * (len(source.train) + len(source.test)), abs=1)
    reals = [Path(path).resolve() for path in [*source.train.files, *source.test.files]]
    assert len(set(reals)) == len(reals), "a linked picture is in the set twice"
    assert all(f"/{source.classes[k]}/" in f for f, k in zip(source.train.files, source.train.labels, strict=True))
    assert "max_pixels=1000000" in caplog.text
