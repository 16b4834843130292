"""Image folders: layouts, classes, and files that are left out."""

import logging
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vitlab.data.sets.image_folder import find_splits, image_folder, list_images


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


def test_imagenets_published_validation_is_the_test_split(tmp_path: Path) -> None:
    write(tmp_path / "train", {"a": 5, "b": 5})
    write(tmp_path / "val", {"a": 2, "b": 3})
    (tmp_path / "test").mkdir()  # ImageNet's: images without classes
    (tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG").touch()
    source = image_folder(data_dir=str(tmp_path))
    assert (len(source.train), len(source.test)) == (10, 5)
    assert all("/val/" in path for path in source.test.files or [])


def test_a_labelled_test_folder_goes_before_val_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train", "val", "test"):
        write(tmp_path / name, {"a": 2, "b": 2})
    with caplog.at_level(logging.INFO):
        assert find_splits(tmp_path) == (tmp_path / "train", tmp_path / "test")
    assert "val is not used" in caplog.text


def test_train_alone_is_cut_and_a_class_may_be_called_train(tmp_path: Path) -> None:
    write(tmp_path / "alone" / "train", {"a": 2, "b": 2})
    assert find_splits(tmp_path / "alone") == (tmp_path / "alone" / "train", None)
    write(tmp_path / "vehicles", {"bus": 2, "train": 2})
    assert find_splits(tmp_path / "vehicles") == (tmp_path / "vehicles", None)


def test_images_are_found_in_nested_folders_and_sorted(tmp_path: Path) -> None:
    write(tmp_path, {"b": 2, "a/z": 1, "a/y/x": 2})
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "a" / ".hidden.png").touch()
    names, files, labels = list_images(tmp_path, None)
    assert names == ["a", "b"]
    assert labels == [0, 0, 0, 1, 1]
    assert [str(Path(file).relative_to(tmp_path)) for file in files] == [
        "a/y/x/00.png",
        "a/y/x/01.png",
        "a/z/00.png",
        "b/00.png",
        "b/01.png",
    ]


def test_classes_select_and_order(tmp_path: Path) -> None:
    write(tmp_path, {"a": 1, "b": 1, "c": 1})
    names, files, labels = list_images(tmp_path, ["c", "a"], None)
    assert names == ["c", "a"]
    assert [Path(file).parent.name for file in files] == ["c", "a"]
    assert labels == [0, 1]


def test_a_link_to_a_listed_image_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "set", {"a": 2, "b": 2})
    write(tmp_path / "elsewhere", {"x": 1})
    (tmp_path / "set" / "b" / "again.png").symlink_to(tmp_path / "set" / "a" / "00.png")
    (tmp_path / "set" / "b" / "foreign.png").symlink_to(tmp_path / "elsewhere" / "x" / "00.png")
    _, files, _ = list_images(tmp_path / "set", None)
    assert [Path(file).name for file in files] == ["00.png", "01.png", "00.png", "01.png", "foreign.png"]


def test_an_unknown_class_gets_a_suggestion(tmp_path: Path) -> None:
    write(tmp_path, {"animals": 1, "plants": 1})
    with pytest.raises(ValueError, match="no class 'animal'; did you mean 'animals'"):
        list_images(tmp_path, ["animal", "plants"])
    with pytest.raises(ValueError, match="names a class twice"):
        list_images(tmp_path, ["plants", "plants"])


def test_folders_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data_dir=.*is no folder"):
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
