"""Relevance is the paper's, and its scores separate maps from random orders on a trained network."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parity import fill
from vitlab.data.sets.digits import digits
from vitlab.evaluation.attention import head_attention, rollout
from vitlab.evaluation.relevance import (
    RANDOM,
    Curves,
    compare_with_random,
    join_curves,
    perturbation_curves,
    relevance,
    score_table,
)
from vitlab.models.vit import VisionTransformer

TINY: dict[str, Any] = {"img_size": (32, 48), "depth": 3, "num_classes": 5}


def reference(network: Any, images: Tensor, targets: Tensor) -> Tensor:
    """The paper's N x N matrices, from the weights of timm's formula and their gradients."""
    maps: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        maps.append(output)

    for block in network.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(keep)
    score = network(images).gather(1, targets[:, None]).sum()
    score.backward()
    result = torch.eye(maps[0].shape[-1]).expand(len(images), -1, -1)
    for weights in maps:
        assert weights.grad is not None
        result = result + (weights.grad * weights).clamp(min=0).mean(dim=1) @ result
    return result.detach()


@pytest.mark.parametrize("settings", [{}, {"global_pool": "avg"}, {"global_pool": "avg", "class_token": False}])
def test_relevance_equals_the_matrices_of_the_paper(settings: dict[str, Any]) -> None:
    fill(network := timm.create_model("vit_tiny_patch16_224", pretrained=False, **TINY, **settings).eval())
    images, targets = torch.randn(2, 3, 32, 48), torch.tensor([1, 3])
    frozen = copy.deepcopy(network).requires_grad_(False)
    expected = reference(copy.deepcopy(network), images, targets)
    prefix = network.num_prefix_tokens
    rows = expected[:, 0] if not settings else expected[:, prefix:].mean(dim=1)
    for each in (network, frozen):
        found, traced = relevance(each, images, targets)
        torch.testing.assert_close(found, rows[:, prefix:].view(2, 2, 3), rtol=1e-4, atol=1e-7)
        assert not any(x.requires_grad for x in (found, traced.logits, *traced.maps, *traced.tokens))


def test_relevance_is_of_the_predicted_class_by_default_and_differs_by_class() -> None:
    fill(network := VisionTransformer(image_size=16, patch_size=4, dim=32, depth=2, heads=2, num_classes=5).eval())
    images = torch.randn(3, 3, 16, 16)
    predicted = network(images).argmax(dim=1)
    found, _ = relevance(network, images)
    torch.testing.assert_close(found, relevance(network, images, predicted)[0])
    assert not torch.allclose(found, relevance(network, images, (predicted + 1) % 5)[0])


def test_a_network_with_attention_pooling_has_relevance_through_its_pooling() -> None:
    fill(
        network := timm.create_model("vit_base_patch16_siglip_224", pretrained=False, **TINY, embed_dim=64, num_heads=4)
    )
    found, traced = relevance(network.eval(), torch.randn(2, 3, 32, 48))
    assert traced.pooled is not None
    assert found.shape == (2, 2, 3)
    assert (found >= 0).all()
    assert (found > 0).any()


# --------------------------------------------------------------------------------------------------------- scores


def bright_pixels(images: Tensor) -> Tensor:
    """The share of pixels at 1, as the probability of class 1 of two."""
    share = (images == 1).float().mean(dim=(1, 2, 3))
    return torch.stack([1 - share, share], dim=1)


def test_the_first_patches_of_a_map_are_removed_first() -> None:
    images = torch.tensor([[[[1.0, -1.0], [-1.0, -1.0]]]])
    best, worst = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]]), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    target = torch.tensor([1])
    first = perturbation_curves(bright_pixels, images, best, target, baseline="mean")
    last = perturbation_curves(bright_pixels, images, worst, target, baseline="mean")
    assert first.shares.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert first.deletion.tolist() == [[0.25, 0, 0, 0, 0]]
    assert first.insertion.tolist() == [[0, 0.25, 0.25, 0.25, 0.25]]
    assert last.deletion.tolist() == [[0.25, 0.25, 0.25, 0.25, 0]]
    deletion, insertion = first.areas()
    assert (deletion.item(), insertion.item()) == pytest.approx((0.25 / 8, 0.25 * 7 / 8))


def test_steps_and_patches_of_several_pixels() -> None:
    images = torch.randn(2, 1, 12, 18)
    curves = perturbation_curves(bright_pixels, images, torch.rand(2, 6, 9), torch.tensor([0, 1]), steps=5)
    assert curves.deletion.shape == curves.insertion.shape == (2, 6)
    assert curves.shares.tolist() == pytest.approx([round(54 * k / 5) / 54 for k in range(6)])
    # nothing removed is the image, everything inserted too
    assert torch.equal(curves.deletion[:, 0], curves.insertion[:, -1])


def test_a_table_compares_each_method_with_random_image_by_image() -> None:
    shares = torch.tensor([0.0, 1.0])

    def curve(*values: float) -> Curves:
        return Curves(
            shares, torch.tensor(values)[:, None].expand(-1, 2), 1 - torch.tensor(values)[:, None].expand(-1, 2)
        )

    joined = join_curves([{"map": curve(0.1), RANDOM: curve(0.4)}, {"map": curve(0.3, 0.2), RANDOM: curve(0.4, 0.4)}])
    rows = {row["method"]: row for row in score_table(joined)}
    assert rows["map"]["images"] == 3
    assert rows["map"]["deletion"] == pytest.approx(0.2)
    assert rows["map"]["deletion - random"] == pytest.approx(-0.2)
    assert rows["map"]["deletion se"] == pytest.approx(0.1 / 3**0.5, rel=0.05)
    assert rows["map"]["insertion - random"] == pytest.approx(0.2)
    assert rows[RANDOM]["insertion - random"] is None
    assert score_table(join_curves([{}])) == []
    assert score_table({"map": curve(0.1), RANDOM: curve(0.4)})[0]["deletion se"] is None  # of one image


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small ViT after 9 epochs of digits, and 32 test images."""
    source = digits()
    assert source.train.images is not None
    assert source.test.images is not None
    images, labels = source.train.images / 127.5 - 1, source.train.labels
    torch.manual_seed(0)
    shape: Any = {
        "image_size": 8,
        "patch_size": 2,
        "in_channels": 1,
        "num_classes": 10,
        "dim": 32,
        "depth": 2,
        "heads": 4,
    }
    network = VisionTransformer(**shape, init="timm")
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(9):
        for rows in torch.split(torch.randperm(len(images)), 32):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(images[rows]), labels[rows]))
            optimizer.step()
    test = source.test.images[:32] / 127.5 - 1
    return network.eval().requires_grad_(False), test, source.test.labels[:32]


@pytest.mark.parametrize("baseline", ["blur", "mean"])
def test_rollout_and_relevance_beat_random_orders_on_a_trained_network(trained: Any, baseline: Any) -> None:
    network, images, labels = trained
    assert (network(images).argmax(dim=1) == labels).float().mean() > 0.8
    targets = network(images).argmax(dim=1)
    found, traced = relevance(network, images, targets)
    maps = {"relevance": found, "rollout": rollout(traced), "attention": head_attention(traced)[:, -1].mean(dim=1)}

    def score(values: Tensor) -> Curves:
        return perturbation_curves(lambda x: network(x).softmax(dim=1), images, values, targets, baseline=baseline)

    rows = {row["method"]: row for row in score_table(compare_with_random(maps, 3, score))}
    for method in ("relevance", "rollout"):
        assert rows[method]["deletion - random"] < -2 * rows[method]["deletion se"]
        assert rows[method]["insertion - random"] > 2 * rows[method]["insertion se"]
    worst = {row["method"]: row for row in score_table(compare_with_random({"reversed": -found}, 3, score))}
    assert worst["reversed"]["deletion - random"] > 0  # the score can fail
