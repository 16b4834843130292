"""A shard as WebDataset itself reads it, and what the index says about it."""

import gc
import io
import os
import resource
import tarfile
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from webdataset import WebDataset

from image_fixtures import SETTINGS, Packed, source
from vitlab.data.decode import decode, quiet, read_image
from vitlab.data.packing.shard_writer import Item, downscale, image_bytes, image_suffix, packing_order, write_tar
from vitlab.data.rows import InvalidImage
from vitlab.data.sets.digits import digits
from vitlab.data.sets.shards import shards
from vitlab.data.source import Split

# what WebDataset leaves open while it iterates
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

BLOCK = tarfile.BLOCKSIZE


def test_webdataset_reads_every_image_and_class_in_our_order(packed: Packed) -> None:
    ours = shards(data_dir=str(packed())).train
    files = sorted(map(str, (packed() / "train").glob("*.tar")))
    assert len(files) > 3
    theirs = list(WebDataset(files, shardshuffle=False))
    gc.collect()
    assert [sample["__key__"] for sample in theirs] == [f"{number:09d}" for number in range(len(ours))]
    for sample, file, label in zip(theirs, ours.files or [], ours.labels.tolist(), strict=True):
        data = file.read()  # type: ignore[attr-defined]
        assert sample[image_suffix(data)] == data
        assert int(sample["cls"]) == label


def test_training_images_are_shuffled_once_by_the_seed_and_the_others_stay_in_order(drawn: Path) -> None:
    orders = packing_order(source(drawn), SETTINGS)
    assert sorted(orders["train"].tolist()) == list(range(74))
    assert orders["train"].tolist() != list(range(74))
    assert orders["test"].tolist() == list(range(20))
    assert torch.equal(orders["train"], packing_order(source(drawn), SETTINGS)["train"])


def test_offsets_say_where_each_image_begins_also_of_two_that_are_equal(tmp_path: Path) -> None:
    items = [Item(b"\xff\xd8 first", 2, 0), Item(b"\x89PNG " + bytes(600), 0, 1, 7), Item(b"\xff\xd8 first", 1, 2)]
    table = write_tar(file := tmp_path / "shard.tar", items)
    content = file.read_bytes()
    for entry, item in zip(table, items, strict=True):
        assert content[entry["offset"] :][: entry["size"]] == item.data
        assert (entry["label"], entry["crc"], entry["row"]) == (item.label, zlib.crc32(item.data), item.row)
    assert len(set(table["offset"].tolist())) == 3


def pixels(data: bytes) -> torch.Tensor:
    with quiet():  # of torchvision's plans
        return decode(data)


def files(*paths: Path) -> Split:
    return Split(None, torch.zeros(len(paths), dtype=torch.long), [str(path) for path in paths])


def test_a_file_that_is_small_and_upright_keeps_its_bytes_and_so_does_any_without_a_size(drawn: Path) -> None:
    small, turned = drawn / "train" / "digit 0" / "0.png", drawn / "train" / "digit 0" / "turned.jpg"
    assert image_bytes(files(small), 0, size=24, quality=90) == small.read_bytes()
    assert image_bytes(files(turned), 0, size=None, quality=90) == turned.read_bytes()
    assert image_bytes(files(turned), 0, size=500, quality=90) != turned.read_bytes(), "it is turned, never enlarged"


def test_a_larger_photograph_is_made_smaller_on_its_shorter_side_and_looks_the_same(drawn: Path) -> None:
    photo = drawn / "train" / "digit 0" / "photo.jpg"
    data = image_bytes(files(photo), 0, size=40, quality=95)
    with quiet():
        found, complete = decode(data), read_image(str(photo))
    assert (tuple(found.shape), tuple(complete.shape)) == ((3, 40, 60), (3, 80, 120))
    assert len(data) < photo.stat().st_size
    assert (found.float() - downscale(complete, 40).float()).abs().mean() < 4, "of 255: what JPEG costs"


def test_a_photograph_is_turned_as_its_exif_tag_says_and_the_tag_is_gone(drawn: Path) -> None:
    data = image_bytes(files(drawn / "train" / "digit 1" / "turned.jpg"), 0, size=30, quality=90)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (30, 50), "60 x 100, then turned"
        assert image.getexif().get(0x0112) is None


def test_images_in_memory_and_all_without_a_quality_become_png_without_loss(drawn: Path) -> None:
    split = digits().train
    assert split.images is not None
    data = image_bytes(split, 3, size=256, quality=90)
    assert data.startswith(b"\x89PNG")
    assert torch.equal(pixels(data), split.images[3].expand(3, -1, -1))
    photo = drawn / "train" / "digit 0" / "photo.jpg"
    smaller = decode(image_bytes(files(photo), 0, size=40, quality=None))
    assert torch.equal(smaller, downscale(read_image(str(photo)), 40))


def test_what_is_no_image_raises_though_its_bytes_would_be_kept(tmp_path: Path) -> None:
    (bad := tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(InvalidImage, match="without an image"):
        image_bytes(files(bad), 0, size=None, quality=90)


def test_a_file_that_is_gone_or_is_none_or_isn_t_ours_is_broken(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "turn.jpg").symlink_to("turn.jpg")
    (tmp_path / "file.jpg").write_bytes(b"no folder")
    expected = {
        "gone.jpg": "No such file or directory",
        "folder.jpg": "it is no regular file",
        "turn.jpg": "Too many levels of symbolic links",
        "file.jpg/a.jpg": "Not a directory",
        f"{'x' * 300}.jpg": "File name too long",
    }
    for name, reason in expected.items():
        with pytest.raises(InvalidImage, match=reason):
            image_bytes(files(tmp_path / name), 0, size=None, quality=90)


def test_a_disk_or_a_limit_that_fails_makes_no_image_broken(drawn: Path, tmp_path: Path) -> None:
    photo = drawn / "train" / "digit 0" / "photo.jpg"
    with pytest.raises(FileNotFoundError, match="disk/a/photo"):
        image_bytes(files(tmp_path / "disk" / "a" / "photo.jpg"), 0, size=None, quality=90)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))  # not one more
    try:
        with pytest.raises(OSError, match="Too many open files"):
            image_bytes(files(photo), 0, size=None, quality=90)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
