"""What Hydra composes from that stands in no file of `conf`: the defaults of signatures, and `experiments`."""

from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from vitlab.config import paths
from vitlab.schema import Node, defaults

EXPERIMENTS = paths.EXPERIMENTS


def register() -> None:
    """Tells Hydra what no YAML file has to repeat: signatures' defaults, experiments."""
    store = ConfigStore.instance()
    store.repo = Stored(store.repo)

    def signature(target: str, *supplied: str) -> Node:
        return {k: v for k, v in defaults(target).items() if k not in supplied}

    network = signature("vitlab.models.vit.VisionTransformer", "image_size", "num_classes", "in_channels")
    data = signature("vitlab.data.datamodule.DataModule")
    data["augment"] = signature("vitlab.data.augment.Augment")
    classifier = signature("vitlab.classifier.Classifier", "_target_", "optimizer", "schedule")
    weights = signature("vitlab.weights.loading.network", "_target_")
    for group, name, node in (
        ("model", "vit_signature", network),
        ("data", "data_signature", data),
        ("classifier", "signature", classifier),
        ("weights", "signature", weights),
    ):
        store.store(group=group, name=name, node=node, provider="signature")
    for file in sorted(EXPERIMENTS.glob("*.yaml")):
        store.store(
            group="experiment", name=file.stem, node=OmegaConf.load(file), package="_global_", provider="experiments"
        )


class Stored(dict[str, Any]):
    """Hydra's store, which Hydra copies whole each time that it looks for the options of a group: hundreds of times for
    `--help`. It never changes what it has copied, and copies what it loads once more, so one will do.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "Stored":
        return self
