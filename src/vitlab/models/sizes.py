"""The names of the published Vision Transformer sizes."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

# (width, depth, heads) -> name (table 1 of the ViT paper; Ti and S from DeiT)
SIZES = {(192, 12, 3): "ti", (384, 12, 6): "s", (768, 12, 12): "b", (1024, 24, 16): "l", (1280, 32, 16): "h"}


def model_name(model: Any) -> str:
    """`vit_s16` for published sizes, `vit_64x4_p2` (width x depth) for others, the weights' name with model=auto, and
    the class's for other models.
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
