"""Every row of the table of bad inputs in `docs/images.md`, on real files, and what `skip` leaves out."""

import io
import logging
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from torchvision import datasets

from vitlab.data import file_list, scan
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import TrainBatch
from vitlab.data.decode import MAX_PIXELS, UnreadableImage, read_image
from vitlab.data.sets.cifar import cifar10
from vitlab.data.sets.digits import digits
from vitlab.data.sets.huggingface import huggingface
from vitlab.data.sets.image_folder import image_folder, list_images
from vitlab.data.sets.mnist import mnist
from vitlab.data.source import Source, Split
from vitlab.jobs import identity

ROOT = Path(__file__).resolve().parents[3]
PHOTO = Image.fromarray(load_sample_image("china.jpg")).resize((160, 107))


def encoded(format: str, image: Image.Image = PHOTO, **options: Any) -> bytes:
    image.save(buffer := io.BytesIO(), format=format, **options)
    return buffer.getvalue()


def half(data: bytes, rest: bytes = b"") -> bytes:
    return data[: len(data) // 2] + rest * (len(data) - len(data) // 2)


def with_byte(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x55]) + data[middle + 1 :]


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A grey PNG file whose compressed pixels are `pixels`, with checksums that are right."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg_of(width: int, height: int) -> bytes:
    data = encoded("JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def frames() -> dict[str, Any]:
    return {"save_all": True, "append_images": [PHOTO.rotate(90), PHOTO.rotate(180)], "duration": 50}


DEEP = Image.fromarray((load_digits().images[0] * 4095).astype(np.uint16))
CONTENTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty file": ("png", lambda: b""),
    "PNG of 0 x 5 pixels": ("png", lambda: png(0, 5, zlib.compress(b""))),
    "JPEG of 5 x 0 pixels": ("jpg", lambda: jpeg_of(5, 0)),
    "text under an image's name": ("jpg", lambda: b"<html>404 Not Found</html>"),
    "PostScript under an image's name": ("png", lambda: encoded("EPS")),
    "JPEG named .png": ("png", lambda: encoded("JPEG")),
    "truncated JPEG": ("jpg", lambda: half(encoded("JPEG"))),
    "truncated progressive JPEG": ("jpg", lambda: half(encoded("JPEG", progressive=True))),
    "truncated PNG": ("png", lambda: half(encoded("PNG"))),
    "truncated WebP": ("webp", lambda: half(encoded("WEBP"))),
    "truncated GIF": ("gif", lambda: half(encoded("GIF"))),
    "truncated TIFF": ("tif", lambda: half(encoded("TIFF"))),
    "truncated BMP": ("bmp", lambda: half(encoded("BMP"))),
    "JPEG whose second half is zeros (an unfinished download)": ("jpg", lambda: half(encoded("JPEG"), b"\0")),
    "PNG whose second half is zeros": ("png", lambda: half(encoded("PNG"), b"\0")),
    "PNG with a damaged byte": ("png", lambda: with_byte(encoded("PNG"))),
    "PNG with broken pixels under right checksums": (
        "png",
        lambda: png(99, 99, half(zlib.compress(bytes(9900)), b"?")),
    ),
    "PNG with fewer rows of pixels than its header says": ("png", lambda: png(99, 99, zlib.compress(bytes(5000)))),
    "JPEG with a damaged byte": ("jpg", lambda: with_byte(encoded("JPEG"))),
    "decompression bomb (PNG)": ("png", lambda: png(15_000, 15_000, zlib.compress(bytes(9)))),
    "decompression bomb (JPEG)": ("jpg", lambda: jpeg_of(60_000, 60_000)),
    "decompression bomb (GIF)": ("gif", lambda: b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + encoded("GIF")[10:]),
    "line of 1 x 100,000 pixels": ("png", lambda: encoded("PNG", Image.new("L", (1, 100_000)))),
    "animated GIF": ("gif", lambda: encoded("GIF", **frames())),
    "animated WebP": ("webp", lambda: encoded("WEBP", **frames(), lossless=True)),
    "animated PNG": ("png", lambda: encoded("PNG", **frames())),
    "CMYK JPEG": ("jpg", lambda: encoded("JPEG", PHOTO.convert("CMYK"))),
    "grayscale": ("jpg", lambda: encoded("JPEG", PHOTO.convert("L"))),
    "black and white": ("png", lambda: encoded("PNG", PHOTO.convert("1"))),
    "palette": ("png", lambda: encoded("PNG", PHOTO.convert("P"))),
    "transparency": ("png", lambda: encoded("PNG", Image.new("RGBA", (9, 9)))),
    "16-bit PNG": ("png", lambda: encoded("PNG", DEEP)),
    "16-bit TIFF": ("tif", lambda: encoded("TIFF", DEEP)),
    "32-bit floating-point TIFF": ("tif", lambda: encoded("TIFF", DEEP.convert("F"))),
    "EXIF-rotated": ("jpg", lambda: encoded("JPEG", exif=exif(6), quality=95)),
    "damaged EXIF": ("webp", lambda: encoded("WEBP", exif=b"Exif\0\0" + bytes(20))),
}


def write(path: Path, name: str) -> Path:
    suffix, content = CONTENTS[name]
    (file := path.with_suffix(f".{suffix}")).write_bytes(content())
    return file


def linked(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


def piped(path: Path) -> Path:
    os.mkfifo(path)
    return path


def forbidden(path: Path) -> Path:
    PHOTO.save(path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("whoever runs this may read every file")
    return path


def nested(path: Path) -> Path:
    path.mkdir()
    PHOTO.save(path / "inner.png")
    return path / "inner.png"


ENTRIES: dict[str, Callable[[Path], Path]] = {
    "file without permission to read": lambda folder: forbidden(folder / "bad.png"),
    "link to nothing": lambda folder: linked(folder / "bad.png", "nowhere.png"),
    "link to itself": lambda folder: linked(folder / "bad.png", "bad.png"),
    "named pipe": lambda folder: piped(folder / "bad.png"),
    "folder named like an image": lambda folder: nested(folder / "bad.png"),
}
FILES = ENTRIES | {name: lambda folder, name=name: write(folder / "bad", name) for name in CONTENTS}


def write_digits(folder: Path, per_class: dict[str, int], start: int = 0) -> Path:
    """Digits as PNG files, all of them different."""
    digits = iter(load_digits().images[start:])
    for name, count in per_class.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray((next(digits) * 15).astype(np.uint8)).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty digits to train on and eight to test on, in two classes."""
    write_digits(tmp_path / "set" / "train", {"a": 10, "b": 10})
    write_digits(tmp_path / "set" / "val", {"a": 4, "b": 4}, start=20)
    return tmp_path / "set"


def datamodule(folder: Path, **knobs: Any) -> DataModule:
    defaults: dict[str, Any] = {"augment": Augment(), "image_size": 8, "batch_size": 4, "seed": 0, "val_fraction": 0.2}
    defaults |= {"max_skipped": 0.5, "num_workers": 0, "source": lambda: image_folder(data_dir=str(folder))}
    return DataModule(**{**defaults, **knobs})


def used(data: DataModule) -> dict[str, list[str]]:
    """The names of each split's files."""
    data.setup()
    return {name: [Path(file).name for file in split.files or []] for name, split in data._splits.items()}


def table() -> dict[str, list[str]]:
    """Input -> what the table says becomes of it: default, skip, found."""
    section = (ROOT / "docs" / "images.md").read_text().split("## Bad images and labels")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows[2:]}


# ------------------------------------------------------------------------------------------------ files that are bad


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_found_when_the_table_says(folder: Path, name: str) -> None:
    default, skip, found = table()[name]
    clean = image_folder(data_dir=str(folder))
    path = str(FILES[name](folder / "train" / "a"))
    source = image_folder(data_dir=str(folder))
    assert path in (source.train.files or [])
    assert len(source.train) == len(clean.train) + 1

    reasons = {kind: [fault.path for fault in scan.find_bad_files(source, kind)] for kind in ("headers", "decode")}
    bad = [path.removeprefix(f"{folder}/")]
    assert reasons == {"headers": bad if found == "headers" else [], "decode": bad if default[:5] == "error" else []}
    data = datamodule(folder, on_error="skip")
    assert {"used": 1, "skipped": 0}[skip] == sum(len(s) for s in used(data).values()) - (
        len(clean.train) + len(clean.test)
    )
    if default.startswith("used"):
        assert read_image(path).shape[0] == 3
        for batch in data.train_dataloader():
            assert batch.images.shape[1:] == (3, 8, 8)
        for batch in data.loader("train"):
            assert batch.images.shape[1:] == (3, 8, 8)
        return
    assert default.startswith("error")
    with pytest.raises(UnreadableImage, match=f"^{path} can't be (read|decoded) "):
        read_image(path)
    with pytest.raises(ValueError, match=rf"1 of 29 .*data\.scan={found}[^$]*- {path}: [^$]*data\.on_error=skip"):
        datamodule(folder, scan=found).setup()
    datamodule(folder, scan="none").setup()


def test_the_odd_images_are_what_their_rows_say(tmp_path: Path) -> None:
    def pixels(name: str) -> torch.Tensor:
        return read_image(str(write(tmp_path / "image", name)))

    grey = np.asarray(PHOTO.convert("L"))
    assert (pixels("grayscale").float() - torch.tensor(grey)).abs().mean() < 5
    assert pixels("16-bit PNG")[0].tolist() == pixels("16-bit TIFF")[2].tolist() == (np.asarray(DEEP) // 257).tolist()
    assert (pixels("transparency") == 255).all()
    assert pixels("EXIF-rotated").shape == (3, 160, 107)
    first = torch.tensor(np.asarray(PHOTO)).permute(2, 0, 1)
    assert torch.equal(pixels("animated PNG"), first)
    assert torch.equal(pixels("animated WebP"), first)
    assert (pixels("animated GIF").float() - first).abs().mean() < 20
    assert (pixels("JPEG with a damaged byte").float() - first).abs().mean() < 60


# ------------------------------------------------------------------------------------- sets that are bad, and the rest


def refused(message: str, call: Callable[[], object]) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        call()


def listed(folder: Path, message: str) -> None:
    """Refused before any scan, whatever happens to bad images."""
    for on_error in ("raise", "skip"):
        refused(message, datamodule(folder, on_error=on_error, scan="none").setup)


def other_suffix(folder: Path) -> None:
    (folder / "train" / "a" / "notes.txt").write_text("no image")
    assert sum(map(len, used(datamodule(folder)).values())) == 28


def link_to_listed(folder: Path) -> None:
    (folder / "train" / "b" / "again.png").symlink_to(folder / "train" / "a" / "00.png")
    assert "again.png" not in map(os.path.basename, list_images(folder / "train", None)[1])


def missing(folder: Path) -> None:
    listed(folder / "missing", f"data_dir={folder}/missing is not a folder; set data_dir")


def no_classes(folder: Path) -> None:
    (folder / "flat").mkdir()
    listed(folder / "flat", "holds no class folders; expected .*CLASS/IMAGE")


def one_class(folder: Path) -> None:
    shutil.rmtree(folder / "train" / "b")
    listed(folder, "has the one class 'a'; classification needs two")


def empty_class(folder: Path) -> None:
    (folder / "train" / "c").mkdir()
    listed(folder, "the class folder .*/c has no images; fill it, remove it")


def foreign_class(folder: Path) -> None:
    write_digits(folder / "val", {"c": 1})
    listed(folder, "holds the class 'c', which train doesn't have")


def one_label(folder: Path) -> None:
    split = Split(None, torch.zeros(3).long(), [str(file) for file in sorted((folder / "train" / "a").iterdir())[:3]])
    source = Source("mine", ("a", "b"), 3, (0.5,) * 3, (0.5,) * 3, None, split, split)
    refused("mine has the one class 'a' to train on", datamodule(folder, source=lambda: source).setup)


def small_class(folder: Path) -> None:
    write_digits(folder / "train", {"c": 1})
    write_digits(folder / "val", {"c": 1})
    listed(folder, r"data\.val_fraction=0\.2 can't split .*the smallest of 1")


def bad_class(folder: Path) -> None:
    for file in (folder / "val" / "b").iterdir():
        file.write_bytes(b"")
    refused(r"4 of 28 images can't be used", datamodule(folder).setup)
    refused("leaves no image of the class 'b' in test", datamodule(folder, on_error="skip").setup)


def too_many(folder: Path) -> None:
    for name in ("00", "01"):
        (folder / "train" / "a" / f"{name}.png").write_bytes(b"")
    refused(r"2 of 28 images can't be used", datamodule(folder).setup)
    message = r"would skip 2 of 28 images \(7\.14%\), more than data\.max_skipped=0\.05 allows"
    refused(message, datamodule(folder, on_error="skip", max_skipped=0.05).setup)
    assert len(used(datamodule(folder, on_error="skip", max_skipped=2 / 28))["train"]) == 14


def idx(folder: Path, labels: list[int]) -> None:
    images = np.zeros((2, 28, 28), np.uint8)
    for part in ("train", "t10k"):
        shape = b"".join(length.to_bytes(4, "big") for length in images.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + shape + images.tobytes())
        count = len(labels).to_bytes(4, "big")
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + count + bytes(labels))
    file = folder / "train-labels-idx1-ubyte"
    message = (
        rf"{file} holds the label {max(labels)}; expected" if max(labels) > 9 else rf"2 images but {file} 3 labels"
    )
    refused(message, lambda: mnist(data_dir=str(folder)))


class Harmful:
    """Its pickle makes a file where it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def cifar_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = folder / datasets.CIFAR10.base_folder
    base.mkdir()
    for name, _ in datasets.CIFAR10.train_list + datasets.CIFAR10.test_list:
        (base / name).write_bytes(pickle.dumps({"data": Harmful(folder / "harm")}, protocol=2))
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/none.tar.gz")
    with pytest.raises(FileNotFoundError, match=r"cifar10 isn't in data_dir=.* and can't be downloaded"):
        cifar10(data_dir=str(folder))
    assert not (folder / "harm").exists()


def foreign_label(folder: Path) -> None:
    split = Split(torch.zeros(3, 1, 8, 8).byte(), torch.tensor([0, 1, 2]))
    for labels, reported in ((torch.tensor([0, 1, 2]), 2), (torch.tensor([0, 1, -1]), -1)):
        split = Split(torch.zeros(3, 1, 8, 8).byte(), labels)
        message = f"mine has the label {reported} in its train split, and 2 classes: labels are 0 to 1"
        refused(message, lambda split=split: Source("mine", ("a", "b"), 1, (0.5,), (0.5,), 8, split, split))  # type: ignore[misc]


def failure(loaded: Iterator[Any]) -> str:
    """What an iteration fails with. (With its traceback it would keep the workers alive.)"""
    try:
        list(loaded)
    except UnreadableImage as error:
        return str(error.with_traceback(None))
    raise AssertionError("nothing failed")


def breaks_later(folder: Path) -> None:
    data = datamodule(folder, on_error="skip", num_workers=2, eval_batch_size=1)
    data.setup()
    file = data._splits["train"].files[-1]  # type: ignore[index]
    Path(file).write_bytes(b"")
    message = failure(iter(data.train_dataloader()))
    assert re.fullmatch(rf"{file} can't be decoded \(the file is empty\); .*", message), "one line"


def vanishes(folder: Path) -> None:
    data = datamodule(folder, num_workers=1, batch_size=1)
    data.setup()
    loaded = iter(data.train_dataloader())
    next(loaded)
    folder.rename(folder.with_name("gone"))
    message = failure(loaded)
    assert message.startswith(f"{folder}/train/")
    assert "No such file" in message
    assert "restore it or its disk, and resume=auto resumes" in message


def other_images(folder: Path) -> None:
    data = datamodule(folder)
    data.setup()
    before = identity.run_identity({}, data)
    shutil.move(folder, moved := folder.with_name("moved"))
    same = datamodule(moved)
    same.setup()
    assert identity.incompatibilities(before, identity.run_identity({}, same)) == []
    (moved / "train" / "a" / "00.png").unlink()
    other = datamodule(moved)
    other.setup()
    reported = identity.incompatibilities(before, identity.run_identity({}, other))
    assert reported
    assert all(line.startswith("data: ") for line in reported)


SETS: dict[str, Callable[..., None]] = {
    "file with another suffix": other_suffix,
    "link to an image that is listed already": link_to_listed,
    "data_dir is missing": missing,
    "no class folders": no_classes,
    "one class folder": one_class,
    "empty class folder": empty_class,
    "class that only the test split has": foreign_class,
    "labels of one class only": one_label,
    "class too small to be split": small_class,
    "all images of a class are bad": bad_class,
    "more bad images than data.max_skipped": too_many,
    "idx file with a label above 9": lambda folder: idx(folder, [9, 10]),
    "idx files with different counts": lambda folder: idx(folder, [0, 1, 2]),
    "CIFAR file of another checksum, which may run code": cifar_code,
    "label out of range in a source of one's own": foreign_label,
    "file that breaks during training": breaks_later,
    "data folder that vanishes during training": vanishes,
    "images added or removed before a run is resumed": other_images,
}


@pytest.mark.parametrize("name", SETS)
def test_a_bad_set_is_treated_as_the_table_says(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"folder": folder, "monkeypatch": monkeypatch, "caplog": caplog}
    SETS[name](*[given[word] for word in SETS[name].__code__.co_varnames[: SETS[name].__code__.co_argcount]])


def test_every_row_of_the_table_is_done_and_every_test_has_its_row() -> None:
    rows = table()
    assert set(rows) == {*FILES, *SETS}
    assert {found for _, _, found in rows.values()} == {"headers", "decode", "listing", "loading", "-"}
    assert f"{MAX_PIXELS:,} pixels" in rows["decompression bomb (PNG)"][0]


# ---------------------------------------------------------------------------------------------- files that are left out


def test_files_left_out_are_counted_listed_and_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(folder / "train" / "a" / "bad", "truncated JPEG")
    (folder / "val" / "b" / "line\nbreak.png").write_bytes(b"")
    record = folder.parent / "run" / "skipped.csv"
    splits = used(datamodule(folder, on_error="skip", skipped_file=str(record)))
    assert {name: len(files) for name, files in splits.items()} == {"train": 16, "val": 4, "test": 8}
    assert scan.read_bad_files(record) == [
        ("train/a/bad.jpg", "train", "image file is truncated (29 bytes not processed)"),
        (r"val/b/line\nbreak.png", "test", "the file is empty"),
    ]
    assert f"skipped 2 of 30 images that can't be used, listed in {record}" in caplog.text
    assert f"{folder}/train/a/bad.jpg: " in caplog.text
    assert sorted(file.name for file in record.parent.iterdir()) == [".skipped.csv.lock", "skipped.csv"]


def batches(data: DataModule) -> list[TrainBatch]:
    data.setup()
    return list(data.train_dataloader())


def test_the_same_images_are_left_out_when_a_run_is_resumed_even_if_they_were_repaired(folder: Path) -> None:
    good = (folder / "train" / "a" / "03.png").read_bytes()
    (folder / "train" / "a" / "03.png").write_bytes(good[:50])
    knobs: dict[str, Any] = {"on_error": "skip", "skipped_file": str(folder.parent / "skipped.csv"), "num_workers": 2}
    before = batches(datamodule(folder, **knobs))
    (folder / "train" / "a" / "03.png").write_bytes(good)
    for data in (datamodule(folder, **knobs), datamodule(folder, **{**knobs, "num_workers": 0})):
        for one, other in zip(before, batches(data), strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.targets, other.targets)
    assert len(used(datamodule(folder, on_error="skip"))["train"]) == 16, "without the list it is an image again"


def rank(folder: str, record: str, answers: Any) -> None:
    reported: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: reported.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("vitlab").addHandler(handler)
    logging.getLogger("vitlab").setLevel(logging.INFO)
    splits = used(datamodule(Path(folder), on_error="skip", skipped_file=record))
    answers.put((splits, sum(line.startswith("read all bytes of") for line in reported)))


def test_of_several_ranks_one_scans_and_all_have_the_same_images(folder: Path) -> None:
    (folder / "train" / "b" / "07.png").write_bytes(b"")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    record = str(folder.parent / "run" / "skipped.csv")
    ranks = [context.Process(target=rank, args=(str(folder), record, answers)) for _ in range(2)]
    for process in ranks:
        process.start()
    (one, scans), (other, more) = answers.get(timeout=120), answers.get(timeout=120)
    for process in ranks:
        process.join()
    assert one == other
    assert scans + more == 1
    assert sum(len(files) for files in one.values()) == 27


def scanning_rank(folder: str, answers: Any) -> None:
    """A rank that looks at each file for some time, sends the number of files it has looked at, and what it logs."""
    looked, lines = list[str](), list[str]()

    def look(path: str) -> None:
        looked.append(path)
        time.sleep(0.02)

    vars(scan)["check_header"] = look
    file_list.WAIT = 0.1
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("vitlab").addHandler(handler)
    logging.getLogger("vitlab").setLevel(logging.INFO)
    datamodule(Path(folder)).setup()
    answers.put((len(looked), any("waiting for another process" in line for line in lines)))


@pytest.mark.parametrize("settled", [True, False])
def test_of_several_ranks_one_scans_and_the_others_wait_for_it(
    folder: Path, settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir() and settled)]:
        os.utime(path, (1e9, 1e9) if settled else None)
    monkeypatch.setenv("MASTER_PORT", "20001")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    ranks = [context.Process(target=scanning_rank, args=(str(folder), answers)) for _ in range(2)]
    for process in ranks:
        process.start()
    found = sorted(answers.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join()
    assert found == [(0, True), (28, False)]
    looked: list[str] = []
    monkeypatch.setattr(scan, "check_header", looked.append)
    monkeypatch.setenv("MASTER_PORT", "20002")
    datamodule(folder).setup()
    assert len(looked) == (0 if settled else 28), "a later run scans what may have changed"


def test_many_bad_images_are_all_listed_in_a_file_and_ten_on_the_screen(folder: Path) -> None:
    for file in [*(folder / "train" / "a").iterdir(), *(folder / "val" / "a").iterdir()]:
        file.write_bytes(b"no image")
    record = folder.parent / "run" / "skipped.csv"
    for _ in range(2):  # the run's folder may be there
        with pytest.raises(ValueError, match=r"14 of 28") as caught:
            datamodule(folder, skipped_file=str(record)).setup()
    assert str(caught.value).count("it is no image of the formats JPEG, PNG") == 10
    assert f"and 4 more, all listed in {record.with_name('bad_images.csv')}" in str(caught.value)
    assert len(scan.read_bad_files(record.with_name("bad_images.csv"))) == 14
    assert not record.exists(), "or a later run with skip would believe it"


def test_a_scan_logs_its_speed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        datamodule(folder).setup()
    assert re.search(r"read headers of 28 images in [\d.]+ s, \d+ a second", caplog.text)


def test_skipping_is_refused_for_what_is_no_folder_and_shares_outside_0_to_1(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.on_error=skip is for image folders, and digits is none"):
        datamodule(folder, source=digits, on_error="skip").setup()
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"max_skipped={share} must be at least 0 and below 1"):
            datamodule(folder, max_skipped=share)


@pytest.mark.parametrize("data_dir", [".", "set", "set/"])
def test_a_folder_named_from_here_is_found_below_its_common_folder(
    folder: Path, data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder / "train" / "a" / "03.png").write_bytes(b"")
    if data_dir == ".":
        monkeypatch.chdir(folder)
    record = folder.parent / "skipped.csv"
    used(datamodule(Path(data_dir), on_error="skip", skipped_file=str(record)))
    assert [row.path for row in scan.read_bad_files(record)] == ["train/a/03.png"]


@pytest.mark.parametrize("mode", ["headers", "decode"])
def test_a_limit_or_a_disk_that_fails_makes_no_file_bad(mode: scan.Scan, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "photo.jpg", "grayscale")
    split = Split(None, torch.zeros(1, dtype=torch.long), [str(tmp_path / "a" / "photo.jpg")])
    source = Source("a", ("a",), 3, (0.5,) * 3, (0.5,) * 3, None, split, split)
    assert scan.find_bad_files(source, mode) == []
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(lowest := os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))  # not one file more
    try:
        with pytest.raises(
            UnreadableImage, match=r"photo\.jpg can't be read \(Too many open files\)\. The image may be intact"
        ):
            scan.find_bad_files(source, mode)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    (tmp_path / "a").rename(tmp_path / "unplugged")
    with pytest.raises(UnreadableImage, match=r"No such file or directory.* repair that and start again"):
        scan.find_bad_files(source, mode)


def test_what_a_storage_says_of_a_row_makes_it_no_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: str) -> bytes:
        raise OSError("HTTP 503")  # without a number, as Pillow's of a damaged file

    monkeypatch.setattr(scan, "read_bytes", failing)
    with pytest.raises(UnreadableImage, match=r"HTTP 503\)\. The image may be intact"):
        scan.check_file("row", decode_all=True)


def test_names_of_skipped_files_are_listed_safely_and_found_again(folder: Path, tmp_path: Path) -> None:
    names = [b"=1+cmd|x.png", b"\x1b[2J\n.png", b"caf\xe9.png"]
    for name in names:
        (folder / "train" / "a" / os.fsdecode(name)).write_bytes(b"no image")
    source = image_folder(data_dir=str(folder))
    kept = len(source.train) - len(names)
    for _ in range(2):  # the scan, and the list that it wrote
        given: Any = {"on_error": "skip", "max_skipped": 1.0, "scan": "headers", "record": tmp_path / "bad.csv"}
        assert len(scan.drop_bad_files(source, **given).train) == kept
    listed = (tmp_path / "bad.csv").read_bytes()
    assert b"\x1b" not in listed
    assert b"\\x1b[2J\\n.png" in listed
    assert b"caf\\udce9.png" in listed


def test_rows_have_a_common_folder_too(parquet: Path, tmp_path: Path) -> None:
    source = huggingface(name=str(parquet), cache_dir=str(tmp_path))
    root = scan.common_folder(source)
    assert root.endswith("/")
    assert all(name.startswith(root) for split in source.splits.values() for name in split.files or [])


def test_headers_on_a_disk_that_waits_are_read_by_several_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread reads what is in memory: threads that take turns in Python cost three times as much."""
    readers = set[int]()

    def read_slowly(path: str) -> None:
        time.sleep(0.001)
        readers.add(threading.get_ident())

    for label in ("0", "1"):
        (tmp_path / label).mkdir()
        for number in range(200):
            (tmp_path / label / f"{number}.png").write_bytes(encoded("png", PHOTO.resize((4, 4))))
    source = image_folder(data_dir=str(tmp_path))
    monkeypatch.setattr(scan, "check_header", read_slowly)
    assert scan.find_bad_files(source, "headers") == []
    assert len(readers) > 2
