"""Galleries and matrices have the images and counts that they are given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitlab.evaluation.judgement_pictures import draw_confusion, draw_gallery, short


@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (300, 200)), (4, (5, 9))])
def test_a_gallery_shows_each_image_in_its_place(tmp_path: Path, channels: int, size: tuple[int, int]) -> None:
    images = torch.zeros(8, channels, *size, dtype=torch.uint8)
    images[1:] = (torch.arange(1, 8) * 30).view(7, 1, 1, 1)
    draw_gallery(tmp_path / "a.png", images, [f"number {k} $ \\frac" for k in range(8)])
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.array(picture.convert("L"))
    scale = pixels.shape[1] / (6 * 126)
    tall = max(1, round(112 * size[0] / size[1]))
    for number in range(8):
        left, top = 7 + 126 * (number % 6) + 56, 4 + (tall + 44) * (number // 6) + tall // 2
        assert pixels[int(top * scale), int(left * scale)] == 30 * number, number


@pytest.mark.parametrize("classes", [2, 60])
def test_a_matrix_is_dark_where_the_images_are(tmp_path: Path, classes: int) -> None:
    label = np.arange(200) % classes
    draw_confusion(tmp_path / "a.png", label, label, [f"${k}" for k in range(classes)])
    draw_confusion(tmp_path / "b.png", label, (label + 1) % classes, [f"${k}" for k in range(classes)])
    first, second = ((tmp_path / f"{name}.png").read_bytes() for name in "ab")
    assert first != second


def test_a_long_name_is_cut_and_a_control_character_is_shown() -> None:
    assert short("a" * 30) == "a" * 17 + "…"
    assert short("a\x1bb\n") == r"a\x1bb\n"
