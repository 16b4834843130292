"""Sets in the formats of the Hugging Face Hub: files that `datasets` wrote, read from a disk and over HTTP."""

import io
import json
import logging
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial, partialmethod
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

import train
from conftest import SRC, Configure
from faults.runs import rows as metric_rows
from faults.runs import same
from forked_ranks import RANKS
from hub_files import CLASSES, Ranges, png, saved, table
from image_fixtures import tar
from vitlab.cli.checks import problems as all_problems
from vitlab.config.schema import Node
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import TrainBatch
from vitlab.data.decode import UnreadableImage, check_header, read_bytes, read_image
from vitlab.data.rows import Rows
from vitlab.data.sets.huggingface import TableRows, check_class_names, problems
from vitlab.data.sets.huggingface import huggingface as source_of
from vitlab.data.source import Source, Split, loader_settings
from vitlab.jobs.identity import incompatibilities
from vitlab.runs.folder import read_results
from vitlab.storage import safe_load

Load = Callable[..., Source]
TARGET = "vitlab.data.sets.huggingface.huggingface"


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """The source, with downloads and tables kept in a folder of the test's own."""
    return partial(source_of, cache_dir=str(tmp_path / "cache"))


def pixels(split: Split) -> torch.Tensor:
    """All images of a split of digits, from any format, grey."""
    return torch.stack([read_image(file)[0] for file in split.files or []])


def digits(start: int, stop: int) -> torch.Tensor:
    return torch.from_numpy((load_digits().images[start:stop] * 15).astype(np.uint8))


# ------------------------------------------------------------------------------------------------- formats and splits


def test_parquet_files_are_the_images_and_classes_that_were_written(load: Load, parquet: Path) -> None:
    source = load(name=str(parquet))
    assert source.name == "digits"
    assert source.classes == tuple(f"digit {i}" for i in range(10))
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 600, "test": 200}
    assert torch.equal(pixels(source.train), digits(0, 600))
    assert torch.equal(pixels(source.test), digits(600, 800))
    assert source.train.labels.tolist() == load_digits().target[:600].tolist()
    assert source.train.labels.dtype == torch.int64


def test_what_was_saved_to_disk_and_folders_of_images_are_read_too(load: Load, parquet: Path, tmp_path: Path) -> None:
    complete = {
        name: datasets.Dataset.from_parquet(str(parquet / "data" / f"{name}-0.parquet"), cache_dir=str(tmp_path / "c"))
        for name in ("train", "test")
    }
    source = load(name=saved(tmp_path / "saved", **complete))
    assert torch.equal(pixels(source.train), digits(0, 200))
    for index, label in enumerate(load_digits().target[:40].tolist()):
        file = tmp_path / "folder" / ("train" if index < 30 else "test") / f"digit {label}" / f"{index:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(load_digits().images[index]))
    source = load(name=str(tmp_path / "folder"))
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 30, "test": 10}
    assert source.classes[3] == "digit 3"
    first = source.train.labels.tolist().index(3)
    assert torch.equal(read_image((source.train.files or [])[first])[0], digits(3, 4)[0])


def test_one_file_or_a_pattern_of_files_is_cut_by_vitlab(load: Load, parquet: Path) -> None:
    one = load(name=str(parquet / "data" / "test-0.parquet"), test_fraction=0.25)
    assert {name: len(split) for name, split in one.splits.items()} == {"train": 150, "test": 50}
    assert int(one.test.labels.bincount().min()) >= 4, "stratified"
    several = load(name=str(parquet / "data" / "t*.parquet"), test_fraction=0.25)
    assert {name: len(split) for name, split in several.splits.items()} == {"train": 600, "test": 200}
    assert not set(several.train.files or []) & set(several.test.files or [])


def test_the_tar_files_of_webdataset_are_read_with_their_bytes(load: Load, tmp_path: Path) -> None:
    images = [png(image) for image in load_digits().images[:24]]
    members = [
        part
        for number, data in enumerate(images)
        for part in (
            (f"some/{number:04d}.cls", str(number % 3).encode()),
            (f"some/{number:04d}.json", b"{}"),
            (f"some/{number:04d}.png", data),
        )
    ]
    for part in range(2):
        tar(tmp_path / "theirs" / "train" / f"imagenet-{part}.tar", members[36 * part : 36 * part + 36])
    tar(tmp_path / "theirs" / "val" / "0.tar", members[:18])
    source = load(name=str(tmp_path / "theirs"))
    assert (source.classes, len(source.test)) == (("0", "1", "2"), 6)
    assert [read_bytes(file) for file in source.train.files or []] == images
    assert source.train.labels.tolist() == [number % 3 for number in range(24)]


def test_a_published_validation_split_is_validated_on(load: Load, tmp_path: Path) -> None:
    complete = table([i % 2 for i in range(40)], CLASSES)
    name = saved(tmp_path / "s", train=complete, validation=complete.select(range(8)), test=complete.select(range(6)))
    data = DataModule(source=partial(load, name=name), augment=Augment(), image_size=8, batch_size=8, seed=0)
    data.setup()
    assert data.samples == {"train": 40, "val": 8, "test": 6}
    assert data.split("val").files is not None
    assert (data.split("val").files or [])[0] == "s/validation/0"


# ------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("values", "feature", "classes"),
    [
        (["dog", "cat", "dog"], datasets.Value("string"), ("cat", "dog")),
        ([30, 4, 30], datasets.Value("int16"), ("4", "30")),
        ([True, False, True], datasets.Value("bool"), ("False", "True")),
    ],
)
def test_labels_without_names_are_classes_in_order(
    load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture, values: list[Any], feature: Any, classes: Any
) -> None:
    complete = table(values * 4, feature)
    with caplog.at_level(logging.INFO):
        source = load(name=saved(tmp_path / "s", train=complete, test=complete.select(range(3))))
    assert source.classes == classes
    assert source.test.labels.tolist() == [1, 0, 1]
    assert f"2 classes, sorted: {', '.join(classes)}" in caplog.text


def test_hidden_labels_of_a_test_split_make_validation_the_test_split(
    load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    complete = table([0, 1] * 10, CLASSES)
    hidden = table([-1] * 5, CLASSES)
    name = saved(tmp_path / "s", train=complete, validation=complete.select(range(4)), test=hidden)
    with caplog.at_level(logging.INFO):
        source = load(name=name)
    assert (len(source.train), source.val, len(source.test)) == (20, None, 4)
    assert "split test has no labels, and is not used" in caplog.text
    assert "validation held out from train, test validation" in caplog.text
    with pytest.raises(ValueError, match="5 of the 5 labels of the split test are -1 or missing"):
        load(name=name, test_split="test")


def test_columns_are_found_by_what_they_hold_or_named(load: Load, tmp_path: Path) -> None:
    fine = datasets.ClassLabel(names=["zero", "one", "two"])
    complete = table(["x"] * 6, datasets.Value("string"), fine=([0, 1, 2] * 2, fine), coarse=([0, 1] * 3, CLASSES))
    complete = complete.rename_column("image", "picture")
    name = saved(tmp_path / "s", train=complete, test=complete)
    with pytest.raises(ValueError, match=r"label_column is not set, and .* has several .*; name one of fine, coarse"):
        load(name=name)
    assert load(name=name, label_column="coarse").classes == ("even", "odd")
    assert load(name=saved(tmp_path / "t", train=complete.remove_columns("fine")), test_fraction=0.5).classes == (
        "even",
        "odd",
    )
    two = datasets.concatenate_datasets(
        [complete, complete.select_columns("picture").rename_column("picture", "thumb")], axis=1
    )
    name = saved(tmp_path / "u", train=two, test=two)
    with pytest.raises(ValueError, match=r"image_column is not set, and .* several such columns; .* picture, thumb"):
        load(name=name, label_column="fine")
    assert load(name=name, label_column="fine", image_column="thumb").classes == ("zero", "one", "two")


@pytest.mark.parametrize(
    ("train", "test", "feature", "reported"),
    [
        ([0, 1, -1, 1], [0], CLASSES, "1 of the 4 labels of the split train are -1 or missing"),
        ([0, 1, None, 1], [0], CLASSES, "1 of the 4 labels of the split train are -1 or missing"),
        (["a", "b"] * 3, ["c"], datasets.Value("string"), "the split test has the label 'c', which train doesn't have"),
        ([[0], [1]], [[0]], datasets.List(CLASSES), "label_column=label has List("),
        ([0.5, 1.5], [0.5], datasets.Value("float32"), "label_column=label has Value('float32')"),
    ],
)
def test_labels_that_are_no_classes_are_refused(
    load: Load, tmp_path: Path, train: list[Any], test: list[Any], feature: Any, reported: str
) -> None:
    name = saved(tmp_path / "s", train=table(train, feature), test=table(test, feature))
    with pytest.raises(ValueError, match=re.escape(reported)):
        load(name=name)


def test_classes_of_another_order_are_not_mixed_up(load: Load, tmp_path: Path) -> None:
    one, other = (table([0, 1] * 4, datasets.ClassLabel(names=names)) for names in (["a", "b"], ["b", "a"]))
    with pytest.raises(ValueError, match="the classes of the split test have other names, or another order"):
        load(name=saved(tmp_path / "s", train=one, test=other))
    (tmp_path / "p").mkdir()
    for name, part in (("train-0", one), ("train-1", other)):
        part.to_parquet(tmp_path / "p" / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"the classes of .*train-1\.parquet have other names, or another order"):
        load(name=str(tmp_path / "p"))


def test_class_names_are_read_in_local_parquet_files_alone() -> None:
    files = {"train": ["https://example.org/a.parquet", "/data/image.png"]}
    resolved: Any = SimpleNamespace(name="set", builder=SimpleNamespace(config=SimpleNamespace(data_files=files)))
    check_class_names(resolved, "train", "label", CLASSES)


# ------------------------------------------------------------------------------------------------------------- images


def test_odd_images_are_read_as_files_of_folders_are_and_broken_ones_left_out(load: Load, tmp_path: Path) -> None:
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((40, 30))
    turned = Image.Exif()
    turned[0x0112] = 6
    odd = {
        "grey.jpg": photo.convert("L"),
        "palette.png": photo.convert("P"),
        "cmyk.jpg": photo.convert("CMYK"),
        "clear.png": Image.new("RGBA", (9, 9)),
        "turned.jpg": photo,
    }
    values: list[Any] = []
    for name, image in odd.items():
        image.save(tmp_path / name, exif=turned if name == "turned.jpg" else Image.Exif())
        values.append({"bytes": (tmp_path / name).read_bytes(), "path": name})
    values = [*values, *values, {"bytes": values[0]["bytes"][:200], "path": "cut.jpg"}, None]
    label = [0, 1] * 6
    features = datasets.Features({"image": datasets.Image(), "label": CLASSES})
    complete = datasets.Dataset.from_dict({"image": values, "label": label}, features=features)
    name = saved(tmp_path / "odd", train=complete, test=complete.select(range(4)))
    source = load(name=name)
    for file, row in zip(odd, source.train.files or [], strict=False):
        assert torch.equal(read_image(row), read_image(str(tmp_path / file))), file
    assert read_image((source.train.files or [])[4]).shape == (3, 40, 30), "upright"
    with pytest.raises(UnreadableImage, match=r"^odd/train/10 can't be decoded"):
        read_image((source.train.files or [])[10])

    data = partial(DataModule, source=lambda: source, augment=Augment(), image_size=8, batch_size=2, seed=0)
    knobs: dict[str, Any] = {"val_fraction": 0.25, "skipped_file": str(tmp_path / "skipped.csv")}
    with pytest.raises(ValueError, match=r"2 of 16 images can't be used(.|\n)*odd/train/11: the row holds no image"):
        data(**knobs).setup()
    left = data(on_error="skip", max_skipped=0.5, **knobs)
    left.setup()
    assert left.samples == {"train": 7, "val": 3, "test": 4}
    lines = (tmp_path / "skipped.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [["train/10", "train"], ["train/11", "train"]]


# ------------------------------------------------------------------------------------------------------------- rows


@pytest.fixture(scope="module")
def rows(parquet: Path, tmp_path_factory: pytest.TempPathFactory) -> TableRows:
    """The 600 training rows."""
    train = source_of(name=str(parquet), cache_dir=str(tmp_path_factory.mktemp("cache"))).train
    assert isinstance(train.files, TableRows)
    return train.files


def test_each_row_is_the_image_that_was_written(rows: Rows) -> None:
    for index in (0, 49, 50, 200, 599):
        pixels = (load_digits().images[index] * 15).astype(np.uint8)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(read_bytes(rows[index])))), pixels)
        assert np.array_equal(read_image(rows[index])[2], pixels)
        check_header(rows[index])
    part = rows.subset(torch.tensor([300, 20, 21])).subset(torch.tensor([2, 0]))
    assert [read_bytes(row) for row in part] == [read_bytes(rows[21]), read_bytes(rows[300])]


def test_their_digest_depends_on_content_and_not_on_place(
    rows: Rows, parquet: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shutil.copytree(parquet, moved := tmp_path / "digits")
    cache = str(tmp_path_factory.mktemp("cache"))
    again = source_of(name=str(moved), cache_dir=cache).train.files
    assert isinstance(again, Rows)
    assert again.digest() == rows.digest()
    assert again.subset(torch.arange(1, 600)).digest() != rows.subset(torch.arange(599)).digest()
    last = moved / "data" / "train-2.parquet"
    other = datasets.Dataset.from_parquet(str(moved / "data" / "test-0.parquet"), cache_dir=cache)
    other.to_parquet(last, batch_size=50)
    changed = source_of(name=str(moved), cache_dir=cache).train.files
    assert isinstance(changed, Rows)
    assert changed.digest() != rows.digest()


def read_in_child(rows: Rows, indices: list[int]) -> list[bytes]:
    return [read_bytes(rows[index]) for index in indices]


@pytest.mark.parametrize("method", ["fork", "pickle"])
def test_another_process_reads_the_same_files_and_gets_no_copy_of_the_table(rows: TableRows, method: str) -> None:
    indices = [3, 250, 599]
    expected = read_in_child(rows, indices)
    if method == "pickle":
        assert len(pickle.dumps(rows)) < 20_000, "the numbers of 600 rows, and the names of files"
        assert read_in_child(pickle.loads(pickle.dumps(rows)), indices) == expected
        return
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(read_in_child, (rows, indices)) == expected


def test_a_row_without_an_image_and_one_that_is_elsewhere(tmp_path: Path) -> None:
    Image.fromarray((load_digits().images[0] * 15).astype(np.uint8)).save(tmp_path / "0.png")
    values = [{"bytes": None, "path": str(tmp_path / "0.png")}, None, {"bytes": None, "path": "0.png"}]
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": values}, features=features)
    rows = TableRows("set/train", table, "image", torch.arange(3))
    assert read_image(rows[0]).shape == (3, 8, 8)
    for index, reason in ((1, "the row holds no image"), (2, "the row holds no image, but the name 0.png")):
        with pytest.raises(ValueError, match=rf"^set/train/{index} can't be read \({reason}\)"):
            read_image(rows[index])
    assert len(rows.digest()) == 16
    named = [datasets.Dataset.from_dict({"image": [{"bytes": None, "path": p}]}, features=features) for p in "ab"]
    one, other = (TableRows("set/train", part, "image", torch.arange(1)).content() for part in named)
    assert one != other, "the names of files"


# ----------------------------------------------------------------------------------------- reported before a start


@pytest.mark.parametrize(
    ("settings", "reported"),
    [
        ({"name": None}, "data.name is not set: set it to OWNER/NAME on the Hub"),
        (
            {"name": "ylecun/no_such_set"},
            "data.name=ylecun/no_such_set: there is no such folder here, the Hub can't be",
        ),
        ({"name": "/no/such/folder"}, "data.name=/no/such/folder: there is no such file or folder"),
        ({"subset": "plain"}, "with data.source.subset=plain can't be opened: BuilderConfig 'plain' not found"),
        ({"train_split": "trian"}, "data.source.train_split=trian: digits has no such split; did you mean 'train'?"),
        ({"val_split": "other"}, "data.source.val_split=other: digits has no such split; there are train, test"),
        ({"image_column": "imag"}, "data.source.image_column=imag: digits has no such column; did you mean 'image'?"),
        ({"label_column": "image"}, "data.source.label_column=image has Image("),
        ({"image_column": "id"}, "data.source.image_column=id has no images, but"),
        ({"name": "scripted"}, "data.source.revision=refs/convert/parquet"),
        ({"name": "text.txt"}, "is no parquet file; of other files, name their folder"),
        ({"name": "none-*.parquet"}, "data.name=none-*.parquet matches no file"),
    ],
)
def test_an_impossible_setting_is_reported(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Node, reported: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scripted").mkdir()
    Path("scripted/scripted.py").write_text("raise SystemExit('this was run')")
    Path("text.txt").write_text("text")
    found = list(problems(**loader_settings({"_target_": TARGET, "name": str(parquet), **settings})))
    assert len(found) == 1, found
    assert reported in found[0]


def test_a_program_reports_it_before_anything_starts(configure: Configure, parquet: Path) -> None:
    for settings, reported in (
        ([], "data.name is not set"),
        ([f"data.name={parquet}", "data.source.test_split=tset"], "'test'"),
    ):
        found = all_problems(train.main, configure("data=huggingface", "image_size=8", *settings))
        assert len(found) == 1, found
        assert reported in found[0]


def test_a_good_configuration_has_no_problems_and_is_named_by_its_data(configure: Configure, parquet: Path) -> None:
    config = configure("data=huggingface", f"data.name={parquet}", "image_size=8")
    assert all_problems(train.main, config) == []
    assert config["name"].startswith("digits-vit_")
    assert "name" not in config["data"], "the source has it"
    assert config["data"]["source"]["name"] == str(parquet)
    hub = configure("data=huggingface", "data.name=uoft-cs/cifar100", "image_size=8")
    assert hub["name"].startswith("uoft-cs_cifar100-vit_")


# ------------------------------------------------------------------------------------------------------------ training


def test_epochs_draw_each_image_once_on_any_number_of_ranks_with_workers(
    load: Load, parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataModule(
        source=partial(load, name=str(parquet)),
        augment=Augment(crop_scale=(1.0, 1.0), crop_fraction=1.0),
        image_size=8,
        batch_size=64,
        seed=0,
        num_workers=2,
    )
    data.setup()
    every = sorted(tuple(image.flatten().tolist()) for image in pixels(data.split("train")))
    steps: list[list[TrainBatch]] = []
    for ranks in (1, 3):
        data.num_workers = 2 if ranks == 1 else 0
        for rank in range(ranks):
            monkeypatch.setattr(data, "_share", partial(dict, rank=rank, world_size=ranks))
            data.set_epoch(0)
            steps.append([batch for batch in data.train_dataloader() if isinstance(batch, TrainBatch)])
    one, three = steps[0], [torch.cat([batch.images for batch in parts]) for parts in zip(*steps[1:], strict=True)]
    seen = torch.cat([batch.images for batch in one])[:, 0].flatten(1).tolist()
    assert sorted(map(tuple, seen)) == every
    assert all(torch.equal(batch.images, images) for batch, images in zip(one, three, strict=True))
    for ranks in (1, 2, 3):
        shares = []
        for rank in range(ranks):
            monkeypatch.setattr(data, "_share", partial(dict, rank=rank, world_size=ranks))
            shares += [batch.images for batch in data.loader("test")]
        found = torch.cat(shares)[:, 0].flatten(1).tolist()
        assert sorted(map(tuple, found)) == sorted(map(tuple, digits(600, 800).flatten(1).tolist()))


def test_the_data_of_a_checkpoint_is_distinguished_from_other_data(load: Load, parquet: Path, tmp_path: Path) -> None:
    def identity(name: Path) -> Node:
        data = DataModule(source=partial(load, name=str(name)), augment=Augment(), image_size=8, batch_size=64, seed=0)
        data.setup()
        return {"config": {}, "data": data.fingerprint()}

    shutil.copytree(parquet, other := tmp_path / "digits")
    first = identity(parquet)
    assert incompatibilities(first, identity(other)) == []
    shutil.copy(other / "data" / "train-0.parquet", other / "data" / "test-0.parquet")
    reported = incompatibilities(first, identity(other))
    assert reported == ["data: test images: the number is the same, the images differ"]


@pytest.mark.long
def test_one_two_and_three_ranks_train_and_count_alike_and_resume_exactly(
    small: list[str], parquet: Path, tmp_path: Path
) -> None:
    """Real processes with gloo, two loading workers each, out of parquet files."""
    settings = [setting for setting in small if not setting.startswith("trainer.max_epochs")]
    settings += ["data=huggingface", f"data.name={parquet}", f"data.source.cache_dir={tmp_path / 'cache'}"]
    settings += [
        f"data.source.cache_dir={tmp_path / 'cache'}",
        "batch_size=100",
        "image_size=8",
        "logger=csv",
        "schedule=constant",
    ]
    settings += ["trainer.max_epochs=2", "trainer.log_every_n_steps=1", "data.augment.flip=false"]
    cut = [*settings, "trainer.max_steps=8", "callbacks.last.every_n_train_steps=1"]
    jobs: list[list[Any]] = [["train", str(ranks), ranks, *settings] for ranks in (1, 2, 3)]
    jobs += [["train", "cut", 2, *cut], ["train", "on", 2, *settings, f"resume={tmp_path}/cut/checkpoints/last.ckpt"]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SRC)}
    subprocess.run([sys.executable, "-c", RANKS, json.dumps(jobs)], cwd=tmp_path, env=environment, check=True)

    def losses(run: str) -> list[float]:
        return [float(row["train/loss"]) for row in metric_rows(tmp_path / run) if row["train/loss"]]

    assert len(losses("1")) == 2 * 6, "539 images in steps of at most 100"
    one = read_results(tmp_path / "1")
    for ranks in ("2", "3"):
        assert losses(ranks) == pytest.approx(losses("1"), rel=1e-4)
        found = read_results(tmp_path / ranks)
        assert (found["val/count"], found["test/count"], found["images"]) == (61, 200, 2 * 539)
        assert found["test/correct"] == one["test/correct"]
    assert losses("cut") == losses("2")[:8]
    assert losses("on") == losses("2")[8:]
    complete, on = (safe_load.load_checkpoint(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("2", "on"))
    assert same(complete["state_dict"], on["state_dict"])


class Hub(Ranges):
    """Answers for one set, `some/digits`, as the Hub does, as far as its client asks."""

    protocol_version = "HTTP/1.1"

    def answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def entry(self, file: Path) -> Node:
        named = {"path": str(file.relative_to(self.directory)), "oid": "0" * 40}
        return named | ({"type": "directory"} if file.is_dir() else {"type": "file", "size": file.stat().st_size})

    def do_GET(self) -> None:
        asked, root = self.path.partition("?")[0], Path(self.directory)
        if asked.startswith(f"/api/datasets/some/digits/tree/{COMMIT}"):
            inner = root / asked.rpartition(COMMIT)[2].strip("/")
            self.answer(200, json.dumps([self.entry(file) for file in sorted(inner.iterdir())]).encode())
        elif asked.startswith("/api/datasets/some/digits"):
            self.answer(200, json.dumps({"id": "some/digits", "sha": COMMIT, "siblings": []}).encode())
        elif (file := root / asked.partition(f"/resolve/{COMMIT}/")[2]).is_file():
            data = file.read_bytes()
            if part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                at, to = int(part[1]), int(part[2]) + 1
                self.answer(206, data[at:to], Content_Range=f"bytes {at}-{to - 1}/{len(data)}")
            else:
                self.answer(200, data, ETag='"0"', Accept_Ranges="bytes")
        else:
            self.answer(404, X_Error_Code="EntryNotFound" if "/some/digits/" in asked else "RepoNotFound")

    do_HEAD = do_GET


COMMIT = "c0ffee" + "0" * 34


@pytest.mark.long
def test_a_run_trains_on_a_set_by_its_name_on_the_hub(parquet: Path, small: list[str], tmp_path: Path) -> None:
    class Here(Hub):
        __init__ = partialmethod(Hub.__init__, directory=str(parquet))

    with ThreadingHTTPServer(("127.0.0.1", 0), Here) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HOME": str(tmp_path / "home")}
        command = [*small, "data=huggingface", "data.num_workers=2", "logger=csv"]
        command += ["image_size=8", "trainer.max_epochs=1", "hydra.run.dir=run"]
        environment = {**os.environ, **hub, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}

        def train(name: str) -> "subprocess.CompletedProcess[str]":
            line = [sys.executable, str(SRC / "train.py"), *command, f"data.name={name}"]
            return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

        missing, done = train("some/other"), train("some/digits")
        server.shutdown()
    assert missing.returncode == 2
    assert "data.name=some/other can't be opened: Dataset 'some/other' doesn't exist on the Hub" in missing.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"some/digits at {COMMIT}: train split train, validation held out from train, test test" in log
    assert "HTTP" not in log
    assert read_results(tmp_path / "run")["test/count"] == 200
