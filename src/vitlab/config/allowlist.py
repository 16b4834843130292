"""The targets that a configuration may call: one from somebody else must not run code of its choice.

Hydra calls whatever a `_target_` names, and importing a module runs it. So each `_target_`, at any depth, is checked in
source files, before anything is imported:

    A target is a class of a kind that experiments use (`KINDS`) or one of `FUNCTIONS`, exported and defined by one of
    `PLACES`, or it is code that the user trusts.

The user trusts modules and packages in the working directory of the command, packages that the command line or a YAML
file of `--config-dir` names as a target (`trust_named_packages`), and the entries of `VITLAB_ALLOW`. No configuration
can set variable or working directory: both are read when the program starts. What allowed parts can be made to do is in
`vitlab.config.reach`.
"""

import ast
import os
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from vitlab.config import definitions, paths, reach
from vitlab.config.schema import format_value, resolve, suggest

VARIABLE = "VITLAB_ALLOW"
# Complete targets, or packages and modules whose own definitions are trusted.
ALLOWED = tuple(entry for entry in re.split(r"[,\s]+", os.environ.get(VARIABLE, "")) if entry)
WORKING_DIR = Path.cwd().resolve()

OFFERED = "vitlab, torch, torchvision, timm, lightning, torchmetrics and hydra"
PLACES = (
    "vitlab",
    "hydra_plugins.vitlab",
    *("torch.nn", "torch.optim"),
    *("torchvision.models", "torchvision.ops", "torchvision.transforms"),
    *("timm.layers", "timm.loss", "timm.models", "timm.optim"),
    *("lightning.fabric", "lightning.pytorch"),
    *("torchmetrics.aggregation", "torchmetrics.classification", "torchmetrics.regression"),
    *("hydra._internal.core_plugins", "hydra.experimental.callbacks"),
    *("optuna.samplers", "optuna.pruners"),
)
OFFERED_PACKAGES = frozenset(place.split(".")[0] for place in PLACES)
# Packages that export parts at their top: lightning.Trainer
TOPS = ("lightning", "torchmetrics")
KINDS = (
    *("torch.nn.Module", "torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler"),
    # as the libraries import some of these, which is faster to find
    *("torch.nn.modules.module.Module", "torch.optim.optimizer.Optimizer", "lightning.pytorch.trainer.trainer.Trainer"),
    *("lightning.pytorch.callbacks.Callback", "lightning.pytorch.callbacks.callback.Callback"),
    *("lightning.pytorch.Trainer", "lightning.pytorch.Callback", "lightning.pytorch.LightningDataModule"),
    *("lightning.pytorch.loggers.Logger", "lightning.pytorch.profilers.Profiler"),
    *("lightning.pytorch.accelerators.Accelerator", "lightning.pytorch.strategies.Strategy"),
    *("lightning.pytorch.plugins.Precision", "lightning.pytorch.plugins.LayerSync"),
    *("lightning.fabric.plugins.CheckpointIO", "lightning.fabric.plugins.ClusterEnvironment"),
    "vitlab.evaluation.probes.Probe",
    *("hydra.experimental.callback.Callback", "hydra.plugins.launcher.Launcher", "hydra.plugins.sweeper.Sweeper"),
    *("optuna.samplers.BaseSampler", "optuna.pruners.BasePruner"),
)
FUNCTIONS = (  # functions, or modules of vitlab with nothing else
    *("vitlab.models.timm_model", "vitlab.training.schedules", "vitlab.runs.wandb.wandb_logger"),
    *(f"torch.optim.swa_utils.get_{kind}_avg_fn" for kind in ("ema", "ema_multi", "swa", "swa_multi")),
)
LAUNCHERS = tuple(f"hydra_plugins.vitlab.launchers.{kind}Launcher" for kind in ("Local", "Slurm"))
NO_PART = "it is none of the classes and functions that experiments use"
DEEPEST = 64  # levels of a configuration; one that contains itself has no end
MOST_VALUES = 100_000  # in a configuration, which has a few hundred; shared ones count as often as they are used

# Built by Hydra before a job can check them: interpolations could have another value by then.
MADE_BY_HYDRA = ("callbacks", "launcher", "sweeper")
LOGGING = ("hydra_logging", "job_logging")
LOG_CLASSES = ("logging.FileHandler", "logging.Formatter", "logging.NullHandler", "logging.StreamHandler")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")

# In an override or a YAML file; a sweep names several.
TARGET = re.compile(r"\b_target_['\"]?\s*[:=]\s*['\"]?([a-zA-Z]\w*(?:\.\w+)+(?:\s*,\s*[a-zA-Z]\w*(?:\.\w+)+)*)")


class NotTrusted(ValueError):
    """A configuration names a target that it may not call."""


def problems(config: Any, prefix: str = "") -> list[str]:
    """The targets of a resolved configuration that it may not call, a line each; nothing is imported."""
    lines = []
    if has_too_many_values(config):
        return [f"{prefix or 'the configuration'} has more than {MOST_VALUES:,} values, as parts of it are repeated"]
    for path, value in _values(config, prefix):
        if path.count(".") >= DEEPEST:
            return [f"{path.split('.')[0]} is nested in itself, or more than {DEEPEST} levels deep"]
        if isinstance(value, dict) and "_target_" in value:
            lines += _target_problems(path, value["_target_"])
            for key in reach.url_settings(value) if value["_target_"] not in ALLOWED else ():
                lines.append(f"{path}.{key}={format_value(value[key])} is refused: it is a URL; name a folder or file")
        elif isinstance(value, str) and "${" in value:
            # `instantiate` resolves a second time, and the result has not been checked
            lines.append(f"{path}={format_value(value)}: an interpolation remains after resolving; write its value")
    return lines


def hydra_problems(node: Any) -> list[str]:
    """The same of the unresolved node `hydra`: its callbacks, launcher and sweeper are built before the job starts."""
    if not isinstance(node, dict):
        return [f"hydra={format_value(node)} is not a mapping"]
    lines = []
    for path, value in _values(node, "hydra"):
        part, key = f"{path}.".split(".")[1], path.rpartition(".")[2]
        if path.count(".") >= DEEPEST:
            return [f"hydra.{part} is more than {DEEPEST} levels deep"]
        if isinstance(value, dict) and "_target_" in value:
            lines += _target_problems(path, value["_target_"])
        text = value if isinstance(value, str) else ""
        if isinstance(value, str) and path not in ALLOWED and (reason := reach.hydra_reason(path, value)):
            lines.append(f"{path} is refused: {reason}")
        if part in (*MADE_BY_HYDRA, *LOGGING) and not path.endswith("._target_"):
            is_reference = text.startswith("${") and text.endswith("}")
            is_hydra_s = part not in LOGGING and re.fullmatch(r"\$\{hydra\.[\w.]+\}", text)
            if "\\$" in text or (is_reference and not is_hydra_s):
                lines.append(f"{path}={format_value(text)} can't be checked before Hydra uses it; write its value")
        if part in LOGGING:
            calls = key in ("()", "factory") or (key == "class" and value not in LOG_CLASSES)
            if calls or (re.search(r"\w+://", text) and text not in STREAMS):
                remedy = f"use {', '.join(LOG_CLASSES)}"
                lines.append(f"{path}={format_value(value)} is refused: logging would call it; {remedy}")
    launcher = node.get("launcher")
    if isinstance(launcher, dict) and launcher.get("setup") and launcher.get("_target_") not in ALLOWED:
        setup = f"hydra.launcher.setup={format_value(launcher['setup'])}"
        remedy = f"if you trust it, start with {VARIABLE}={launcher.get('_target_')}"
        lines.append(f"{setup} is refused: a shell would run it; {remedy}")
    for name in (node.get("job") or {}).get("env_set") or {}:
        lines.append(f"hydra.job.env_set.{name} can't be set here; set the variable where the program is started")
    return lines


def trust_named_packages(overrides: Iterable[str], config_dir: str | None) -> None:
    """Trust the packages of targets in a command line's own overrides and in the YAML files of its `--config-dir`.

    Child processes inherit this in `VITLAB_ALLOW`. The standard library gains nothing by it, and offered packages only
    the parts and addresses that a command line may choose (`reach`).
    """
    global ALLOWED
    own = list(overrides)
    texts = [*own]
    if config_dir is not None:  # its groups alone: a run folder below it may be somebody else's
        groups = [folder.name for folder in paths.CONF.iterdir() if folder.is_dir()]
        patterns = ("*.yaml", *(f"{group}/**/*.yaml" for group in (*groups, "classifier", "experiment")))
        files = (file for pattern in patterns for file in sorted(Path(config_dir).glob(pattern)))
        texts += [file.read_text(errors="replace") for file in files]
    targets = [target for text in texts for names in TARGET.findall(text) for target in re.split(r"\s*,\s*", names)]
    packages = dict.fromkeys(target.partition(".")[0] for target in targets)
    known = (*OFFERED_PACKAGES, *sys.stdlib_module_names, *ALLOWED)
    named = [target for line in own for names in TARGET.findall(line) for target in re.split(r"\s*,\s*", names)]
    new = [*(package for package in packages if package not in known), *reach.named_by_user(own, named)]
    ALLOWED = tuple(dict.fromkeys([*ALLOWED, *new]))
    if ALLOWED:
        os.environ[VARIABLE] = ",".join(ALLOWED)


def is_trusted(name: str) -> bool:
    """Whether a dotted path begins with a package that the user trusts; nothing is imported."""
    package = name.partition(".")[0]
    if _within(name, ALLOWED) or package in OFFERED_PACKAGES:
        return _within(name, ALLOWED)
    try:
        spec = definitions.find_spec(package)
    except ValueError:  # `__main__`
        return False
    own = (WORKING_DIR / f"{package}.py", WORKING_DIR / package / "__init__.py")  # other folders are no packages
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() in own


def require_allowed(config: Any, prefix: str = "") -> None:
    """Raise `NotTrusted` with all problems: the last check, just before an object is built."""
    if lines := problems(config, prefix):
        raise NotTrusted("; ".join(lines))


def database_problems(config: Any) -> list[str]:
    """The database servers that a configuration names, before a search adds its own."""
    remedy = "a search sets it, to hydra.sweeper.storage; leave it out"
    return [
        f"{path}.storage is refused: it names a server, which would get your credentials; {remedy}"
        for path, value in _values(config, "")
        if reach.names_database(value)
    ]


def has_too_many_values(config: Any) -> bool:
    """Whether a configuration is too long to walk through, as one whose parts are shared many times over."""
    return next(islice(_values(config, ""), MOST_VALUES, None), None) is not None


def import_problems(config: Any) -> Iterator[str]:
    """Trusted targets that can't be imported; those of offered packages are in source files."""
    for path, value in _values(config, ""):
        target = value.get("_target_") if isinstance(value, dict) else None
        if isinstance(target, str) and target.split(".")[0] not in OFFERED_PACKAGES:
            try:
                resolve(target)
            except ImportError as error:
                yield f"{path}._target_={target} can't be imported: {error}"


def _values(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """All values in a tree of mappings and lists with their dotted paths, to one level below the deepest."""
    yield path, value
    if path.count(".") >= DEEPEST:
        return
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in pairs:
        yield from _values(inner, f"{path}.{key}" if path else str(key))


def _target_problems(path: str, target: Any) -> list[str]:
    if not isinstance(target, str):
        return [f"{path}._target_={format_value(target)} is not a dotted path to a callable"]
    reason = refusal(target)
    where = f"{path}._target_={format_value(target)}" if path else f"_target_={format_value(target)}"
    if reason and " has no " in reason:
        return [f"{where} can't be imported: {reason}"]
    remedy = f"if you trust it, and who wrote this configuration, start with {VARIABLE}={target}"
    return [f"{where} is refused: {reason}; {remedy}"] if reason else []


def refusal(target: str) -> str | None:
    """Why a target may not be called; None if it may be. Nothing is imported."""
    parent = target.rpartition(".")[0]
    if not all(part.isidentifier() for part in target.split(".")):
        return "it is no dotted path"
    if target in (*ALLOWED, *LAUNCHERS):
        return None
    by_user = is_trusted(target)
    if not by_user and target.split(".")[0] not in OFFERED_PACKAGES:
        return f"a configuration may call what {OFFERED} offer, and modules in the working directory"
    place = next((place for place in PLACES if _within(parent, (place,))), "")
    private = any(part.startswith("_") for part in target[len(place) :].split("."))
    if not by_user and (private or not (place or parent in TOPS)):
        return "no parts of experiments are there"
    definition = definitions.find(target)
    if definition is None:
        return None if by_user and definitions.is_made_at_run_time(target) else _missing_part(target) or NO_PART
    path = f"{definition.module}.{definition.name}"
    if is_trusted(definition.module):
        return None
    if by_user or not _within(definition.module, PLACES):
        return NO_PART
    if isinstance(definition.node, ast.FunctionDef):
        calls = [d.func for d in definition.node.decorator_list if isinstance(d, ast.Call)]
        is_allowed = _within(path, FUNCTIONS) or "Facts" in map(ast.unparse, calls)  # which loads a data set
    else:
        is_allowed = bool(definitions.is_kind_of(path, KINDS) or definitions.is_kind_of(path, _defined_kinds()))
    if is_allowed and (reason := reach.reason_to_name(path)):
        return reason
    return None if is_allowed else NO_PART


@cache
def _defined_kinds() -> frozenset[str]:
    """`KINDS` by where they are defined."""
    return frozenset(path for kind in KINDS for path in definitions.follow(kind))


def _missing_part(path: str) -> str | None:
    """Which part of a path is neither in its module's source nor a module there: `torch.optim has no 'AdmW'`."""
    module, *parts = path.split(".")
    while parts and definitions.is_module(f"{module}.{parts[0]}"):
        module = f"{module}.{parts.pop(0)}"
    spec = definitions.find_spec(module)
    modules = pkgutil.iter_modules(spec.submodule_search_locations or [] if spec else [])
    names = [*definitions.bindings(module), *(entry.name for entry in modules)]
    return f"{module} has no {parts[0]!r}{suggest(parts[0], names)}" if parts and parts[0] not in names else None


def _within(name: str, holders: tuple[str, ...]) -> bool:
    return any(name == holder or name.startswith(f"{holder}.") for holder in holders)
