"""Image folders with one folder per class."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitlab.config.bounds import Fraction, check_bounds
from vitlab.config.schema import suggest
from vitlab.data.source import IMAGENET_MEAN, IMAGENET_STD, Facts, Source, Split, folder_label

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")


def problems(*, data_dir: str, **_: Any) -> Iterator[str]:
    if data_dir and not Path(data_dir).is_dir():
        yield f"data_dir={data_dir} is not a folder; data=image_folder wants the folder of the images there"


@Facts(channels=3, in_memory=False, problems=problems, label=folder_label)
@check_bounds
def image_folder(*, data_dir: str, classes: list[str] | None = None, test_fraction: Fraction = 0.2) -> Source:
    """Images in one folder per class: `data_dir`/train/CLASS/... with val/ or test/, or `data_dir`/CLASS/...

    Args:
        data_dir: If it has train/, its test/ or val/ is the test split. (ImageNet's test/ has no classes: its published
            val/ is.) Otherwise, a fixed stratified `test_fraction` is.
        classes: Class folders to use, in the order of their labels; None: all, sorted.
        test_fraction: Share of the images that becomes the test split, if the folder has none.
    """
    import torch

    from vitlab.data.splitting import stratified_split

    train_dir, test_dir = find_splits(Path(data_dir))
    names, files, labels = list_images(train_dir, classes)
    train = Split(None, torch.tensor(labels), files)
    if test_dir is None:
        kept, out = stratified_split(train.labels, test_fraction, seed=0, knob="data.source.test_fraction")
        train, test = train.subset(kept), train.subset(out)
        log.info("%s has no test split: %d of %d images are held out", data_dir, len(out), len(out) + len(kept))
    else:
        _, files, labels = list_images(test_dir, classes, expected=names)
        test = Split(None, torch.tensor(labels), files)
        log.info("test split: %s", test_dir)
    return Source("image_folder", tuple(names), 3, IMAGENET_MEAN, IMAGENET_STD, None, train, test)


def find_splits(root: Path) -> tuple[Path, Path | None]:
    """The folders with the class folders of train and of test; None if test is held out from train."""
    if not root.is_dir():
        raise FileNotFoundError(f"data_dir={root} is no folder; set data_dir to the folder of the images")
    train, test, val = root / "train", root / "test", root / "val"
    held_out = [folder for folder in (test, val) if class_folders(folder)]  # ImageNet's test has no classes
    if train.is_dir() and held_out:
        if len(held_out) == 2:
            log.info("%s is the test split and %s is not used: validation is held out from train", test, val)
        return train, held_out[0]
    return train if train.is_dir() and class_folders(root) == ["train"] else root, None


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, without hidden ones; none if it doesn't exist."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")


def list_images(
    folder: Path, classes: list[str] | None, expected: list[str] | None = None
) -> tuple[list[str], list[str], list[int]]:
    """Class names, image paths and labels, by class and then by path; `expected` are the classes of train."""
    names = class_names(folder, classes, expected)
    per_class = [images_below(folder / name) for name in names]
    links = {path for paths in per_class for path in paths if Path(path).is_symlink()}
    targets = {os.path.realpath(path) for paths in per_class for path in paths if path not in links}
    files, labels, skipped = list[str](), list[int](), list[str]()
    for label, (name, paths) in enumerate(zip(names, per_class, strict=True)):
        before = len(files)
        for path in paths:
            if path in links:  # the same image must not be in train and in test
                target = os.path.realpath(path)
                if target in targets:
                    skipped.append(path)
                    continue
                targets.add(target)
            files.append(path)
            labels.append(label)
        if len(files) == before:
            remedy = "fill it, remove it or choose others in data.source.classes"
            raise ValueError(f"data_dir: the class folder {folder / name} has no images; {remedy}")
    if skipped:
        examples = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        log.info("skipped %d links to images that are listed already: %s", len(skipped), examples)
    return names, files, labels


def class_names(folder: Path, classes: list[str] | None, expected: list[str] | None) -> list[str]:
    if not (existing := class_folders(folder)):
        layout = f"{folder}/CLASS/IMAGE with one of {' '.join(IMAGE_SUFFIXES)}"
        raise FileNotFoundError(f"data_dir: {folder} holds no class folders; expected {layout}")
    names = list(expected or classes or existing)
    if expected and not classes and (extra := sorted(set(existing) - set(expected))):
        raise ValueError(f"data_dir: {folder} holds the class {extra[0]!r}, which train doesn't have")
    for name in names:
        if name not in existing:
            hint = suggest(name, existing) or f"; there are {', '.join(existing)}"
            raise ValueError(f"data.source.classes: {folder} has no class {name!r}{hint}")
    if len(set(names)) != len(names):
        raise ValueError(f"data.source.classes={names} names a class twice")
    if len(names) < 2:
        raise ValueError(f"data_dir: {folder} has the one class {names[0]!r}; classification needs two")
    return names


def images_below(folder: Path) -> list[str]:
    paths = list[str]()
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        paths += [os.path.join(parent, name) for name in files if name[0] != "."]  # noqa: PTH118 a million
    return sorted(path for path in paths if path.lower().endswith(IMAGE_SUFFIXES))
