"""A Vision Transformer that can't be built is refused with every reason, by value, knob and remedy."""

import math
from typing import Any

import pytest

from vitlab.models.vit import VisionTransformer
from vitlab.models.vit_validation import block_indices, check_images


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"image_size": 100},
            "image_size=100 is not a multiple of patch_size=16; the nearest are 96 and 112",
        ),
        (
            {"image_size": (224, 100)},
            r"image_size=(224, 100) is not a multiple of patch_size=16; the nearest are 96 and 112",
        ),
        ({"image_size": 8}, "image_size=8 is not a multiple of patch_size=16; the nearest is 16"),
        ({"image_size": 0}, "image_size=0 is not a multiple of patch_size=16; the nearest is 16"),
        (
            {"class_token": False},
            "pool='cls' reads a token that class_token=False leaves out; set class_token=True or pool='avg'",
        ),
        (
            {"heads": 5},
            "dim=768 is not a multiple of heads=5; the nearest are 765 and 770, or use 1, 2, 3, 4, 6, 8 heads",
        ),
        (
            {"dim": 6, "heads": 4},
            "dim=6 is not a multiple of heads=4; the nearest are 4 and 8, or use 1, 2, 3, 6 heads",
        ),
        (
            {"dim": 10, "heads": 2, "pos_embed": "sincos2d"},
            "dim=10 is not a multiple of 4, which pos_embed='sincos2d' needs; the nearest are 8 and 12",
        ),
        ({"pool": "mean"}, "pool=mean is not one of 'cls', 'avg', 'none'"),
        ({"drop_path_schedule": "cosine"}, "drop_path_schedule=cosine is not one of 'linear', 'constant'"),
        (
            {"init": "jax"},
            "init=jax is not one of 'xavier', 'paper', 'big_vision', 'timm', 'deit', 'mae', 'torchvision'",
        ),
        ({"pos_embed": "rope"}, "pos_embed=rope is not one of 'learned', 'sincos2d', 'none'"),
        ({"patch_projection": "mlp"}, "patch_projection=mlp is not one of 'conv', 'linear'"),
        ({"num_classes": -1}, "num_classes=-1 must be at least 0"),
        ({"num_registers": -1}, "num_registers=-1 must be at least 0"),
        ({"norm_eps": 0.0}, "norm_eps=0.0 must be above 0"),
        ({"pre_logits_dim": 0}, "pre_logits_dim=0 must be at least 1"),
        ({"activation": "relu"}, "activation=relu is not one of 'gelu', 'gelu_tanh', 'quick_gelu', 'swiglu'"),
        (
            {"dim": 2, "heads": 1, "mlp_ratio": 1.5, "activation": "swiglu"},
            "dim * mlp_ratio=3 is odd, and activation='swiglu' halves it; the nearest are 2 and 4",
        ),
        (
            {"distilled": True, "pool": "avg"},
            "distilled=True adds a second token and head to those of [cls], so it needs pool='cls'",
        ),
        (
            {"distilled": True, "pre_logits_dim": 8},
            "distilled=True has two heads, but pre_logits_dim is for one; leave one of them out",
        ),
        ({"mlp_ratio": 0.0}, "dim * mlp_ratio=0 must be at least 1"),
        *[({name: 0}, f"{name}=0 must be at least 1") for name in ("depth", "heads", "dim", "in_channels")],
        *[
            ({name: rate}, f"{name}={rate} must be at least 0 and below 1")
            for name in ("dropout", "attention_dropout", "position_dropout", "drop_path", "patch_dropout")
            for rate in (-0.1, 1.0, math.nan)
        ],
    ],
)
def test_impossible_settings_are_refused_by_value_knob_and_remedy(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        VisionTransformer(**sizes)
    assert str(caught.value) == message


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        VisionTransformer(depth=0, dropout=1.5, image_size=100)
    assert [line.split("=")[0] for line in str(caught.value).splitlines()] == ["depth", "dropout", "image_size"]


def test_a_gated_hidden_layer_of_even_width_is_possible() -> None:
    VisionTransformer(dim=18, heads=2, depth=1, mlp_ratio=3.0, activation="swiglu", image_size=8, patch_size=4)


def test_each_side_of_an_image_has_a_line_of_its_own() -> None:
    for size, sides in (((100, 60), ["48 and 64", "96 and 112"]), ((100, 100), ["96 and 112"]), ((0, 16), ["16"])):
        with pytest.raises(ValueError, match="not a multiple of patch_size") as caught:
            VisionTransformer(image_size=size)
        nearest = [line.removeprefix("is ").removeprefix("are ") for line in str(caught.value).split("the nearest ")]
        assert [line.splitlines()[0] for line in nearest[1:]] == sides


@pytest.mark.parametrize(
    "sizes",
    [
        {"mlp_ratio": 1 / 8},  # one hidden channel
        {"dim": 4, "pos_embed": "sincos2d"},
        {"heads": 8},
        {"dim": 1, "heads": 1},
        {"head_std": 0.0},
        {"class_token": False, "pool": "none"},
        {"distilled": False, "pre_logits_dim": 1},
    ],
    ids=str,
)
def test_the_smallest_settings_are_possible(sizes: dict[str, Any]) -> None:
    VisionTransformer(**{"dim": 8, "heads": 2, "depth": 1, "image_size": 4, "patch_size": 4, **sizes})


@pytest.mark.parametrize("shape", [(2, 3, 16), (2, 3, 16, 16, 1), (2, 1, 16, 16), (2, 3, 8, 16), ()])
def test_images_of_another_shape_are_refused_with_both(shape: tuple[int, ...]) -> None:
    check_images((2, 3, 16, 16), (3, 16, 16))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        check_images(shape, (3, 16, 16))
    assert str(caught.value) == (
        f"images are ({', '.join(map(str, shape))}), the model expects (batch, 3, 16, 16): resize or convert the "
        "images, or set the model's in_channels and image_size"
    )


def test_blocks_are_counted_from_either_end() -> None:
    assert block_indices([0, 3, -1, -4], 4) == [0, 3, 3, 0]
    for layer in (4, -5):
        message = rf"layers=\[0, {layer}\]: {layer} is not a block; depth=4 has 0\.\.3"
        with pytest.raises(IndexError, match=message):
            block_indices([0, layer], 4)
