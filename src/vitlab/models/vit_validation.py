"""Check the arguments and inputs of a Vision Transformer, with all problems in one `ValueError`."""

from collections.abc import Iterator, Sequence
from typing import Any

CHOICES = {
    "pool": ("cls", "avg", "none"),
    "pos_embed": ("learned", "sincos2d", "none"),
    "activation": ("gelu", "gelu_tanh", "quick_gelu", "swiglu"),
    "patch_projection": ("conv", "linear"),
    "drop_path_schedule": ("linear", "constant"),
    "init": ("xavier", "paper", "big_vision", "timm", "deit", "mae", "torchvision"),
}
RATES = ("dropout", "attention_dropout", "position_dropout", "drop_path", "patch_dropout")


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise `ValueError` with a line per problem of all arguments of `VisionTransformer`."""
    if problems := [*value_problems(arguments), *combination_problems(arguments)]:
        raise ValueError("\n".join(problems))


def value_problems(given: dict[str, Any]) -> Iterator[str]:
    sizes = {"patch_size": min(pair(given["patch_size"]))}
    sizes |= {name: given[name] for name in ("in_channels", "dim", "depth", "heads")}
    if given["dim"] > 0:
        sizes["dim * mlp_ratio"] = int(given["dim"] * given["mlp_ratio"])
    if given["pre_logits_dim"] is not None:
        sizes["pre_logits_dim"] = given["pre_logits_dim"]
    yield from (f"{name}={value} must be at least 1" for name, value in sizes.items() if value < 1)
    for name in ("num_classes", "num_registers"):
        if given[name] < 0:
            yield f"{name}={given[name]} must be at least 0, which means none"
    for name in RATES:
        if not 0 <= given[name] < 1:
            yield f"{name}={given[name]} is not a rate: it must be at least 0 (off) and below 1"
    for name, choices in CHOICES.items():
        if given[name] not in choices:
            yield f"{name}={given[name]!r} is none of {', '.join(choices)}"
    if given["head_std"] is not None and not given["head_std"] >= 0:
        yield f"head_std={given['head_std']} must be at least 0, which is a zero head"
    if not given["norm_eps"] > 0:
        yield f"norm_eps={given['norm_eps']} must be above 0"


def combination_problems(given: dict[str, Any]) -> Iterator[str]:
    image, patch, dim, heads = pair(given["image_size"]), pair(given["patch_size"]), given["dim"], given["heads"]
    if given["pool"] == "cls" and not given["class_token"]:
        remedy = "set class_token=True or pool='avg'"
        yield f"pool='cls' reads a token that class_token=False leaves out; {remedy}"
    if given["distilled"] and (given["pool"] != "cls" or not given["class_token"]):
        yield "distilled=True adds a second token and head to those of [cls], so it needs pool='cls'"
    if given["distilled"] and given["pre_logits_dim"] is not None:
        yield "distilled=True has two heads, but pre_logits_dim is for one; leave one of them out"
    if min(*patch, dim, heads) < 1:
        return
    uneven = f"image_size={given['image_size']} is not a multiple of patch_size={given['patch_size']}"
    yield from sorted({f"{uneven}; {nearest(i, p)}" for i, p in zip(image, patch, strict=True) if i < 1 or i % p})
    if dim % heads:
        fitting = ", ".join(str(count) for count in range(1, dim + 1) if dim % count == 0 and count <= 2 * heads)
        yield f"dim={dim} is not a multiple of heads={heads}; {nearest(dim, heads)}, or use {fitting} heads"
    if given["pos_embed"] == "sincos2d" and dim % 4:
        yield f"dim={dim} is not a multiple of 4, which pos_embed='sincos2d' needs; {nearest(dim, 4)}"
    hidden = int(dim * given["mlp_ratio"])
    if given["activation"] == "swiglu" and hidden % 2:
        yield f"dim * mlp_ratio={hidden} is odd, and activation='swiglu' halves it; {nearest(hidden, 2)}"


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
        remedy = "resize or convert the images, or set the model's in_channels and image_size"
        raise ValueError(f"images are ({actual}), the model expects (batch, {wanted}): {remedy}")


def block_indices(layers: Sequence[int], depth: int) -> list[int]:
    """Indices of blocks from 0; `layers` may be negative. Raises `IndexError` for a block out of range."""
    for layer in layers:
        if not -depth <= layer < depth:
            raise IndexError(f"layers={list(layers)}: {layer} is not a block; depth={depth} has 0..{depth - 1}")
    return [layer % depth for layer in layers]
