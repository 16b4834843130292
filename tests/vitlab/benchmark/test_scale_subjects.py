"""Every subject of the scale benchmark makes its data and measures it, and its bounds do the same work."""

from pathlib import Path

import pytest
from timm.data.readers.reader_image_folder import find_images_and_targets

from vitlab.benchmark import scale_data, scale_subjects
from vitlab.benchmark.scale_subjects import SUBJECTS


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_subject_is_measured_at_a_small_size(name: str, tmp_path: Path) -> None:
    subject = SUBJECTS[name]
    data = subject.prepare(tmp_path, 1000 if subject.unit == "labels" else 200)
    for run in subject.contenders.values():
        run(data)


def test_all_listings_find_the_same_files(tmp_path: Path) -> None:
    scale_data.write_tree(tmp_path, 250)
    found = [len(run(tmp_path)) for run in (scale_subjects.walk, scale_subjects.list_by_torchvision)]
    assert [*found, len(find_images_and_targets(str(tmp_path))[0])] == [250, 250, 250]
