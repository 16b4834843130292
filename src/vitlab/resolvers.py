"""What configuration files compute: `${vitlab.name:}`, `native_size`, `patch` and `mode`.

Light on purpose: composing a configuration must not import torch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vitlab.data.sources import FACTS

# (width, depth, heads) -> the name that the literature uses (ViT paper's table 1; Ti and S from DeiT's)
SIZES = {
    (192, 12, 3): "ti",
    (384, 12, 6): "s",
    (768, 12, 12): "b",
    (1024, 24, 16): "l",
    (1280, 32, 16): "h",
}
UNKNOWN_SIZE = 224  # where neither the model nor the data says anything: the paper's pre-training size


def register_resolvers() -> None:
    """Makes the resolvers known to OmegaConf; again and again does no harm."""
    resolvers: dict[str, Callable[..., Any]] = {
        "name": run_name,
        "native_size": native_size,
        "patch": patch_for,
        "mode": lambda metric: "min" if "loss" in metric else "max",
    }
    for name, function in resolvers.items():
        OmegaConf.register_new_resolver(f"vitlab.{name}", function, replace=True)


def native_size(source: str) -> int:
    """The side in pixels of a data set's images, by the last part of its `_target_`; 224 where it has no one size."""
    facts = FACTS.get(source.rsplit(".", 1)[-1])
    return facts.native_size if facts and facts.native_size else UNKNOWN_SIZE


def patch_for(image_size: int | Sequence[int]) -> int:
    """The smallest patch of at least 2 pixels that cuts an image into at most 8 x 8: 8 -> 2, 28 -> 4, 32 -> 4.

    1 where there is none, and for what is no size: the checks tell that better than a resolver can.
    """
    sides = [image_size] if isinstance(image_size, int) else image_size
    if not isinstance(sides, Sequence) or not all(isinstance(side, int) for side in sides):
        return 1
    for patch in range(2, max(sides, default=0) + 1):
        if all(side % patch == 0 and side // patch <= 8 for side in sides):
            return patch
    return 1


def run_name(*, _root_: DictConfig) -> str:
    """A name made of resolved values, so that it can't lie after an override: `digits-vit_s16-224px`."""
    source = _root_.data.source
    data = str(source._target_).rsplit(".", 1)[-1]
    if data == "image_folder":
        data = Path(str(source.data_dir)).name
    size = _root_.image_size
    pixels = "x".join(map(str, size)) if OmegaConf.is_list(size) else str(size)
    return f"{data}-{model_name(_root_.model)}" + (f"-{pixels}px" if size is not None else "")


def model_name(model: Any) -> str:
    """`vit_s16` for the sizes of the papers, `vit_64x4_p2` (width x depth) for others, else the model's own name.

    With model=auto it is the name of the weights.
    """
    if "model_name" in model:
        return str(model.model_name).replace("/", "_")
    if "dim" not in model and isinstance(source := OmegaConf.select(model, "weights"), str):  # model=auto
        last = Path(source).name or source
        return last.removeprefix("timm:").removesuffix(Path(last).suffix if Path(source).is_file() else "")
    if not all(key in model for key in ("patch_size", "dim", "depth", "heads")):
        return str(model._target_).rsplit(".", 1)[-1]
    patch = model.patch_size if isinstance(model.patch_size, int) else "x".join(map(str, model.patch_size))
    size = SIZES.get((model.dim, model.depth, model.heads))
    return f"vit_{size}{patch}" if size else f"vit_{model.dim}x{model.depth}_p{patch}"
