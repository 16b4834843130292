"""The classes of weights and how their logits become probabilities, from the configuration next to them."""

from typing import Any, Literal

from vitlab.weights.locate import WeightFiles


def class_names(files: WeightFiles, count: int) -> tuple[str, ...] | None:
    """Names of `count` classes: vitlab's record, timm's or transformers' configuration, or timm's for ImageNet."""
    by_id = files.config.get("id2label")
    listed: Any = (files.record.get("data") or {}).get("classes") or files.config.get("label_names")
    if listed is None and isinstance(by_id, dict) and by_id.get("0") != "LABEL_0":  # which is no name
        listed = [by_id[key] for key in sorted(by_id, key=int)]
    if listed is None and files.timm_name is not None:
        from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

        subset = infer_imagenet_subset(files.config["pretrained_cfg"])
        listed = ImageNetInfo(subset).label_descriptions() if subset else None
    return tuple(map(str, listed)) if listed is not None and len(listed) == count else None


def loss_kind(files: WeightFiles) -> Literal["softmax", "sigmoid"]:
    """The loss of the training, which decides how logits become probabilities."""
    if files.record:
        return config_loss(files.record.get("config") or {})
    return "sigmoid" if files.config.get("problem_type") == "multi_label_classification" else "softmax"


def config_loss(config: dict[str, Any]) -> Literal["softmax", "sigmoid"]:
    """The same, of a run's configuration."""
    return "softmax" if (config.get("classifier") or {}).get("loss", "softmax") == "softmax" else "sigmoid"
