"""Image folders with one folder per class."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitlab.config.bounds import Fraction, check_bounds
from vitlab.config.printable import format_names
from vitlab.config.schema import suggest
from vitlab.data.source import IMAGENET_MEAN, IMAGENET_STD, Facts, Source, Split, folder_label
from vitlab.runs.record import muted_logs

if TYPE_CHECKING:
    from vitlab.data.file_list import Listing

log = logging.getLogger(__name__)

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def problems(*, data_dir: str, **_: Any) -> Iterator[str]:
    if data_dir and not Path(data_dir).is_dir():
        yield f"data_dir={data_dir} is not a folder; data=image_folder wants the folder of the images there"


def count(
    *, data_dir: str = "", classes: list[str] | None, test_fraction: float, val_folder: str, **_: Any
) -> tuple[int | None, bool]:
    """Count the train images, unless something is wrong with the folder; the run reads the same listing."""
    with muted_logs(__name__, "vitlab.data.file_list"), suppress(OSError, ValueError):
        folders = find_splits(Path(data_dir or "?"), val_folder)
        images = len(find_images(folders["train"], classes).files)
        return images - (0 if "test" in folders else math.ceil(images * test_fraction)), "val" in folders
    return None, False


@Facts(channels=3, in_memory=False, problems=problems, count=count, label=folder_label)
@check_bounds
def image_folder(
    *,
    data_dir: str,
    classes: list[str] | None = None,
    test_fraction: Fraction = 0.2,
    val_folder: Literal["auto", "val"] = "auto",
) -> Source:
    """Images in one folder per class: `data_dir`/train/CLASS/... with val/ or test/, or `data_dir`/CLASS/...

    Args:
        data_dir: Its folders train, val and test are the splits (in any case; also training, valid, validation, dev,
            testing). One without class folders, as ImageNet's test/, is ignored.
        classes: Class folders to use, in the order of their labels; None: all of train, sorted.
        test_fraction: Share of the training images held out for testing if there is no test split; stratified, the
            same in every run.
        val_folder: The split that val/ is: `val` for validation; `auto`: for validation if there is test/, otherwise
            for testing, as ImageNet's published validation images are used.
    """
    from vitlab.data.splitting import hold_out

    folders = find_splits(Path(data_dir), val_folder)
    train = find_images(folders["train"], classes)
    splits, names = {"train": Split(None, train.labels, train.files)}, train.names
    log.info("%d classes in %s: %s", len(names), folders["train"], format_names(names))
    for name in ("val", "test"):
        if name in folders:
            listing = find_images(folders[name], classes, expected=names)
            splits[name] = Split(None, listing.labels, listing.files)
            log.info("%s split: %s, %d images", name, folders[name], len(listing.files))
    if "test" not in splits:
        knob = "data.source.test_fraction"
        splits["train"], splits["test"] = hold_out(splits["train"], test_fraction, seed=0, knob=knob)
        log.info("%s has no test split: %d images of train are held out", data_dir, len(splits["test"]))
    parts: Any = splits  # of the arguments train, val and test
    return Source("image_folder", tuple(names), 3, IMAGENET_MEAN, IMAGENET_STD, None, **parts)


def find_splits(root: Path, val_folder: str = "auto") -> dict[str, Path]:
    """The folder of each split's class folders; those of `root` itself are of train. Splits without any are left out.

    Raises `ValueError` if two folders are of one split, or if `root` is laid out otherwise.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data_dir={root} is not a folder; set data_dir to the folder of the images")
    inside = class_folders(root)
    splits: dict[str, Path] = {}
    for name in inside:
        split = SPLIT_NAMES.get(name.lower())
        if split is None or not class_folders(root / name):
            continue
        if split in splits:
            raise ValueError(f"data_dir={root} has both {splits[split].name} and {name}; remove or rename one")
        splits[split] = root / name
    if "train" not in splits:
        if splits:
            folders = format_names([folder.name for folder in splits.values()])
            raise ValueError(f"data_dir={root} has the split {folders} but no train; name that folder train")
        check_class_folders(root, inside)
        return {"train": root}
    if others := [name for name in inside if SPLIT_NAMES.get(name.lower()) is None]:
        log.warning("%s has train and is laid out in splits; not used: %s", root, format_names(others))
    if "val" in splits and "test" not in splits and val_folder == "auto":
        splits["test"] = splits.pop("val")
        log.info("%s is the test split; data.source.val_folder=val validates on it", splits["test"])
    return splits


def check_class_folders(root: Path, names: list[str]) -> None:
    """Raise `ValueError` for folders that are no classes: all hold the same folders, or there is only one."""
    inner = [class_folders(root / name) for name in names]
    if len(names) > 1 and len(inner[0]) > 1 and all(folders == inner[0] for folders in inner):
        raise ValueError(
            f"data_dir={root}: all of {format_names(names)} hold the same folders, {format_names(inner[0])}: are these "
            f"the classes? set data_dir={root / names[0]}, or name the folders of splits train, val and test"
        )
    if len(names) == 1 and len(inner[0]) > 1:
        raise ValueError(f"data_dir={root} has the one folder {names[0]}; set data_dir={root / names[0]}")


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, without hidden ones."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")


def find_images(folder: Path, classes: list[str] | None, expected: list[str] | None = None) -> "Listing":
    """The listing of `list_images`, which is kept on disk until a folder changes."""
    from vitlab.data.file_list import load_listing

    key = f"{folder.absolute()} {classes} {expected}"
    return load_listing(key, lambda: list_images(folder.absolute(), classes, expected))


def list_images(folder: Path, classes: list[str] | None, expected: list[str] | None = None) -> "Listing":
    """Class names, image paths and labels, by class and then by path; `expected` are the classes of train.

    Links to images that are listed anyway are skipped: the same image must not be in train and in test. A class may
    have no images in a split other than train.
    """
    import numpy as np

    from vitlab.data.file_list import FileList, Listing, folders_state, images_below

    names = class_names(folder, classes, expected)
    times, notes = {str(folder): folder.stat().st_mtime_ns}, list[str]()
    by_link, skipped = set[str](), dict[str, None]()
    below = [images_below(str(folder / name), times, by_link) if (folder / name).is_dir() else [] for name in names]
    images = [sorted(own) for own in below]
    if by_link:  # following every path is slow
        targets = {os.path.realpath(path) for own in images for path in own if path not in by_link}
        for path in [path for own in images for path in own if path in by_link]:
            if (target := os.path.realpath(path)) in targets:
                skipped[path] = None
            targets.add(target)
        images = [[path for path in own if path not in skipped] for own in images]
    labels = np.repeat(np.arange(len(names)), [len(own) for own in images])
    empty = [name for name, own in zip(names, images, strict=True) if not own]
    if empty and expected is None:
        remedy = "fill it, remove it or choose others in data.source.classes"
        raise ValueError(f"data_dir: the class folder {folder / empty[0]} has no images; {remedy}")
    if empty:
        notes.append(f"{folder} has no images of {len(empty)} of {len(names)} classes: {format_names(empty)}")
    if skipped:
        notes.append(f"skipped {len(skipped)} links to images that are listed already: {format_names([*skipped], 3)}")
    return Listing(names, FileList(chain.from_iterable(images), folders_state(times)), labels, times, notes)


def class_names(folder: Path, classes: list[str] | None, expected: list[str] | None) -> list[str]:
    existing = class_folders(folder)
    if not existing:
        from vitlab.data.file_list import IMAGE_SUFFIXES

        layout = f"{folder}/CLASS/IMAGE with one of {' '.join(IMAGE_SUFFIXES)}"
        raise FileNotFoundError(f"data_dir: {folder} holds no class folders; expected {layout}")
    names = list(expected or classes or existing)
    if expected and not classes and (extra := sorted(set(existing) - set(expected))):
        raise ValueError(f"data_dir: {folder} holds the class {extra[0]!r}, which train doesn't have")
    for name in [] if expected else names:  # a split other than train may lack classes
        if name not in existing:
            hint = suggest(name, existing) or f"; there are {', '.join(existing)}"
            raise ValueError(f"data.source.classes: {folder} has no class {name!r}{hint}")
    if len(set(names)) != len(names):
        raise ValueError(f"data.source.classes={names} names a class twice")
    if len(names) < 2:
        raise ValueError(f"data_dir: {folder} has the one class {names[0]!r}; classification needs two")
    return names
