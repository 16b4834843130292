"""What no file of `conf` repeats is composed all the same: signatures' defaults, and experiments."""

import copy

from hydra.core.config_store import ConfigStore

from conftest import Configure
from vitlab.config import paths, signatures


def test_what_no_file_says_is_the_signature_s_default(configure: Configure) -> None:
    config = configure()
    names = ("vitlab.models.vit.VisionTransformer", "vitlab.data.augment.Augment")
    model, augment = (signatures.defaults(name) for name in names)
    assert config["model"]["layer_scale"] == model["layer_scale"]
    assert config["data"]["augment"].keys() == augment.keys()
    assert not {"num_classes", "in_channels"} & config["model"].keys(), "the data has them"


def test_every_experiment_is_an_option_for_the_whole_configuration(configure: Configure) -> None:
    store = ConfigStore.instance()
    named = {name.removesuffix(".yaml") for name in store.list("experiment")}
    assert named == {file.stem for file in paths.EXPERIMENTS.glob("*.yaml")}
    assert configure("experiment=digits")["name"].startswith("digits")


def test_hydra_s_copies_of_its_store_are_the_store() -> None:
    repo = ConfigStore.instance().repo
    assert copy.deepcopy(repo) is repo
