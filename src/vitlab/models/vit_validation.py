"""Check the arguments and inputs of a Vision Transformer, with all problems in one `ValueError`."""

from collections.abc import Sequence
from typing import Any

CHOICES = {
    "pool": ("cls", "avg", "none"),
    "pos_embed": ("learned", "sincos2d", "none"),
    "activation": ("gelu", "gelu_tanh", "quick_gelu", "swiglu"),
    "patch_projection": ("conv", "linear"),
}
AT_LEAST_1 = ("in_channels", "dim", "depth", "heads")
AT_LEAST_0 = ("num_classes", "num_registers")  # 0 means none
RATES = ("dropout", "attention_dropout", "position_dropout", "drop_path")


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise `ValueError` with a line per problem of all arguments of `VisionTransformer`."""
    if wrong := [*_values(arguments), *_rules(arguments)]:
        raise ValueError("\n".join(wrong))


def _values(given: dict[str, Any]) -> list[str]:
    """Problems of single arguments."""
    patch, hidden = pair(given["patch_size"]), int(given["dim"] * given["mlp_ratio"])
    sizes = {"patch_size": min(patch)} | {name: given[name] for name in AT_LEAST_1}
    sizes |= {"dim * mlp_ratio": hidden} if given["dim"] > 0 else {}
    sizes |= {} if given["pre_logits_dim"] is None else {"pre_logits_dim": given["pre_logits_dim"]}
    wrong = [f"{name}={value} must be at least 1" for name, value in sizes.items() if value < 1]
    for name in AT_LEAST_0:
        wrong += [f"{name}={given[name]} must be at least 0, which means none"] if given[name] < 0 else []
    for name in RATES:
        off = f"{name}={given[name]} is not a rate: it must be at least 0 (off) and below 1"
        wrong += [] if 0 <= given[name] < 1 else [off]
    for name, known in CHOICES.items():
        wrong += [] if given[name] in known else [f"{name}={given[name]!r} is none of {', '.join(known)}"]
    if not given["norm_eps"] > 0:
        wrong += [f"norm_eps={given['norm_eps']} must be above 0"]
    return wrong


def _rules(given: dict[str, Any]) -> list[str]:
    """Problems of arguments in combination."""
    image, patch, dim, heads = pair(given["image_size"]), pair(given["patch_size"]), given["dim"], given["heads"]
    wrong = []
    if given["pool"] == "cls" and not given["class_token"]:
        remedy = "set class_token=True or pool='avg'"
        wrong += [f"pool='cls' reads a token that class_token=False leaves out; {remedy}"]
    if given["distilled"]:
        if given["pool"] != "cls" or not given["class_token"]:
            wrong += ["distilled=True adds a second token and head to those of [cls], so it needs pool='cls'"]
        if given["pre_logits_dim"] is not None:
            wrong += ["distilled=True has two heads, but pre_logits_dim is for one; leave one of them out"]
    if min(*patch, dim, heads) >= 1:
        uneven = f"image_size={given['image_size']} is not a multiple of patch_size={given['patch_size']}"
        steps = {f"{uneven}; {nearest(i, p)}" for i, p in zip(image, patch, strict=True) if i < 1 or i % p}
        wrong += sorted(steps)
        if dim % heads:
            wrong += [f"dim={dim} is not a multiple of heads={heads}; {nearest(dim, heads)}"]
        if given["pos_embed"] == "sincos2d" and dim % 4:
            wrong += [f"dim={dim} is not a multiple of 4, which pos_embed='sincos2d' needs; {nearest(dim, 4)}"]
        hidden = int(dim * given["mlp_ratio"])
        if given["activation"] == "swiglu" and hidden % 2:
            wrong += [f"dim * mlp_ratio={hidden} is odd, and activation='swiglu' halves it; {nearest(hidden, 2)}"]
    return wrong


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def nearest(value: int, step: int) -> str:
    """The multiples of `step` nearest to a value, in words."""
    below = value // step * step
    return f"the nearest are {below} and {below + step}" if below > 0 else f"the nearest is {step}"


def check_images(shape: Sequence[int], expected: tuple[int, ...]) -> None:
    """Raise `ValueError` unless images have the shape (batch, *expected)."""
    if len(shape) != 4 or tuple(shape[1:]) != expected:
        actual, wanted = ", ".join(map(str, shape)), ", ".join(map(str, expected))
        raise ValueError(
            f"images are ({actual}), the model expects (batch, {wanted}): resize or convert the images, "
            "or set the model's in_channels and image_size"
        )


def block_indices(layers: Sequence[int], depth: int) -> list[int]:
    """Indices of blocks from 0; `layers` may be negative. Raises `IndexError` for a block out of range."""
    for layer in layers:
        if not -depth <= layer < depth:
            raise IndexError(f"layers={list(layers)}: {layer} is not a block; depth={depth} has 0..{depth - 1}")
    return [layer % depth for layer in layers]
