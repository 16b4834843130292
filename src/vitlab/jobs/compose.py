"""Compose a program's configuration with Hydra, outside a job, and resolve it to plain data."""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

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
UNSET_RUN_DIR = "runs"  # stands for the run folder while the configuration is only being checked

_composed: ContextVar[dict[tuple[str, ...], DictConfig]] = ContextVar("composed")  # in the preflight


@contextmanager
def initialized(arguments: Namespace) -> Iterator[None]:
    """Hydra's loader on our `conf/` and what the command line adds to its search path."""
    folder = str(Path(arguments.config_path).resolve()) if arguments.config_path else str(CONF)
    with hydra.initialize_config_dir(folder, version_base="1.3", job_name="preflight"):
        token = _composed.set({})
        try:
            if arguments.config_dir:
                add_searchpath([f"file://{Path(arguments.config_dir).resolve()}"])
            yield
        finally:
            _composed.reset(token)


@contextmanager
def composing() -> Iterator[None]:
    """Hydra's loader, to compose what other programs would be given: a command's own, or one on our `conf/`."""
    with ExitStack() as stack:
        if not GlobalHydra.instance().is_initialized():  # outside of a command
            stack.enter_context(hydra.initialize_config_dir(str(CONF), version_base="1.3"))
        yield


def add_searchpath(folders: list[str]) -> None:
    """Adds to where Hydra's loader looks for options; it lists the folders when it is made, so again now."""
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    _composed.get({}).clear()
    for folder in folders:
        loader.config_search_path.prepend("command-line", folder, anchor="schema")
    loader.repository.initialize_sources(loader.config_search_path)


def compose(name: str, overrides: list[str]) -> DictConfig:
    """The configuration that Hydra composes, the `hydra` node included, outside a job.

    In the preflight the same overrides are composed once: what is returned is not to be changed.
    """
    known, key = _composed.get({}), (name, *overrides)
    if key not in known:
        known[key] = hydra.compose(name, overrides, return_hydra_config=True)
    return known[key]


def resolve_config(cfg: DictConfig, run_dir: str) -> Node | str:
    """The resolved configuration as plain data, with the run folder filled in; a message if it can't be resolved."""
    cfg = OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
    OmegaConf.set_struct(cfg, False)  # a copy of ours, and only for the next lines: every key is checked after it
    if "run_dir" in cfg.keys():  # noqa: SIM118 (as above); without it the command leaves no run
        cfg.run_dir = run_dir
    folder = cfg.get("data_dir")
    is_url = isinstance(folder, str) and ("://" in folder or folder.startswith("local:"))
    if isinstance(folder, str) and not is_url:  # a run may be evaluated, or resumed, from another folder
        cfg.data_dir = str(Path(folder).expanduser().absolute())
    try:
        resolved = OmegaConf.to_container(cfg, resolve=True)
    except RecursionError:
        return "the configuration holds itself: an interpolation names a node that it lies in"
    except (OmegaConfBaseException, ValueError) as error:
        return str(error).splitlines()[0]
    assert isinstance(resolved, dict)
    return fill_from_weights(normalize_data({str(k): v for k, v in resolved.items()}))


def normalize_data(config: Node) -> Node:
    """The configuration with the group `data` as its data set has it recorded."""
    data = config.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    normalize = loader_facts(source.get("_target_")).normalize if isinstance(source, dict) else None
    return {**config, "data": normalize(data)} if normalize and isinstance(data, dict) else config
