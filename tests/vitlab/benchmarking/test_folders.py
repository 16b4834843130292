"""The loaders of a folder of JPEG files: all of them read the same files, taken from as many classes as can be."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from vitlab.benchmarking.folders import JpegFolder, jpeg_files, linked
from vitlab.benchmarking.images import photographs
from vitlab.data.decode import quiet


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 classes of one file or two, as .JPEG, without files to validate; one class has no JPEG file."""
    root = tmp_path_factory.mktemp("many")
    photographs(root / "made", 60)
    for number, file in enumerate(jpeg_files(root / "made" / "train")):
        place = root / "set" / "train" / f"n{number % 40:03}"
        place.mkdir(parents=True, exist_ok=True)
        file.rename(place / f"{number}.JPEG")
    (root / "set" / "train" / "n999").mkdir()
    return root / "set"


@pytest.mark.parametrize(("images", "classes", "most"), [(24, 24, 1), (50, 40, 2), (1000, 40, 2)])
def test_a_part_of_a_folder_has_as_many_classes_as_can_be(
    many_classes: Path, tmp_path: Path, images: int, classes: int, most: int
) -> None:
    linked(many_classes, tmp_path, images)
    files = jpeg_files(tmp_path / "train")
    found = Counter(file.parent.name for file in files)
    assert (len(files), len(found), max(found.values())) == (min(images, 60), classes, most)
    assert len({file.resolve() for file in files}) == len(files)
    assert all(file.resolve().parent.name == file.parent.name for file in files)


def test_a_folder_of_one_class_is_refused_by_name(tmp_path: Path) -> None:
    photographs(tmp_path, 3)
    (tmp_path / "train" / "1").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"loading\.folder=.* has JPEG files in 1 class folders, and two are needed"):
        linked(tmp_path, tmp_path / "links", 20)


def test_fewer_files_than_a_batch_are_refused(many_classes: Path) -> None:
    loaders = JpegFolder(folder=many_classes, image_size=32, batch_size=61, workers=0)
    with pytest.raises(ValueError, match=r"loading\.batch_size=61 must be at most the 60 files"):
        _ = loaders.files


def test_each_pass_of_everyone_draws_order_crops_and_flips_anew(many_classes: Path, tmp_path: Path) -> None:
    linked(many_classes, tmp_path, 60)
    loaders = JpegFolder(folder=tmp_path, image_size=32, batch_size=30, workers=0)
    for loader in (loaders.vitlab(), loaders.torchvision(pillow=True), loaders.torchvision(pillow=False)):
        with quiet():
            first, second = (torch.cat([batch[0] for batch in loader]) for _ in range(2))
        assert first.shape == second.shape == (60, 3, 32, 32)
        assert first.dtype == torch.float32
        ordered = [sorted(images.mean(dim=(1, 2, 3)).tolist()) for images in (first, second)]
        assert ordered[0] != ordered[1], "the same crops, whatever their order"
