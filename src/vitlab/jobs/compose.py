"""Compose a program's configuration with Hydra, outside a job, and resolve it to plain data."""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitlab.config import paths
from vitlab.config.schema import Node
from vitlab.data.source import loader_facts
from vitlab.weights.auto_model import fill_from_weights

CONF = paths.CONF
UNSET_RUN_DIR = "runs"  # stands for the run folder while the configuration is only checked

_cache: ContextVar[dict[tuple[str, ...], DictConfig]] = ContextVar("cache")  # set in the preflight


@contextmanager
def initialize_hydra(arguments: Namespace) -> Iterator[None]:
    """Set up Hydra's loader on the configuration folder and the search path of a command line."""
    folder = str(Path(arguments.config_path).resolve()) if arguments.config_path else str(CONF)
    with hydra.initialize_config_dir(folder, version_base="1.3", job_name="preflight"):
        token = _cache.set({})
        try:
            if arguments.config_dir:
                add_searchpath([f"file://{Path(arguments.config_dir).resolve()}"])
            yield
        finally:
            _cache.reset(token)


def ensure_hydra() -> AbstractContextManager[object]:
    """Set up Hydra's loader on `conf/`, unless a command has set up its own."""
    is_set_up = GlobalHydra.instance().is_initialized()
    return nullcontext() if is_set_up else hydra.initialize_config_dir(str(CONF), version_base="1.3")


def config_loader() -> ConfigLoaderImpl:
    """Hydra's loader, with the repository of its files."""
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    return loader


def add_searchpath(folders: list[str]) -> None:
    """Add folders with options to the search path of Hydra's loader, which has listed its folders already."""
    loader = config_loader()
    _cache.get({}).clear()
    for folder in folders:
        loader.config_search_path.prepend("command-line", folder, anchor="schema")
    loader.repository.initialize_sources(loader.config_search_path)


def compose(name: str, overrides: list[str]) -> DictConfig:
    """Compose a configuration outside a job, with the node `hydra`.

    In the preflight the same overrides are composed once, so don't change the result.
    """
    cache, key = _cache.get({}), (name, *overrides)
    if key not in cache:
        cache[key] = hydra.compose(name, overrides, return_hydra_config=True)
    return cache[key]


def resolve_config(cfg: DictConfig, run_dir: str) -> Node | str:
    """Return the resolved configuration as plain data, for a run folder, or a message if it can't be resolved."""
    cfg = OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
    OmegaConf.set_struct(cfg, False)  # of this copy: every key is checked later
    former = cfg.get("run_dir") if "run_dir" in cfg else None  # of a run whose config.yaml is composed again
    if "run_dir" in cfg.keys():  # noqa: SIM118 (`in` overlooks what is ???); other commands leave no run
        cfg.run_dir = run_dir
    folder = cfg.get("data_dir")
    if isinstance(folder, str) and "://" not in folder:  # a run may be evaluated or resumed from another folder
        cfg.data_dir = str(Path(folder).expanduser().absolute())
    try:
        resolved = OmegaConf.to_container(cfg, resolve=True)
    except RecursionError:
        return "the configuration contains itself: an interpolation refers to a node that encloses it"
    except (OmegaConfBaseException, ValueError) as error:
        missing = " and ".join(str(key) for key in cfg.keys() if OmegaConf.is_missing(cfg, key))  # noqa: SIM118
        return f"{missing} not set, and without a default: add KEY=VALUE" if missing else str(error).splitlines()[0]
    assert isinstance(resolved, dict)
    config: Node = {str(key): value for key, value in resolved.items()}
    if former:
        config = move_paths(config, former, run_dir)
    data = config.get("data")
    if isinstance(data, dict) and isinstance(source := data.get("source"), dict):
        normalize = loader_facts(source.get("_target_")).normalize
        config["data"] = normalize(data) if normalize else data  # as its data set has it recorded
    return fill_from_weights(config)


def move_paths(value: Any, former: str, now: str) -> Any:
    """A configuration with the paths below one folder moved to another."""
    if isinstance(value, dict):
        return {key: move_paths(inner, former, now) for key, inner in value.items()}
    if isinstance(value, list):
        return [move_paths(inner, former, now) for inner in value]
    inside = isinstance(value, str) and (value == former or value.startswith(f"{former}/"))
    return now + value.removeprefix(former) if inside else value
