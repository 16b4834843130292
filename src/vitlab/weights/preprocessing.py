"""The preprocessing of images for which weights were trained, from the configuration next to them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vitlab.weights.locate import WeightFiles
from vitlab.weights.rules import Layout

CLIP_COLORS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # mean and std
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers; the data pipeline has no other interpolation


class Preprocessing(NamedTuple):
    """Known settings of the preprocessing; None is unknown."""

    mean: tuple[float, ...] | None = None  # of each channel, in [0, 1]
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_fraction: float | None = None  # of the resized side that the center crop keeps
    origin: str = ""

    def settings(self) -> dict[str, Any]:
        """By their names in the group `data`."""
        known = {"mean": self.mean, "std": self.std, "interpolation": self.interpolation}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in known.items() if value}


def preprocessing(files: WeightFiles, layout: Layout) -> Preprocessing:
    """The preprocessing from vitlab's record, timm's or transformers' configuration, or the layout's own code."""
    if record := files.record.get("preprocessing"):
        mean, std = mean_and_std(record)
        return Preprocessing(mean, std, record["interpolation"], record["crop_fraction"], "its run")
    if cfg := files.config.get("pretrained_cfg"):
        mean, std = mean_and_std(cfg)
        interpolation = cfg["interpolation"] if cfg.get("interpolation") in RESAMPLE.values() else None
        return Preprocessing(mean, std, interpolation, cfg.get("crop_pct"), "timm's pretrained_cfg")
    if files.preprocessor:
        return from_transformers(files.preprocessor)
    if mean := files.open_clip.get("preprocess_cfg", {}).get("mean"):
        std = files.open_clip["preprocess_cfg"]["std"]
        return Preprocessing(tuple(mean), tuple(std), "bicubic", 1.0, "open_clip_config.json")
    if layout.name in ("hf_clip", "open_clip"):
        return Preprocessing(*CLIP_COLORS, "bicubic", 1.0, "OpenAI's CLIP")
    if layout.name == "google":
        return Preprocessing((0.5,) * 3, (0.5,) * 3, None, None, "Google's code, which scales to -1 .. 1")
    return Preprocessing()


def mean_and_std(config: Mapping[str, Any], prefix: str = "") -> list[tuple[float, ...] | None]:
    return [tuple(config[key]) if config.get(key) else None for key in (f"{prefix}mean", f"{prefix}std")]


def from_transformers(config: Mapping[str, Any]) -> Preprocessing:
    mean, std = mean_and_std(config, "image_")
    if config.get("do_normalize") is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    size, crop = config.get("size"), config.get("crop_size")
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    if isinstance(crop, Mapping):
        crop = crop.get("height")
    fraction = min(1.0, crop / size) if config.get("do_center_crop") and size and crop else 1.0
    return Preprocessing(mean, std, RESAMPLE.get(config.get("resample", -1)), fraction, "preprocessor_config.json")
