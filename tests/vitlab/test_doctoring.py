"""The report of a visit; files that are made smaller."""

import shlex
from functools import partial
from pathlib import Path

import hydra
import pytest
from PIL import Image

from patients import folder, patient
from vitlab import command, doctoring, signatures
from vitlab.advising import Trial
from vitlab.data.sets.image_folder import image_folder
from vitlab.profiling import PARTS, Variant
from vitlab.schema import Node


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_files_are_brought_to_the_size_that_is_trained_on(tmp_path: Path) -> None:
    subject = patient()
    assert doctoring.smaller(subject, tmp_path / "none") is None, "digits lie in memory"
    subject.datamodule = folder(tmp_path / "large", 60)
    subject.smaller = split = doctoring.smaller(subject, tmp_path / "smaller")
    assert split is not None
    original = subject.datamodule.split("train")
    assert len(split) == len(original)
    assert split.labels.tolist() == original.labels.tolist()
    for file in split.files or []:
        with Image.open(file) as image:
            assert min(image.size) == round(16 * 256 / 224)
    assert subject.reading(Variant(num_workers=0, smaller=True), batches=2) > 0
    subject.datamodule = folder(tmp_path / "small", 16)
    assert doctoring.smaller(subject, tmp_path / "same") is None, "they are small already"


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_of_many_files_only_those_are_looked_at_that_are_made_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = patient()
    subject.datamodule = folder(tmp_path / "large", 60)
    split = subject.datamodule.split("train")
    monkeypatch.setattr(doctoring, "SAMPLE", 7)
    looked: list[str] = []
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: looked.append(str(path)) or is_file(path))  # type: ignore[func-returns-value]
    smaller = doctoring.smaller(subject, tmp_path / "smaller")
    assert smaller is not None
    assert len(split) == 21
    assert looked == list(split.files or [])[::3], "every third of 21 makes seven"
    assert len(set(smaller.files or [])) == len(looked)
    assert len(smaller) == len(split)


def test_the_command_that_makes_files_smaller_is_told_as_it_is_typed(tmp_path: Path) -> None:
    assert doctoring.packed(patient().datamodule) == ""
    data, root = folder(tmp_path / "photos", 40), tmp_path / "photos"
    told = f"python src/prepare.py data=image_folder data_dir={root} size=18 out={root}-18"
    assert doctoring.packed(data) == f"{told}, then train with data=shards data_dir={root}-18"
    place = str(Path.cwd() / "my photos")
    data.load_source = partial(image_folder, data_dir=place, classes=["a", "b"], test_fraction=0.3)
    data.on_error = "skip"
    line, _, then = doctoring.packed(data).partition(", then train with data=shards ")
    assert then == shlex.quote("data_dir='my photos-18'")
    signatures.register()
    with hydra.initialize_config_dir(str(command.CONF), version_base="1.3"):
        config = command.plain(command.compose("prepare", shlex.split(line)[2:]), command.UNSET_RUN_DIR)
    assert not isinstance(config, str)
    assert [config[key] for key in ("data_dir", "out", "size")] == [place, "my photos-18", 18]
    source = config["data"]["source"]
    assert (source["classes"], source["test_fraction"], config["data"]["on_error"]) == (["a", "b"], 0.3, "skip")


def test_a_change_that_failed_has_a_line_and_no_bar(tmp_path: Path) -> None:
    found = dict.fromkeys(PARTS, 1 / len(PARTS))
    failed = Trial(variant=Variant(batch_size=64), predicted=1.5, gains=(), why="out of memory")
    doctoring.picture(found, [failed], tmp_path / "figures" / "doctor.png")
    doctoring.picture(found, [], tmp_path / "figures" / "none.png")
    assert len(list((tmp_path / "figures").iterdir())) == 2
    report: Node = {"images_per_second": 10.0, "mfu": None, "step_ms": 1.0, "batch_size": 8, "workers": 0, "cores": 2}
    report |= {"shares": found, "parts_ms": found, "one_worker_ms": 1.0, "power_of_cores": 1.5}
    report |= {"loading_together": 2}
    report |= {"epoch_seconds": {"training": 2.0}, "advice": ["rest"]}
    lines = list(doctoring.table(report, [failed]))
    assert lines[0].startswith("as configured: 10 images/s; ")
    assert lines[-2].endswith("out of memory")
    assert lines[-1] == "- rest"
