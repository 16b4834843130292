"""Files that can't be read are black and marked, and each has its reason."""

from pathlib import Path

import torch
from PIL import Image

from conftest import Exportable
from vitlab.evaluation.prediction_files import ImageFiles, read_problem
from vitlab.evaluation.trained_model import load_model


def test_a_batch_has_the_networks_pixels_and_marks_what_cannot_be_read(exportable: Exportable, tmp_path: Path) -> None:
    model = load_model(exportable(in_channels=1, crop_fraction=1.0).weights.run)
    Image.effect_noise((20, 30), 60).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    paths = [str(tmp_path / name) for name in ("b.png", "a.png", "gone.png")]
    batch = ImageFiles(paths, model).__getitems__([1, 0, 2])
    assert batch.numbers.tolist() == [1, 0, 2]
    assert batch.readable.tolist() == [True, False, False]
    assert not batch.images[1:].any()
    torch.testing.assert_close(model.prepare()(batch.images)[0], model.transform(paths[1]))
    assert read_problem(paths[0]).startswith("can't be decoded (it is no image of the formats")
    assert read_problem(paths[2]) == "can't be read (No such file or directory)"
