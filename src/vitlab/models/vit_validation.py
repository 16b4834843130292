"""Check the arguments and inputs of a Vision Transformer, with all problems in one `ValueError`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitlab.config.bounds import NonNegativeInt as Count
from vitlab.config.bounds import PositiveInt, Rate, bound_problem

__all__ = ["Count", "PositiveInt", "Rate", "block_indices", "check_arguments", "check_images", "pair"]

# Published sizes, (width, depth, heads) -> name (table 1 of the ViT paper; Ti and S from DeiT)
SIZES = {(192, 12, 3): "ti", (384, 12, 6): "s", (768, 12, 12): "b", (1024, 24, 16): "l", (1280, 32, 16): "h"}


def check_arguments(annotations: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise `ValueError` with a line per problem of the annotated arguments of `VisionTransformer` among `values`."""
    arguments = {name: values[name] for name in annotations if name in values}
    pairs = [(name, value, bound_problem(value, annotations[name])) for name, value in arguments.items()]
    problems = [f"{name}={value} {problem}" for name, value, problem in pairs if problem]
    if problems := [*problems, *combination_problems(arguments)]:
        raise ValueError("\n".join(problems))


def combination_problems(given: Mapping[str, Any]) -> Iterator[str]:
    """Problems of settings, each within its bounds, that don't go together."""
    image, patch, dim, heads = pair(given["image_size"]), pair(given["patch_size"]), given["dim"], given["heads"]
    if given["pool"] == "cls" and not given["class_token"]:
        remedy = "set class_token=True or pool='avg'"
        yield f"pool='cls' reads a token that class_token=False leaves out; {remedy}"
    if given["distilled"] and (given["pool"] != "cls" or not given["class_token"]):
        yield "distilled=True adds a second token and head to those of [cls], so it needs pool='cls'"
    if given["distilled"] and given["pre_logits_dim"] is not None:
        yield "distilled=True has two heads, but pre_logits_dim is for one; leave one of them out"
    if given["head_std"] is not None and not given["head_std"] >= 0:
        yield f"head_std={given['head_std']} must be at least 0, which is a zero head"
    if not given["norm_eps"] > 0:
        yield f"norm_eps={given['norm_eps']} must be above 0"
    if min(*patch, dim, heads) < 1:
        return
    uneven = f"image_size={given['image_size']} is not a multiple of patch_size={given['patch_size']}"
    yield from sorted({f"{uneven}; {nearest(i, p)}" for i, p in zip(image, patch, strict=True) if i < 1 or i % p})
    if dim % heads:
        fitting = ", ".join(str(count) for count in range(1, 2 * heads) if dim % count == 0)
        yield f"dim={dim} is not a multiple of heads={heads}; {nearest(dim, heads)}, or use {fitting} heads"
    if given["pos_embed"] == "sincos2d" and dim % 4:
        yield f"dim={dim} is not a multiple of 4, which pos_embed='sincos2d' needs; {nearest(dim, 4)}"
    if (hidden := int(dim * given["mlp_ratio"])) < 1:
        yield f"dim * mlp_ratio={hidden} must be at least 1"
    if given["activation"] == "swiglu" and hidden % 2:
        yield f"dim * mlp_ratio={hidden} is odd, and activation='swiglu' halves it; {nearest(hidden, 2)}"


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def nearest(value: int, step: int) -> str:
    """The multiples of `step` nearest to a value, in words."""
    below = value // step * step
    return f"the nearest are {below} and {below + step}" if below else f"the nearest is {step}"


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
