"""timm's models as baselines, with the same data, training and evaluation."""

from typing import Any

import timm
from torch import nn

from vitlab.config.schema import suggest


def timm_model(
    *,
    model_name: str,
    num_classes: int,
    in_channels: int,
    image_size: int | tuple[int, int] = 224,
    pretrained: bool = False,
    drop_path: float = 0.0,
) -> nn.Module:
    """Build a model with `timm.create_model`.

    Args:
        model_name: Name of the model in timm.
        num_classes: Number of classes.
        in_channels: Channels of the images.
        image_size: Height and width of the images, for models of a fixed input size.
        pretrained: Load timm's pre-trained weights.
        drop_path: Rate of stochastic depth.
    """
    if not timm.is_model(model_name):
        raise ValueError(f"model.model_name={model_name} is no timm model{suggest(model_name, timm.list_models())}")
    cfg = timm.get_pretrained_cfg(model_name)
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels, "drop_path_rate": drop_path}
    options |= {"img_size": image_size} if cfg is not None and cfg.fixed_input_size else {}
    return timm.create_model(model_name, pretrained=pretrained, **options)
