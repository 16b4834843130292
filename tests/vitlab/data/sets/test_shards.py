"""Images in shards are read one by one, in any order, by any number of ranks and workers: each once, all of them."""

import pickle
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import TrainBatch
from vitlab.data.decode import UnreadableImage, read_image
from vitlab.data.sampler import EpochBatches
from vitlab.data.sets.image_folder import image_folder
from vitlab.data.sets.shards import ShardRows, problems, shards

Packed = Callable[..., Path]


def datamodule(folder: Path | str, **settings: Any) -> DataModule:
    knobs = {"augment": Augment(), "image_size": 16, "batch_size": 8, "seed": 3, "num_workers": 0}
    source = {key: settings.pop(key) for key in ("shuffle_buffer", "cache_dir", "cache_gb") if key in settings}
    made = DataModule(source=lambda: shards(data_dir=str(folder), **source), **{**knobs, **settings})
    made.setup()
    return made


@pytest.mark.parametrize("shuffle_buffer", [20, None])
def test_any_number_of_ranks_sees_each_image_once_an_epoch_in_the_same_steps(
    packed: Packed, shuffle_buffer: int | None
) -> None:
    data = datamodule(packed(), shuffle_buffer=shuffle_buffer)
    train = data.split("train")
    blocks = train.blocks if shuffle_buffer else None
    steps: dict[tuple[int, int], list[list[int]]] = {}
    for ranks in (1, 2, 3):
        for epoch in (0, 1):
            each = [
                list(
                    EpochBatches(
                        samples=len(train),
                        batch_size=8,
                        seed=3,
                        rank=rank,
                        world_size=ranks,
                        position=partial(divmod, epoch, 1),
                        blocks=blocks,
                        buffer=shuffle_buffer or 0,
                    )
                )
                for rank in range(ranks)
            ]
            steps[ranks, epoch] = [[i for plan in step for i in plan.indices] for step in zip(*each, strict=True)]
            assert sorted(i for step in steps[ranks, epoch] for i in step) == list(range(len(train)))
    for epoch in (0, 1):
        assert steps[1, epoch] == steps[2, epoch] == steps[3, epoch]
    assert steps[1, 0] != steps[1, 1]


def batches(data: DataModule) -> list[TrainBatch]:
    return list(data.train_dataloader())


def test_workers_and_object_storage_make_the_same_batches(packed: Packed, tmp_path: Path) -> None:
    expected = batches(datamodule(packed()))
    assert sum(len(batch.targets) for batch in expected) == 66
    far = {"cache_dir": str(tmp_path), "cache_gb": 1e-5}  # room for less than all
    others = {
        "two workers": datamodule(packed(), num_workers=2),
        "fetched": datamodule(f"file://{packed()}", **far),
        "fetched by two workers": datamodule(f"file://{packed()}", num_workers=2, **far),
    }
    for name, other in others.items():
        for one, two in zip(expected, batches(other), strict=True):
            assert torch.equal(one.images, two.images), name
            assert torch.equal(one.targets, two.targets), name


def test_unshuffled_and_with_files_own_bytes_it_is_the_folder_itself(packed: Packed, drawn: Path) -> None:
    """Then training on shards is training on the folder, bit for bit."""
    folder, packed_as_is = image_folder(data_dir=str(drawn)), packed(size=None, shuffle=False)
    found = shards(data_dir=str(packed_as_is), shuffle_buffer=None)
    for name in ("train", "test"):
        one, two = folder.splits[name], found.splits[name]
        assert torch.equal(one.labels, two.labels)
        assert [Path(file).read_bytes() for file in one.files or []] == [f.read() for f in two.files or []]  # type: ignore[attr-defined]
    made = DataModule(
        source=lambda: folder, augment=Augment(), image_size=16, batch_size=8, seed=3, num_workers=0, scan="none"
    )
    made.setup()
    for one_batch, other in zip(batches(made), batches(datamodule(packed_as_is, shuffle_buffer=None)), strict=True):
        assert torch.equal(one_batch.images, other.images)


def test_what_is_evaluated_is_shared_by_ranks_without_a_rest(packed: Packed) -> None:
    from vitlab.data.sampler import EvalBatches

    data = datamodule(packed())
    count = len(data.split("test"))
    for ranks in (1, 2, 3):
        plans = [
            plan
            for rank in range(ranks)
            for plan in EvalBatches(samples=count, batch_size=8, rank=rank, world_size=ranks, in_blocks=True)
        ]
        assert sorted(i for plan in plans for i in plan.indices) == list(range(20))


def test_validation_is_cut_by_class_of_few_shards(packed: Packed) -> None:
    one = datamodule(packed())
    assert one.samples == {"train": 66, "val": 8, "test": 20}
    assert set(one.split("val").labels.tolist()) == {0, 1, 2}


def test_an_index_that_would_run_code_is_refused(packed: Packed, tmp_path: Path) -> None:
    rows: Any = shards(data_dir=str(packed())).train.files
    np.save(index := tmp_path / "index.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"allow_pickle=False|Python objects"):
        ShardRows(rows.place, rows.storage, rows.shards, str(index), rows.chosen)


def test_rows_open_files_of_their_own_in_another_process_and_travel_without_them(packed: Packed) -> None:
    files = shards(data_dir=str(packed())).train.files
    assert files is not None
    first = files[0].read()
    travelled = pickle.loads(pickle.dumps(files))
    assert len(pickle.dumps(files)) < 4000, "the index is mapped again"
    assert travelled[0].read() == first
    before = len(list(Path("/proc/self/fd").iterdir()))
    for file in travelled:
        file.read()
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 4
    del travelled, file
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_damaged_shard_is_named_with_the_image_when_it_is_read(packed: Packed, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packed(), tmp_path / "copy"))
    source = shards(data_dir=str(copy))
    assert source.train.files is not None
    entry = source.train.files.entries[3]  # type: ignore[union-attr]
    with (copy / "train" / "000000.tar").open("r+b") as file:
        file.seek(int(entry["offset"]) + 20)
        file.write(b"\xa5\x5a")
    with pytest.raises(UnreadableImage, match=r"copy/train/3 can't be read \(its checksum is wrong: train/000000"):
        read_image(source.train.files[3])
    read_image(source.train.files[2])
    skipping = datamodule(copy, on_error="skip", max_skipped=0.05)
    assert sum(skipping.samples.values()) == 93, "data.on_error=skip leaves it out"


def test_threads_read_while_files_are_closed_for_others(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlab.data.sets.shards.OPEN_FILES", 1)
    files = shards(data_dir=str(packed())).train.files
    assert files is not None
    expected = [files[row].read() for row in range(len(files))]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(16) as pool:
            for _ in range(5):
                read = pool.map(lambda row: files[row].read(), range(len(files)))
                assert list(read) == expected
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"data_dir": "nowhere"}, "data_dir=nowhere is no folder; data=shards needs one that src/prepare.py made"),
        ({"data_dir": "https://b/c", "shuffle_buffer": None}, "would fetch a shard for each image of https://b/c"),
    ],
)
def test_impossible_settings_are_reported(packed: Packed, settings: dict[str, Any], problem: str) -> None:
    (found,) = problems(**{"data_dir": str(packed()), "shuffle_buffer": 10, **settings})
    assert problem in found


def test_missing_shards_are_reported_before_training(packed: Packed, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packed(), tmp_path / "copy"))
    (copy / "train" / "000003.tar").unlink()
    (found,) = problems(data_dir=str(copy), shuffle_buffer=10)
    assert "train/000003.tar: it is missing" in found


def test_many_shards_are_cut_between_them_and_the_digest_is_that_of_sizes_and_checksums(packed: Packed) -> None:
    rows = datamodule(packed()).split("train").files
    assert isinstance(rows, ShardRows)
    for count, by_block in ((99, False), (100, True)):
        many = ShardRows(rows.place, rows.storage, [rows.shards[0]] * count, rows.index_file, rows.chosen)
        assert many.split_by_block == by_block
    assert rows.content() == b"".join(rows.entries[name].tobytes() for name in ("size", "crc"))
