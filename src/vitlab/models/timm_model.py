"""timm's models as baselines, with the same data, training and evaluation."""

import inspect
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from vitlab.config.schema import suggest

OURS = {"in_chans": "data", "num_classes": "data", "img_size": "image_size", "drop_path_rate": "model.drop_path"}


def timm_model(
    *,
    model_name: str,
    num_classes: int,
    in_channels: int,
    image_size: int | tuple[int, int] = 224,
    pretrained: bool = False,
    drop_path: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a model with `timm.create_model`.

    Args:
        model_name: Name of the model in timm.
        num_classes: Number of classes.
        in_channels: Channels of the images.
        image_size: Height and width of the images, for models of a fixed input size.
        pretrained: Load timm's pre-trained weights.
        drop_path: Rate of stochastic depth.
        options: Further arguments of the model's class in timm, such as {patch_size: 2, embed_dim: 64, depth: 6}.
    """
    if not timm.is_model(model_name):
        raise ValueError(f"model.model_name={model_name} is no timm model{suggest(model_name, timm.list_models())}")
    cfg, further = timm.get_pretrained_cfg(model_name), dict(options or {})
    given: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels, "drop_path_rate": drop_path}
    given |= {"img_size": image_size} if cfg is not None and cfg.fixed_input_size else {}
    with torch.device("meta"):
        kinds = type(timm.create_model(model_name)).__mro__ if further else ()
    names = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters}  # type: ignore[misc]
    names -= {"self", "args", "kwargs", *OURS}
    for name in further:
        if name in OURS:
            raise ValueError(f"model.options.{name} can't be set here: {OURS[name]} decides it")
        if name not in names:
            known = f"{suggest(name, sorted(names))} (of {', '.join(sorted(names))})"
            raise ValueError(f"model.options.{name}: timm's {kinds[0].__name__} has no such argument{known}")
    return timm.create_model(model_name, pretrained=pretrained, **given, **further)
