"""Register with Hydra what is in no file of `conf`: the defaults of signatures, and `experiments`."""

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import OmegaConf

from vitlab.config import paths
from vitlab.config.schema import Node
from vitlab.config.signatures import defaults


def register() -> None:
    """Store the defaults of signatures and the experiments."""
    store = ConfigStore.instance()
    store.repo = Stored(store.repo)
    register_signatures()
    store.repo["experiment"] = {file.name: ExperimentFile(file) for file in sorted(paths.EXPERIMENTS.glob("*.yaml"))}


def register_signatures() -> None:
    """Store the defaults of signatures, so that no YAML file repeats them."""
    store = ConfigStore.instance()

    def signature(target: str, *supplied: str) -> Node:
        return {k: v for k, v in defaults(target).items() if k not in supplied}

    network = signature("vitlab.models.vit.VisionTransformer", "image_size", "num_classes", "in_channels")
    data = signature("vitlab.data.datamodule.DataModule")
    data["augment"] = signature("vitlab.data.augment.Augment")
    classifier = signature("vitlab.training.classifier.Classifier", "_target_", "optimizer", "schedule", "batch_size")
    weights = signature("vitlab.weights.load.load_network", "_target_")
    for group, name, node in (
        ("model", "vit_signature", network),
        ("data", "data_signature", data),
        ("classifier", "signature", classifier),
        ("weights", "signature", weights),
    ):
        store.store(group=group, name=name, node=node, provider="signature")


class ExperimentFile(ConfigNode):
    """A file that is read only when it is chosen, and names the runs."""

    def __init__(self, file: Path) -> None:
        self.name, self.group, self.package, self.provider = file.name, "experiment", "_global_", "experiments"
        self.file = file

    def __getattr__(self, name: str) -> Any:
        if name == "node":
            return OmegaConf.merge({"name": self.file.stem}, OmegaConf.load(self.file))
        raise AttributeError(name)


class Stored(dict[str, Any]):
    """Hydra's store without copies: Hydra would copy all of it each time that it lists the options of a group.

    It never changes the copy, and copies each node again when it loads it.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "Stored":
        return self
