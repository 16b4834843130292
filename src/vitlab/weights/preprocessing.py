"""How images were prepared for the weights: colours, interpolation, crop; from timm's or transformers' word for it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vitlab.weights.layouts import Layout
from vitlab.weights.locate import WeightFiles

# PIL's numbers, as transformers writes them; other interpolations are not offered by the data pipeline
RESAMPLE = {2: "bilinear", 3: "bicubic"}


class Preprocessing(NamedTuple):
    """What is known of it; None where nothing tells."""

    mean: tuple[float, ...] | None = None  # of each channel, in units of the brightest
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_fraction: float | None = None  # share of the resized side that the centre crop keeps
    origin: str = ""

    def settings(self) -> dict[str, Any]:
        """By their names in the group `data`."""
        known = {"mean": self.mean, "std": self.std, "interpolation": self.interpolation}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in known.items() if value}


def preprocessing(opened: WeightFiles, layout: Layout) -> Preprocessing:
    """How images were prepared for these weights, where something beside them says so, or the layout's code does."""
    if said := opened.ours.get("preprocessing"):
        return Preprocessing(
            tuple(said["mean"]), tuple(said["std"]), said["interpolation"], said["crop_fraction"], "its run"
        )
    if timm := opened.config.get("pretrained_cfg"):
        return from_timm(timm)
    if opened.preprocessor:
        return from_transformers(opened.preprocessor)
    if layout.name == "google":
        return Preprocessing((0.5,) * 3, (0.5,) * 3, None, None, "Google's code, which scales to -1 .. 1")
    return Preprocessing()


def from_timm(cfg: Mapping[str, Any]) -> Preprocessing:
    """timm's pretrained_cfg."""
    mean, std = (tuple(cfg[key]) if cfg.get(key) else None for key in ("mean", "std"))
    kind = cfg.get("interpolation")
    return Preprocessing(
        mean, std, kind if kind in RESAMPLE.values() else None, cfg.get("crop_pct"), "timm's pretrained_cfg"
    )


def from_transformers(said: Mapping[str, Any]) -> Preprocessing:
    """transformers' preprocessor_config.json."""
    mean, std = (tuple(said[key]) if said.get(key) else None for key in ("image_mean", "image_std"))
    if said.get("do_normalize") is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    crop, size, cropped = 1.0, said.get("size"), said.get("crop_size")
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    if isinstance(cropped, Mapping):
        cropped = cropped.get("height")
    if said.get("do_center_crop") and size and cropped:
        crop = min(1.0, cropped / size)
    return Preprocessing(mean, std, RESAMPLE.get(said.get("resample", -1)), crop, "preprocessor_config.json")
