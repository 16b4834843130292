"""The numbers of a network's pictures, on cases computed by hand and by their definitions."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from parity import fill
from vitlab.evaluation import network_pictures as pictures
from vitlab.evaluation.attention import trace
from vitlab.models.positions import sincos2d_table
from vitlab.models.vit import VisionTransformer

SHAPE = {"image_size": (16, 24), "patch_size": 4, "dim": 32, "depth": 2, "heads": 4, "num_classes": 5}


def network(**settings: object) -> VisionTransformer:
    torch.manual_seed(0)
    fill(built := VisionTransformer(**{**SHAPE, **settings}))  # type: ignore[arg-type]
    return built.eval()


def kernels(rows: Tensor) -> Tensor:
    return (rows @ rows.mT) * (1 - torch.eye(rows.shape[1], dtype=rows.dtype))


def test_hsic_is_the_mean_over_all_quadruples_of_different_images() -> None:
    x, y = torch.randn(2, 6, 3).double(), torch.randn(3, 6, 4).double()
    k, m = kernels(x), kernels(y)
    terms = [
        k[:, None, i, j] * (m[None, :, i, j] + m[None, :, q, r] - 2 * m[None, :, i, q])
        for i, j, q, r in itertools.permutations(range(6), 4)
    ]
    torch.testing.assert_close(pictures.hsic(k, m), torch.stack(terms).mean(dim=0))


def test_cka_is_one_for_equal_layers_and_ignores_rotations_and_scale() -> None:
    rows = torch.randn(1, 40, 5).double()
    turned = 3 * rows @ torch.linalg.qr(torch.randn(5, 5).double()).Q
    other = torch.randn(1, 40, 5).double()
    found = pictures.cka([kernels(rows)], [kernels(torch.cat([rows, turned, other]))])
    torch.testing.assert_close(found[0, :2], torch.ones(2).double())
    assert abs(found[0, 2]) < 0.2
    parts = [kernels(rows[:, :20]), kernels(rows[:, 20:]), kernels(rows[:, :3])]  # the last batch is too small
    torch.testing.assert_close(pictures.cka(parts, parts), torch.ones(1, 1).double())


@pytest.mark.parametrize("settings", [{}, {"num_registers": 2, "pos_embed_on_patches_only": True}])
def test_similarity_of_positions_is_of_the_patches_rows(settings: dict[str, object]) -> None:
    built = network(pos_embed="sincos2d", **settings)
    found = pictures.position_similarity(built, (4, 6))
    assert found is not None
    table = sincos2d_table(4, 6, 32, 24)[0].view(4, 6, 32)
    expected = torch.nn.functional.cosine_similarity(table[1, 2], table[3, 5], dim=0)
    torch.testing.assert_close(found[1, 2, 3, 5], expected)
    assert pictures.position_similarity(network(pos_embed="none"), (4, 6)) is None


def test_components_of_filters_are_those_in_which_they_differ() -> None:
    built = network()
    direction = torch.randn(3 * 4 * 4)
    with torch.no_grad():
        weight = torch.randn(32, 1) * direction + 1.0 + 0.01 * torch.randn(32, 48)
        built.patch_embed.proj.weight.copy_(weight.view(32, 3, 4, 4))
    found = pictures.filter_components(built)
    assert found is not None
    assert found.shape == (28, 3, 4, 4)
    torch.testing.assert_close((found[0].flatten() @ direction).abs(), direction.norm(), rtol=1e-2, atol=0)


def test_outliers_are_above_three_medians_of_their_block() -> None:
    norms = torch.ones(2, 3, 11)
    norms[:, :, 0] = 100  # [cls] is none
    norms[0, 1, 4], norms[1, 1, 5], norms[0, 2, 6] = 3.5, 40, 2.9
    torch.testing.assert_close(pictures.outlier_shares(norms, 1), torch.tensor([0.0, 0.1, 0.0]))


def test_an_overlay_has_the_colors_of_the_map_over_the_image() -> None:
    image = torch.zeros(1, 8, 12, dtype=torch.uint8)
    found = pictures.overlay(image, torch.tensor([[[1.0, 2.0, 5.0], [1.0, 1.0, 1.0]]]))
    assert found.shape == (1, 3, 8, 12)
    light = found[0].float().sum(dim=0)
    assert light[:4, 8:].min() > light[:4, 4:8].max() > light[4:].max()
    assert pictures.overlay(image, torch.ones(1, 2, 3)).float().std() < 40  # a constant map


@pytest.mark.parametrize("settings", [{}, {"pos_embed": "none", "class_token": False, "pool": "avg", "in_channels": 1}])
def test_the_pictures_of_a_network_are_drawn_and_none_without_its_subject(
    settings: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    built = network(**settings)
    images = torch.randn(6, built.in_channels, 16, 24)
    with torch.no_grad():
        traces = [trace(built, part) for part in torch.split(images, 4)]
    batches = [pictures.batch_statistics(each) for each in traces]
    captions, numbers = pictures.draw_network(tmp_path, built, traces[0], batches)
    expected = {"spread", "norms", "filters"} | ({"positions"} if not settings else set())
    assert set(captions) == {file.stem for file in tmp_path.glob("*.png")} == expected
    assert ("no picture of position embeddings" in caplog.text) == bool(settings)
    assert json.loads(json.dumps(numbers)).keys() == {"distance", "entropy", "outliers"}
    assert [len(values) for values in numbers.values()] == [2, 2, 2]
    per_image = torch.cat([batch.distance for batch in batches])
    assert numbers["distance"] == pytest.approx(per_image.mean(dim=(0, 2)).tolist(), abs=1e-3)
    tokens = traces[0].tokens[-1][:, traces[0].prefix :]
    pictures.draw_tokens(tmp_path / "tokens.png", torch.zeros(4, 3, 16, 24, dtype=torch.uint8), tokens, (4, 6))
    pictures.draw_heads(tmp_path / "heads.png", torch.zeros(1, 16, 24, dtype=torch.uint8), torch.rand(2, 4, 4, 6))
    for name in ("tokens", "heads"):
        drawn = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        assert drawn.std() > 30


def test_at_most_sixteen_rows_are_drawn_with_the_first_and_the_last() -> None:
    assert pictures.evenly(4) == [0, 1, 2, 3]
    assert len(pictures.evenly(48)) == 16
    assert {0, 47} < set(pictures.evenly(48))
