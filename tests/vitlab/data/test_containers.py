"""A shard as LitData and WebDataset themselves read it, and images in folders."""

import gc
from pathlib import Path

import pytest
import torch
from litdata import StreamingDataset
from webdataset import WebDataset

from pictures import SETTINGS, Packed, source
from vitlab.data import containers
from vitlab.data.containers import Item
from vitlab.data.manifest import KINDS, kind_of
from vitlab.data.packing import orders
from vitlab.data.sets.image_folder import image_folder
from vitlab.data.sets.shards import shards

# what the libraries leave open while they iterate
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ITEMS = [Item(b"\xff\xd8 first", 2, 0), Item(b"\x89PNG second", 0, 1), Item(b"\xff\xd8 first", 1, 2)]


@pytest.mark.parametrize("split", ["train", "test"])
def test_litdata_reads_every_image_and_class_in_our_order(packed: Packed, split: str) -> None:
    ours = shards(data_dir=str(packed())).splits[split]
    theirs = StreamingDataset(str(packed() / split), shuffle=False)
    assert len(theirs) == len(ours)
    assert [(bytes(data), label) for data, label in theirs] == [
        (file.read(), label)  # type: ignore[attr-defined]
        for file, label in zip(ours.files or [], ours.labels.tolist(), strict=True)
    ]


def test_webdataset_reads_every_image_and_class_in_our_order(packed: Packed) -> None:
    ours = shards(data_dir=str(packed("webdataset"))).train
    files = sorted(map(str, (packed("webdataset") / "train").glob("*.tar")))
    assert len(files) > 3
    theirs = list(WebDataset(files, shardshuffle=False))
    gc.collect()
    assert [sample["__key__"] for sample in theirs] == [f"{number:09d}" for number in range(len(ours))]
    for sample, file, label in zip(theirs, ours.files or [], ours.labels.tolist(), strict=True):
        data = file.read()  # type: ignore[attr-defined]
        assert sample[KINDS[kind_of(data)]] == data
        assert int(sample["cls"]) == label


def test_folders_hold_the_same_images_for_data_image_folder(packed: Packed, drawn: Path) -> None:
    found, ours = image_folder(data_dir=str(packed("folder"))), shards(data_dir=str(packed()))
    assert found.classes == ours.classes == source(drawn).classes
    for split in ("train", "test"):
        theirs, mine = found.splits[split], ours.splits[split]
        by_name = {Path(file).stem: Path(file).read_bytes() for file in theirs.files or []}
        assert len(by_name) == len(theirs)
        assert by_name == {f"{i:09d}": file.read() for i, file in enumerate(mine.files or [])}  # type: ignore[attr-defined]
        assert torch.equal(torch.bincount(theirs.labels), torch.bincount(mine.labels))


@pytest.mark.parametrize("form", ["litdata", "webdataset"])
def test_where_an_image_lies_is_looked_up_in_the_file_twice_the_same_one_too(tmp_path: Path, form: str) -> None:
    (tmp_path / "scratch").mkdir()
    written = containers.write(form, tmp_path, tmp_path / "scratch", "train", 4, ITEMS, ["a", "b", "c"])
    content = (tmp_path / written.file).read_bytes()
    assert written.bytes == len(content)
    assert written.offsets == sorted(set(written.offsets))
    assert [content[o : o + len(i.data)] for o, i in zip(written.offsets, ITEMS, strict=True)] == [
        i.data for i in ITEMS
    ]


def test_an_image_that_isn_t_in_the_file_as_it_was_is_an_error(tmp_path: Path) -> None:
    (file := tmp_path / "shard").write_bytes(b"something else")
    with pytest.raises(RuntimeError, match="doesn't hold image 0 as it is"):
        containers.located(file, ITEMS)


def test_training_images_are_mixed_once_by_the_seed_and_the_others_stay_in_order(drawn: Path) -> None:
    found = orders(source(drawn), SETTINGS)
    assert sorted(found["train"].tolist()) == list(range(74))
    assert found["train"].tolist() != list(range(74))
    assert found["test"].tolist() == list(range(20))
    assert torch.equal(found["train"], orders(source(drawn), SETTINGS)["train"])
