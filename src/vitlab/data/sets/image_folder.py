"""A folder of images, one folder per class: its layouts, its classes and the files it leaves out."""

import difflib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitlab.config.bounds import Fraction, check_bounds
from vitlab.data.source import IMAGENET_MEAN, IMAGENET_STD, Facts, Source, Split, folder_label

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")


def problems(*, data_dir: str, **_: Any) -> Iterator[str]:
    if data_dir and not Path(data_dir).is_dir():
        yield f"data_dir={data_dir} is not a folder; data=image_folder wants the folder of the images there"


@Facts(channels=3, in_memory=False, problems=problems, label=folder_label)
@check_bounds
def image_folder(
    *, data_dir: str, classes: list[str] | None = None, max_pixels: int | None = None, test_fraction: Fraction = 0.2
) -> Source:
    """A folder of images, one folder per class: `data_dir`/train/CLASS/... with val/ or test/, or CLASS/...

    Args:
        data_dir: With train/ next to test/ or val/, those are the splits (ImageNet's published val/ is the
            test split; its own test/ has no classes and is ignored). Otherwise a stratified
            `test_fraction` with a fixed seed is the test split.
        classes: Which class folders, in the order of their labels; None: all, sorted.
        max_pixels: Leave out images with more pixels; reads every file's header, so None is faster.
        test_fraction: Share of the images that becomes the test split, if the folder has none.
    """
    import torch

    from vitlab.data.splitting import stratified_split

    train_dir, test_dir = find_splits(Path(data_dir))
    names, files, labels = list_images(train_dir, classes, max_pixels)
    train = Split(None, torch.tensor(labels), files)
    if test_dir is None:
        kept, out = stratified_split(train.labels, test_fraction, seed=0, knob="data.source.test_fraction")
        train, test = train.subset(kept), train.subset(out)
        log.info("%s has no test split: %d of %d images became one", data_dir, len(out), len(out) + len(kept))
    else:
        _, files, labels = list_images(test_dir, classes, max_pixels, expected=names)
        test = Split(None, torch.tensor(labels), files)
        log.info("test split: %s", test_dir)
    return Source("image_folder", tuple(names), 3, IMAGENET_MEAN, IMAGENET_STD, None, train, test)


def find_splits(root: Path) -> tuple[Path, Path | None]:
    """The folders that hold the class folders of train and of test (None: test is to be cut from train)."""
    if not root.is_dir():
        raise FileNotFoundError(f"data_dir={root} is no folder; set data_dir to the folder of the images")
    train, test, val = root / "train", root / "test", root / "val"
    held_out = [folder for folder in (test, val) if class_folders(folder)]  # ImageNet's test has no classes
    if train.is_dir() and held_out:
        if len(held_out) == 2:
            log.info("%s is the test split and %s is not used: validation is cut from train", test, val)
        return train, held_out[0]
    return train if train.is_dir() and class_folders(root) == ["train"] else root, None


def class_folders(folder: Path) -> list[str]:
    """Names of the folders inside, sorted, without hidden ones; empty if `folder` doesn't exist."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")


def list_images(
    folder: Path, classes: list[str] | None, max_pixels: int | None, expected: list[str] | None = None
) -> tuple[list[str], list[str], list[int]]:
    """Class names, image paths and labels, by class and then by path; `expected` are the classes of train."""
    names = class_names(folder, classes, expected)
    per_class = [_images_below(folder / name) for name in names]
    links = {path for paths in per_class for path in paths if Path(path).is_symlink()}
    listed = {os.path.realpath(path) for paths in per_class for path in paths if path not in links}
    files, labels, linked, large = list[str](), list[int](), list[str](), list[str]()
    for label, (name, paths) in enumerate(zip(names, per_class, strict=True)):
        before = len(files)
        for path in paths:
            if path in links:  # the same picture must not be in train and in test
                target = os.path.realpath(path)
                if target in listed:
                    linked.append(path)
                    continue
                listed.add(target)
            if max_pixels is not None and _pixels(path) > max_pixels:
                large.append(path)
                continue
            files.append(path)
            labels.append(label)
        if len(files) == before:
            reason = f" (data.source.max_pixels={max_pixels} left out all {len(paths)})" if paths else ""
            remedy = "fill it, remove it or choose others in data.source.classes"
            raise ValueError(f"data_dir: the class folder {folder / name} has no images{reason}; {remedy}")
    large_images = f"images of more than data.source.max_pixels={max_pixels}"
    for skipped, what in ((linked, "links to images that are listed already"), (large, large_images)):
        if skipped:
            more = ", ..." if len(skipped) > 3 else ""
            log.info("left out %d %s: %s%s", len(skipped), what, ", ".join(skipped[:3]), more)
    return names, files, labels


def class_names(folder: Path, classes: list[str] | None, expected: list[str] | None) -> list[str]:
    existing = class_folders(folder)
    if not existing:
        layout = f"{folder}/CLASS/IMAGE with one of {' '.join(IMAGE_SUFFIXES)}"
        raise FileNotFoundError(f"data_dir: {folder} holds no class folders; expected {layout}")
    names = list(expected or classes or existing)
    if expected and not classes and (extra := sorted(set(existing) - set(expected))):
        raise ValueError(f"data_dir: {folder} holds the class {extra[0]!r}, which train doesn't have")
    for name in names:
        if name not in existing:
            close = difflib.get_close_matches(name, existing, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(existing)}"
            raise ValueError(f"data.source.classes: {folder} has no class {name!r}; {hint}")
    if len(set(names)) != len(names):
        raise ValueError(f"data.source.classes={names} names a class twice")
    if len(names) < 2:
        raise ValueError(f"data_dir: {folder} has the one class {names[0]!r}; classification needs two")
    return names


def _images_below(folder: Path) -> list[str]:
    paths = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        paths += [os.path.join(parent, name) for name in files if name[0] != "."]  # noqa: PTH118 a million
    return sorted(path for path in paths if path.lower().endswith(IMAGE_SUFFIXES))


def _pixels(path: str) -> float:
    """Width times height as the header says; infinite if Pillow refuses the size, 0 if it can't be read."""
    from PIL import Image

    from vitlab.data.decode import FORMATS, open_regular

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
                return image.width * image.height
    except Image.DecompressionBombError:
        return float("inf")
    except Exception:  # a decoder meets any bytes
        return 0
