"""What a configuration may call: one that somebody else wrote is read as settings, never run as a program.

Hydra calls whatever a `_target_` names, and importing a module runs it. So each `_target_`, at any depth, is judged
before anything of it is imported, from source files where these tell what it is:

    A target is a class of a kind that experiments are made of (`KINDS`), or one of `FUNCTIONS`, named where one of
    `PLACES` shows it and defined in one of `PLACES`, or it is code that the user trusts.

The user trusts modules and packages in the working directory of the command, packages that the command line or a YAML
file of `--config-dir` names as a target (`trust_named_packages`), and what `VITLAB_ALLOW` lists. Variable and working
directory are read once, when the program starts: no configuration can set them.
"""

import ast
import os
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from vitlab.config import definitions, paths
from vitlab.config.schema import format_value, resolve, walk_path

VARIABLE = "VITLAB_ALLOW"
# A whole target, or a package or module whose own definitions are trusted.
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
# A package may show at its top what it defines further in: lightning.Trainer.
TOPS = ("lightning", "torchmetrics")
KINDS = (
    *("torch.nn.Module", "torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler"),
    # as the libraries themselves import some of these: found sooner
    *("torch.nn.modules.module.Module", "torch.optim.optimizer.Optimizer", "lightning.pytorch.trainer.trainer.Trainer"),
    *("lightning.pytorch.callbacks.Callback", "lightning.pytorch.callbacks.callback.Callback"),
    *("lightning.pytorch.Trainer", "lightning.pytorch.Callback", "lightning.pytorch.LightningDataModule"),
    *("lightning.pytorch.loggers.Logger", "lightning.pytorch.profilers.Profiler"),
    *("lightning.pytorch.accelerators.Accelerator", "lightning.pytorch.strategies.Strategy"),
    *("lightning.pytorch.plugins.Precision", "lightning.pytorch.plugins.LayerSync"),
    *("lightning.fabric.plugins.CheckpointIO", "lightning.fabric.plugins.ClusterEnvironment"),
    *("vitlab.evaluation.probes.Probe", "vitlab.benchmark.case.Part"),
    *("hydra.experimental.callback.Callback", "hydra.plugins.launcher.Launcher", "hydra.plugins.sweeper.Sweeper"),
    *("optuna.samplers.BaseSampler", "optuna.pruners.BasePruner"),
)
FUNCTIONS = (  # functions, or modules of ours that hold nothing else
    *("vitlab.models.timm_model", "vitlab.training.schedules", "vitlab.runs.wandb.wandb_logger"),
    *(f"torch.optim.swa_utils.get_{kind}_avg_fn" for kind in ("ema", "ema_multi", "swa", "swa_multi")),
)
# Launchers of sweeps, ours and two of Hydra's own plugins: exactly these.
LAUNCHERS = (
    *(f"hydra_plugins.vitlab.launchers.{kind}Launcher" for kind in ("Local", "Slurm", "Ray")),
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
)
SHELL = "hydra.launcher.setup"  # lines that some of them would run in a shell
NO_PART = "{name} is none of the classes and functions that experiments are made of"
DEEPEST = 64  # levels of a configuration; one that holds itself has no end

# What Hydra makes before any job can check itself: interpolations there could mean something else by then.
MADE_BY_HYDRA = ("callbacks", "launcher", "sweeper")
LOGGING = ("hydra_logging", "job_logging")
LOG_CLASSES = ("logging.FileHandler", "logging.Formatter", "logging.NullHandler", "logging.StreamHandler")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


# In an override or a YAML file; a sweep names several.
TARGET = re.compile(r"\b_target_['\"]?\s*[:=]\s*['\"]?([a-zA-Z]\w*(?:\.\w+)+(?:\s*,\s*[a-zA-Z]\w*(?:\.\w+)+)*)")


class NotTrusted(ValueError):
    """A configuration would call what it may not."""


def problems(config: Any, prefix: str = "") -> list[str]:
    """What a resolved configuration may not call, a line each; nothing of it has been imported then."""
    found = []
    for path, value in _values(config, prefix):
        if path.count(".") >= DEEPEST:
            return [f"{path.split('.')[0]} is nested in itself, or more than {DEEPEST} levels deep"]
        if isinstance(value, dict) and "_target_" in value:
            found += _refused(path, value["_target_"])
        elif isinstance(value, str) and "${" in value:
            # `instantiate` resolves a second time, and what comes out then has not been looked at
            found.append(
                f"{path}={format_value(value)}: an interpolation is left after resolving; write the value itself"
            )
    return found


def hydra_problems(node: Any) -> list[str]:
    """The same for the unresolved node `hydra`: its callbacks, launcher and sweeper are made before the job starts."""
    if not isinstance(node, dict):
        return [f"hydra={format_value(node)} is not a mapping"]
    found = []
    for path, value in _values(node, "hydra"):
        part, key = f"{path}.".split(".")[1], path.rpartition(".")[2]
        if path.count(".") >= DEEPEST:
            return [f"hydra.{part} is more than {DEEPEST} levels deep"]
        if isinstance(value, dict) and "_target_" in value:
            found += _refused(path, value["_target_"])
        text = value if isinstance(value, str) else ""
        if part in (*MADE_BY_HYDRA, *LOGGING) and not path.endswith("._target_"):
            whole = text.startswith("${") and text.endswith("}")
            if "\\$" in text or (whole and (part in LOGGING or not re.fullmatch(r"\$\{hydra\.[\w.]+\}", text))):
                found.append(
                    f"{path}={format_value(text)} can't be checked before Hydra uses it; write the value itself"
                )
        if part in LOGGING:
            calls = key in ("()", "factory") or (key == "class" and value not in LOG_CLASSES)
            if calls or (re.search(r"\w+://", text) and text not in STREAMS):
                found.append(
                    f"{path}={format_value(value)} is refused: logging would call it; use {', '.join(LOG_CLASSES)}"
                )
    launcher = node.get("launcher") or {}
    if isinstance(launcher, dict) and launcher.get("setup") and launcher.get("_target_") not in ALLOWED:
        remedy = f"if you trust it, start with {VARIABLE}={launcher.get('_target_')}"
        found.append(f"{SHELL}={format_value(launcher['setup'])} is refused: a shell would run it; {remedy}")
    settings = (node.get("job") or {}).get("env_set") or {}
    for name in settings:
        found.append(f"hydra.job.env_set.{name} can't be set here; set the variable where the program is started")
    return found


def trust_named_packages(overrides: Iterable[str], config_dir: str | None) -> None:
    """Trust the packages of targets in a command line's own overrides and in the YAML files of its `--config-dir`.

    Child processes inherit this in `VITLAB_ALLOW`. Packages that are offered, and the standard library, are trusted in
    parts only.
    """
    global ALLOWED
    texts = [*overrides]
    if config_dir is not None:  # its groups: a run folder below it is somebody else's, perhaps
        groups = [folder.name for folder in paths.CONF.iterdir() if folder.is_dir()]
        patterns = ("*.yaml", *(f"{group}/**/*.yaml" for group in (*groups, "classifier", "experiment")))
        texts += [file.read_text() for pattern in patterns for file in sorted(Path(config_dir).glob(pattern))]
    targets = [target for text in texts for found in TARGET.findall(text) for target in re.split(r"\s*,\s*", found)]
    names = dict.fromkeys(target.partition(".")[0] for target in targets)
    unknown = [name for name in names if name not in (*OFFERED_PACKAGES, *sys.stdlib_module_names, *ALLOWED)]
    ALLOWED = (*ALLOWED, *unknown)
    if ALLOWED:
        os.environ[VARIABLE] = ",".join(ALLOWED)


def is_trusted(name: str) -> bool:
    """Whether a dotted path begins with what the user trusts; nothing is imported."""
    package = name.partition(".")[0]
    if _within(name, ALLOWED):
        return True
    if package in OFFERED_PACKAGES:
        return False
    try:
        spec = definitions.find_spec(package)
    except ValueError:  # `__main__`
        return False
    own = (WORKING_DIR / f"{package}.py", WORKING_DIR / package / "__init__.py")  # other folders are no packages
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() in own


def require_allowed(config: Any, prefix: str = "") -> None:
    """Raises `NotTrusted` with all problems: the last look, just before a node is made."""
    if found := problems(config, prefix):
        raise NotTrusted("; ".join(found))


def import_problems(config: Any) -> Iterator[str]:
    """Which targets that the user has allowed can't be imported; those that are offered have been found."""
    for path, value in _values(config, ""):
        target = value.get("_target_") if isinstance(value, dict) else None
        if isinstance(target, str) and target.split(".")[0] not in OFFERED_PACKAGES:
            try:
                resolve(target)
            except ImportError as error:
                yield f"{path}._target_={target} can't be imported: {error}"


def _values(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Everything in a tree of mappings and lists, with its dotted path, to one level below the deepest."""
    yield path, value
    if path.count(".") >= DEEPEST:
        return
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in pairs:
        yield from _values(inner, f"{path}.{key}" if path else str(key))


def _refused(path: str, target: Any) -> list[str]:
    if not isinstance(target, str):
        return [f"{path}._target_={format_value(target)} is not a dotted path to a callable"]
    reason = refusal(target)
    where = f"{path}._target_={format_value(target)}" if path else f"_target_={format_value(target)}"
    remedy = f"if you trust it, and who wrote this configuration, start with {VARIABLE}={target}"
    return [f"{where} is refused: {reason}; {remedy}"] if reason else []


def refusal(target: str) -> str | None:
    """Why a target may not be called; None where it may be, or where an allowed place has nothing of that name."""
    parent, _, name = target.rpartition(".")
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
        return "it lies where no parts of experiments are kept"
    definition = definitions.find(target)
    if definition is None:
        return _refusal_once_imported(target, by_user)
    path, allowed = f"{definition.module}.{definition.name}", False
    if is_trusted(definition.module):
        return None
    if not by_user and _within(definition.module, PLACES):
        if isinstance(definition.node, ast.FunctionDef):
            allowed = _within(path, FUNCTIONS) or _is_data_set(definition.node)
        elif (known := definitions.is_kind_of(path, KINDS) or definitions.is_kind_of(path, _defined_kinds())) is None:
            return _refusal_once_imported(target, by_user)
        else:
            allowed = known
    return None if allowed else NO_PART.format(name=name)


def _is_data_set(function: ast.FunctionDef) -> bool:
    """Whether a function loads a data set: it is decorated with `Facts(...)` about it."""
    return any(isinstance(d, ast.Call) and ast.unparse(d.func) == "Facts" for d in function.decorator_list)


@cache
def _defined_kinds() -> frozenset[str]:
    """`KINDS` by where they are defined."""
    return frozenset(path for kind in KINDS for path in definitions.follow(kind))


def _refusal_once_imported(target: str, by_user: bool) -> str | None:
    """The same for what source files don't tell of; places that the user doesn't trust have been refused before."""
    found: Any = None
    try:
        for path, found in walk_path(target):
            if isinstance(found, ModuleType):
                if found.__name__ != path:
                    return f"{path} is another module, {found.__name__}"
            elif path != target and not by_user:
                return f"{path} is no module"
    except ImportError:
        return None  # nothing is there: `schema` says so, with what was perhaps meant
    defined = str(getattr(found, "__module__", None))
    if is_trusted(defined):
        return None
    if not by_user and _within(defined, PLACES):
        if isinstance(found, type) and issubclass(found, kinds()):
            return None
        if isinstance(found, FunctionType) and (
            hasattr(found, "facts") or _within(f"{defined}.{found.__qualname__}", FUNCTIONS)
        ):
            return None
    return NO_PART.format(name=target.rpartition(".")[2])


def kinds() -> tuple[type, ...]:
    """`KINDS` as classes, those that are imported already: a class has what it is made of beside it."""
    there = [name for name in KINDS if name.rpartition(".")[0] in sys.modules]
    return tuple(kind for name in there if isinstance(kind := resolve(name), type))


def _within(name: str, holders: tuple[str, ...]) -> bool:
    return any(name == holder or name.startswith(f"{holder}.") for holder in holders)
