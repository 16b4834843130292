"""Image folders: layouts, classes, and files that are left out."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vitlab.data.sets import image_folder as sets
from vitlab.data.sets.image_folder import find_images, find_splits, image_folder, list_images
from vitlab.data.source import loader_facts


def write(folder: Path, per_class: dict[str, int]) -> Path:
    """Digits as PNG files, `per_class` of them per class folder."""
    digits = iter(load_digits().images)
    for name, count in per_class.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray((next(digits) * 15).astype("uint8"))
            image.save(folder / name / f"{number:02d}.png")
    return folder


def test_a_flat_folder_gives_a_fifth_of_each_class_to_the_test_split(tmp_path: Path) -> None:
    write(tmp_path, {"b": 10, "a": 20})
    source, again = image_folder(data_dir=str(tmp_path)), image_folder(data_dir=str(tmp_path))
    assert source.classes == ("a", "b")
    assert source.test.labels.bincount().tolist() == [4, 2]
    assert source.train.labels.bincount().tolist() == [16, 8]
    assert source.train.files == again.train.files
    assert not set(source.train.files or []) & set(source.test.files or [])
    files = sorted(str(file) for file in tmp_path.glob("*/*.png"))
    labels = [int(Path(file).parent.name == "b") for file in files]
    _, held_out = train_test_split(range(30), test_size=6, stratify=labels, random_state=0)
    assert sorted(map(str, source.test.files or [])) == [files[at] for at in sorted(held_out)], (
        "as scikit-learn's, seed 0"
    )


def test_imagenets_published_validation_is_the_test_split(tmp_path: Path) -> None:
    write(tmp_path / "train", {"a": 5, "b": 5})
    write(tmp_path / "val", {"a": 2, "b": 3})
    (tmp_path / "test").mkdir()  # ImageNet's: images without classes
    (tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG").touch()
    source = image_folder(data_dir=str(tmp_path))
    assert (len(source.train), len(source.test)) == (10, 5)
    assert all("/val/" in path for path in source.test.files or [])


@pytest.mark.parametrize(
    ("folders", "val_folder", "size"),
    [
        ({"": 13}, "auto", (20, False)),  # 6 of 26 for testing
        ({"train": 5, "val": 2}, "auto", (10, False)),
        ({"train": 6, "val": 2}, "val", (9, True)),
        ({"train": 5, "val": 2, "test": 2}, "auto", (10, True)),
        ({"test": 5}, "auto", (None, False)),  # which is refused
    ],
)
def test_the_train_images_are_counted_before_they_are_loaded(
    folders: dict[str, int], val_folder: Any, size: tuple[int | None, bool], tmp_path: Path
) -> None:
    for name, count in folders.items():
        write(tmp_path / name, {"a": count, "b": count})
    settings = {"data_dir": str(tmp_path), "classes": None, "test_fraction": 0.2, "val_folder": val_folder}
    assert loader_facts(image_folder).size(settings) == size
    if size[0] is not None:
        source = image_folder(**settings)
        assert (len(source.train), source.val is not None) == size


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "VALID", "testing"), ("train", "dev", "Test")]
)
def test_folders_of_splits_are_known_by_their_usual_names(names: tuple[str, str, str], tmp_path: Path) -> None:
    for name, count in zip(names, (4, 3, 2), strict=True):
        write(tmp_path / name, {"a": count, "b": count})
    source = image_folder(data_dir=str(tmp_path))
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 8, "val": 6, "test": 4}


def test_a_folder_for_validation_alone_is_the_test_split_or_not(tmp_path: Path) -> None:
    write(tmp_path / "train", {"a": 10, "b": 10})
    write(tmp_path / "val", {"a": 2, "b": 3})
    source = image_folder(data_dir=str(tmp_path), val_folder="val")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 16, "val": 5, "test": 4}


def test_folders_that_are_not_classes_are_refused(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write(tmp_path / "both" / name, {"cat": 2, "dog": 2})
    with pytest.raises(ValueError, match=r"all of first, second hold the same folders, cat, dog"):
        image_folder(data_dir=str(tmp_path / "both"))
    write(tmp_path / "nested" / "archive" / "train", {"cat": 2, "dog": 2})
    write(tmp_path / "nested" / "archive" / "test", {"cat": 2, "dog": 2})
    with pytest.raises(ValueError, match=r"has the one folder archive; set data_dir=.*nested/archive"):
        image_folder(data_dir=str(tmp_path / "nested"))
    write(tmp_path / "untrained" / "val", {"cat": 2, "dog": 2})
    with pytest.raises(ValueError, match=r"has the split val but no train"):
        image_folder(data_dir=str(tmp_path / "untrained"))
    for name in ("train", "Train"):
        write(tmp_path / "twice" / name, {"cat": 2, "dog": 2})
    with pytest.raises(ValueError, match=r"has both Train and train"):
        image_folder(data_dir=str(tmp_path / "twice"))


def test_a_class_without_images_in_test_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "train", {"a": 3, "b": 3, "c": 3})
    write(tmp_path / "test", {"a": 1, "c": 1})
    with caplog.at_level(logging.INFO):
        source = image_folder(data_dir=str(tmp_path))
    assert source.test.labels.tolist() == [0, 2]
    assert "has no images of 1 of 3 classes: b" in caplog.text
    assert "3 classes in" in caplog.text


def test_linked_folders_are_followed_and_loops_refused(tmp_path: Path) -> None:
    write(tmp_path / "data", {"a": 3, "b": 3})
    write(tmp_path, {"elsewhere": 2})
    (tmp_path / "data" / "a" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "b" / "again").symlink_to(tmp_path / "data" / "a")  # images that are listed anyway
    _, files, labels, *_ = list_images(tmp_path / "data", None)
    assert (len(files), labels.tolist().count(0)) == (8, 5)
    (tmp_path / "data" / "b" / "again").unlink()
    (tmp_path / "data" / "b" / "loop").symlink_to(tmp_path / "data" / "b")
    with pytest.raises(ValueError, match="is a link to a folder that contains it"):
        list_images(tmp_path / "data", None)


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read everything")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "b").chmod(0)
    with pytest.raises(ValueError, match=r"b can't be read: Permission denied"):
        image_folder(data_dir=str(tmp_path))


def test_train_alone_is_cut_and_a_class_may_be_called_train(tmp_path: Path) -> None:
    write(tmp_path / "alone" / "train", {"a": 2, "b": 2})
    assert find_splits(tmp_path / "alone") == {"train": tmp_path / "alone" / "train"}
    write(tmp_path / "vehicles", {"bus": 2, "train": 2})
    assert find_splits(tmp_path / "vehicles") == {"train": tmp_path / "vehicles"}


def test_images_are_found_in_nested_folders_and_sorted(tmp_path: Path) -> None:
    write(tmp_path, {"b": 2, "a/z": 1, "a/y/x": 2})
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "a" / ".hidden.png").touch()
    names, files, labels, *_ = list_images(tmp_path, None)
    assert names == ["a", "b"]
    assert labels.tolist() == [0, 0, 0, 1, 1]
    assert [str(Path(file).relative_to(tmp_path)) for file in files] == [
        "a/y/x/00.png",
        "a/y/x/01.png",
        "a/z/00.png",
        "b/00.png",
        "b/01.png",
    ]


def test_classes_select_and_order(tmp_path: Path) -> None:
    write(tmp_path, {"a": 1, "b": 1, "c": 1})
    names, files, labels, *_ = list_images(tmp_path, ["c", "a"], None)
    assert names == ["c", "a"]
    assert [Path(file).parent.name for file in files] == ["c", "a"]
    assert labels.tolist() == [0, 1]


def test_a_link_to_a_listed_image_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "set", {"a": 2, "b": 2})
    write(tmp_path / "elsewhere", {"x": 1})
    (tmp_path / "set" / "b" / "again.png").symlink_to(tmp_path / "set" / "a" / "00.png")
    (tmp_path / "set" / "b" / "foreign.png").symlink_to(tmp_path / "elsewhere" / "x" / "00.png")
    _, files, *_ = list_images(tmp_path / "set", None)
    assert [Path(file).name for file in files] == ["00.png", "01.png", "00.png", "01.png", "foreign.png"]


def test_an_unknown_class_gets_a_suggestion(tmp_path: Path) -> None:
    write(tmp_path, {"animals": 1, "plants": 1})
    with pytest.raises(ValueError, match="no class 'animal'; did you mean 'animals'"):
        list_images(tmp_path, ["animal", "plants"])
    with pytest.raises(ValueError, match="names a class twice"):
        list_images(tmp_path, ["plants", "plants"])


def test_folders_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data_dir=.*is not a folder"):
        find_splits(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="holds no class folders"):
        list_images(tmp_path, None)
    write(tmp_path, {"a": 1})
    with pytest.raises(ValueError, match="the one class 'a'"):
        list_images(tmp_path, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no images"):
        list_images(tmp_path, None)
    write(tmp_path, {"b": 1})
    (tmp_path / "b" / "broken.png").write_bytes(b"no image")
    assert len(list_images(tmp_path, ["a", "b"])[1]) == 3, "the scan reports it"


def test_a_class_that_only_the_test_split_has_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train", {"a": 2, "b": 2})
    write(tmp_path / "val", {"a": 2, "b": 2, "c": 2})
    with pytest.raises(ValueError, match="the class 'c', which train doesn't have"):
        image_folder(data_dir=str(tmp_path))
    assert len(image_folder(data_dir=str(tmp_path), classes=["a", "b"]).test) == 4


def test_a_class_too_small_to_split_names_the_knob(tmp_path: Path) -> None:
    write(tmp_path, {"a": 1, "b": 9})
    with pytest.raises(ValueError, match=r"data\.source\.test_fraction=0\.2 .* the smallest of 1"):
        image_folder(data_dir=str(tmp_path))


def settle(folder: Path) -> None:
    """Let a tree's folders be changed long ago."""
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        os.utime(path, (1e9, 1e9))


def test_a_listing_is_read_from_the_disk_until_a_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "train", {"a": 2, "b/x": 2})
    (tmp_path / "train" / "a" / "link.png").symlink_to(min((tmp_path / "train" / "a").iterdir()))
    listed: list[Path] = []

    def list_and_note(folder: Path, *others: Any) -> Any:
        listed.append(folder)
        return list_images(folder, *others)

    monkeypatch.setattr(sets, "list_images", list_and_note)
    find_images(tmp_path / "train", None)
    find_images(tmp_path / "train", None)
    assert len(listed) == 2, "a folder that has just changed may change again within the same tick of its clock"
    settle(tmp_path)
    first = find_images(tmp_path / "train", None)
    caplog.clear()
    again = find_images(tmp_path / "train", None)
    assert len(listed) == 3
    assert (again.names, list(again.files), again.labels.tolist()) == (first.names, list(first.files), [0, 0, 1, 1])
    assert again.files.state == first.files.state != ""
    assert again.files.common_folder() == str(tmp_path / "train")
    assert "skipped 1 links" in caplog.text, "also of a listing that was kept"
    assert len(find_images(tmp_path / "train", ["b", "a"]).files) == 4
    assert len(listed) == 4, "other classes"
    shutil.copyfile(first.files[0], tmp_path / "train" / "b" / "x" / "new.png")
    assert len(find_images(tmp_path / "train", None).files) == 5
    assert len(listed) == 5
