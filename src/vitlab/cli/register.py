"""Register with Hydra what is in no file of `conf`: the defaults of signatures, `experiments`, and resolvers.

Resolvers are OmegaConf's, of the files in `conf`: `${vitlab.name:}`, `${vitlab.mode:...}` and so on. Composing a
configuration must not import torch.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from vitlab.config import allowlist, overrides, paths
from vitlab.config.schema import direction, resolve
from vitlab.config.signatures import defaults
from vitlab.data.source import Facts, loader_facts
from vitlab.jobs.compose import UNSET_RUN_DIR, resolve_config
from vitlab.jobs.identity import data_name, model_name
from vitlab.sweeps import ledger

FEW = 5000  # images of a train split
SECRET = re.compile("KEY|TOKEN|SECRET|PASS|PWD|CREDENTIAL", re.IGNORECASE)  # in names of variables
UNKNOWN_SIZE = 224  # if the data has no size: the paper's pre-training size


def register() -> None:
    """Store the defaults of signatures and the experiments."""
    store = ConfigStore.instance()
    store.repo = Stored(store.repo)
    register_signatures()
    store.repo["experiment"] = {file.name: ExperimentFile(file) for file in sorted(paths.EXPERIMENTS.glob("*.yaml"))}


def register_signatures() -> None:
    """Store the defaults of signatures, so that no YAML file repeats them."""
    store = ConfigStore.instance()

    def add(group: str, name: str, target: str, *supplied: str, **nodes: Any) -> None:
        node = {key: value for key, value in defaults(target).items() if key not in supplied}
        store.store(group=group, name=name, node=node | nodes, provider="signature")

    add("model", "vit_signature", "vitlab.models.vit.VisionTransformer", "image_size", "num_classes", "in_channels")
    add("data", "data_signature", "vitlab.data.datamodule.DataModule", augment=defaults("vitlab.data.augment.Augment"))
    passed = ("_target_", "optimizer", "schedule", "batch_size")
    add("classifier", "signature", "vitlab.training.classifier.Classifier", *passed)
    add("weights", "signature", "vitlab.weights.load.load_network", "_target_")


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


def register_resolvers() -> None:
    """Register the resolvers with OmegaConf; can be repeated."""
    resolvers: dict[str, Callable[..., Any]] = {
        "name": run_name,
        "native_size": native_size,
        "patch": patch_for,
        "epochs": lambda *, _root_: loader_facts(OmegaConf.select(_root_, "data.source._target_")).epochs or 100,
        # accuracy is too coarse for small sets: with 144 digits to validate on, one image is 0.7 %
        "objective": lambda source: f"val/{'loss' if 0 < (loader_facts(source).train_samples or 0) < FEW else 'acc'}",
        "probe": lambda probe: f"-{str(probe._target_).rpartition('.')[2].lower()}" if probe else "",
        "if": lambda condition, value, other: value if condition else other,
        "mode": direction,
        "job": lambda *, _root_: ledger.job_entry(_root_.hydra, resolve_config(_root_, UNSET_RUN_DIR))[1]["folder"],
        "alone": lambda: not in_sweep(),
        "choices": lambda: OmegaConf.create(choices()),  # Hydra shows no plain dictionary
        "title": lambda name: " ".join(f"{key}={value}" for key, value in choices().items()) or name,
    }
    for name, function in resolvers.items():
        OmegaConf.register_new_resolver(f"vitlab.{name}", function, replace=True)
    OmegaConf.register_new_resolver("oc.env", environment_variable, replace=True)


def environment_variable(name: str, *default: Any) -> str | None:
    """OmegaConf's `oc.env`, but for credentials: their value would be in `config.yaml` and the dashboard."""
    if SECRET.search(name):
        raise ValueError(f"${{oc.env:{name}}} is refused: it would copy a credential into the run's files; remove it")
    return oc.env(name, *default)


def in_sweep() -> bool:
    """Whether this is a job of a sweep; false while a configuration is only checked."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def choices() -> dict[str, str]:
    """The job's values of the settings that its sweep varies; empty in a single run."""
    if not in_sweep():
        return {}
    hydra = HydraConfig.get()
    varies = ledger.read_json(Path(hydra.sweep.dir) / ledger.SWEEP).get("varies", [])
    chosen = overrides.fixed_settings(hydra.overrides.task)
    return {key: chosen[key] for key in varies if key in chosen}


def native_size(source: str) -> int:
    """Height and width of a data set's images, by its `_target_`; 224 if its loader's facts have no size.

    Raises `ValueError` for a loader without facts.
    """
    if (facts := loader_facts(source)) == Facts() and allowlist.refusal(source) is None:
        with suppress(ImportError):  # which the checks report
            resolve(source)
            raise ValueError(
                f"image_size is not set, and {source} does not say how large its images are; set image_size, or put "
                f"@Facts(native_size=...) of vitlab.data.source on that function"
            )
    return facts.native_size or UNKNOWN_SIZE


def patch_for(image_size: int | Sequence[int]) -> int:
    """The smallest patch of at least 2 pixels that cuts an image into at most 8 x 8: 8 -> 2, 28 -> 4, 32 -> 4.

    1 if there is none, and for a value that is no size, which the checks report.
    """
    sides = [image_size] if isinstance(image_size, int) else image_size
    if not isinstance(sides, Sequence) or not all(isinstance(side, int) for side in sides):
        return 1
    patches = range(2, max(sides, default=0) + 1)
    return next((p for p in patches if all(side % p == 0 and side // p <= 8 for side in sides)), 1)


def run_name(*, _root_: DictConfig) -> str | None:
    """A run's name, made of resolved values so that overrides change it: `digits-vit_s16-224px`. None without data."""
    if "data" not in _root_:
        return None
    data = data_name(_root_.data.source)
    size = _root_.image_size
    pixels = "x".join(map(str, size)) if OmegaConf.is_list(size) else str(size)
    return f"{data}-{model_name(_root_.model)}" + (f"-{pixels}px" if size is not None else "")
