"""Programs, and the checks of their configurations before anything long: keys, types, bounds, relations between keys.

Nothing here raises: every problem is a line, so a user sees all of them at once. Bounds are part of the signatures.
"""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException

from vitlab.cli import model_checks, trainer_checks
from vitlab.config import allowlist, docstrings, schema
from vitlab.config.printable import printable
from vitlab.config.schema import ConfigView, Node, call_problems, child_nodes, format_value
from vitlab.jobs import identity
from vitlab.jobs.run import Function
from vitlab.storage.remote import secret_problem

# Parameters that a program passes itself
SUPPLIED = {
    "model": ("num_classes", "in_channels"),
    "optimizer": ("params",),
    "schedule": ("optimizer", "total_steps", "steps_per_epoch"),
    "weights": ("arguments", "source"),
    "classifier": ("network", "num_classes", "optimizer", "schedule", "batch_size"),
}
# Groups without a `_target_`: the callable whose arguments they are
CALLED = {"weights": "vitlab.weights.load.load_network", "classifier": "vitlab.training.classifier.Classifier"}
# Root keys that groups refer to; another value in a group would apply to half of the program.
SHARED = ("data.image_size", "data.batch_size", "data.seed", "model.image_size")
# Settings that the program sets, and what to use instead
TAKEN = {
    "trainer.logger": "use the group logger",
    "trainer.callbacks": "use the group callbacks",
    "trainer.default_root_dir": "use hydra.run.dir",
    "classifier.network": "use the group model",
    "classifier.num_classes": "the data has it",
    "classifier.optimizer": "use the group optimizer",
    "classifier.schedule": "use the group schedule",
    "classifier.batch_size": "set batch_size",
    "schedule.total_steps": "set trainer.max_epochs or trainer.max_steps",
    "schedule.steps_per_epoch": "it follows from the data and batch_size",
}
LONGEST_NAME = 255  # bytes, on the usual file systems

Rule = Callable[[ConfigView], Iterable[str]]  # yields the problems of a configuration, a line each


@dataclass(frozen=True)
class Program:
    """A program: its name (and that of its file in `conf`), its function, and the rule for its own settings.

    `absent` are the training's "devices" or "data" that a program needn't have: without devices it is one process.
    """

    name: str
    function: Function
    check: Rule = lambda view: ()
    absent: tuple[str, ...] = ()


def with_settings_of(program: Program, *, without: Iterable[str]) -> Callable[[Function], Function]:
    """Give a function that takes `**settings` those of another program, with their types and explanations."""
    theirs = inspect.signature(program.function)
    lines = docstrings.parse_arguments(inspect.getdoc(program.function) or "")

    def extend(function: Function) -> Function:
        own: Any = inspect.signature(function)
        named = {name: p for name, p in own.parameters.items() if p.kind is not p.VAR_KEYWORD}
        added = {name: p for name, p in theirs.parameters.items() if name not in {*without, *named}}
        function.__signature__ = own.replace(parameters=[*named.values(), *added.values()])  # type: ignore[attr-defined]
        function.__annotations__ |= {name: p.annotation for name, p in added.items()}
        shared = (f"    {name}: {lines[name]}" for name in added)
        function.__doc__ = "\n".join([inspect.getdoc(function) or "", *shared])
        return function

    return extend


def message(name: str, problems: list[str]) -> str:
    """All problems of a configuration, a line each."""
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    lines = [f"{name}: {count} in the configuration; nothing was started.", *(f"  - {p}" for p in problems)]
    return printable("\n".join(lines))


def problems(program: Program, config: Node | str, *, remote: bool = False) -> list[str]:
    """All problems of a program's resolved configuration, or of one that couldn't be resolved.

    A configuration with a refused target is not checked further. `remote`: for jobs on a cluster's machines.
    """
    if isinstance(config, str):
        return [config]
    if refused := allowlist.problems(config) or allowlist.database_problems(config):
        return refused
    lines, remote = signature_problems(program.function, config), remote or "devices" in program.absent
    needless = model_checks.source_problems if "data" in program.absent else None
    for rule in (rule for rule in (program.check, *RULES) if rule is not needless):
        lines += rule(view_of(config, lines, remote))
    for rule in () if lines else LAST_RULES:
        lines += rule(view_of(config, lines, remote))
    # a problem of a root key comes again in the groups that refer to it
    return [problem for problem in lines if problem.partition(".")[2] not in lines]


def view_of(config: Node, lines: list[str], remote: bool) -> ConfigView:
    """The configuration without the values that have a problem already: one mistake, one line."""
    return ConfigView(config, {line.split("=")[0].split(" ")[0].rstrip(":") for line in lines}, remote=remote)


def signature_problems(function: Function, config: Node) -> list[str]:
    """Problems by the signatures of the program's function and of all targets."""
    supplied = SUPPLIED | {f"classifier.metrics.{name}": ("num_classes",) for name in metric_nodes(config)}
    lines = call_problems("", config, function, supplied=supplied)
    for key, target in CALLED.items():
        if isinstance(config.get(key), dict):
            given = {k: v for k, v in config[key].items() if (key, k) != ("weights", "source")}
            lines += call_problems(key, given, target, supplied=supplied)
    return lines


def metric_nodes(config: Node) -> dict[str, Node]:
    """Nodes of `classifier.metrics`, by name."""
    classifier = config.get("classifier")
    metrics = classifier.get("metrics") if isinstance(classifier, dict) else None
    return child_nodes(metrics) if isinstance(metrics, dict) and "_target_" not in metrics else {}


def place_problems(view: ConfigView) -> Iterator[str]:
    """Settings where they have no effect, or only part of it."""
    for path in SHARED:
        key = path.rpartition(".")[2]
        inner, outer = view(path), view(key)
        if inner is not None and outer is not None and inner != outer:
            remedy = f"set {key} alone, which everything reads"
            yield f"{path}={format_value(inner)}, but {key}={format_value(outer)}; {remedy}"
    for path, remedy in TAKEN.items():
        if view(path) is not None:
            yield f"{path}={format_value(view(path))} can't be set here; {remedy}"


def name_problems(view: ConfigView) -> Iterator[str]:
    if (name := view("name", str)) is None:
        return
    parts = name.split("/")
    if not all(part.strip() == part != "" and not part.startswith(".") for part in parts) or "\\" in name:
        yield f"name={name!r} must be a plain folder name below runs/"
    elif not name.isprintable():
        yield f"name={name!r} must be a plain folder name below runs/: it holds what can't be printed"
    elif max(len(os.fsencode(part)) for part in parts) > LONGEST_NAME or len(parts) > 8:
        most = f"a folder name has at most {LONGEST_NAME} bytes, and 8 parts"
        yield f"name={format_value(name)}: {most}; set a shorter one"


def sweep_problems(view: ConfigView) -> Iterator[str]:
    """Problems of a sweep's name."""
    sweep = view("sweep", str)
    if sweep is not None and (sweep != identity.slugify(sweep) or len(os.fsencode(sweep)) > LONGEST_NAME):
        name = f"{LONGEST_NAME} letters, digits, '.', '_', '-' or '+' at most, a letter or digit first"
        yield f"sweep={format_value(sweep)} must be a plain folder name below runs/sweeps: {name}"


def optimizer_problems(view: ConfigView) -> Iterator[str]:
    if (lr := view("optimizer.lr", float)) is not None and not lr > 0:
        yield f"optimizer.lr={format_value(lr)} must be above 0"
    if (decay := view("optimizer.weight_decay", float)) is not None and decay < 0:
        yield f"optimizer.weight_decay={format_value(decay)} must be 0 or more"
    algo, target = view("optimizer.algo", str), view("optimizer._target_", str) or ""
    if algo not in (None, "muon") and "MuonQKV" in target:
        yield f"optimizer.algo={algo} is not for optimizer=muon_qkv; use optimizer=muon"


def root_problems(view: ConfigView) -> Iterator[str]:
    objective, folder = view("objective", str), view("data_dir", str)
    metrics = metric_nodes(view.config)
    if objective is not None and objective not in (known := schema.objectives(metrics)):
        yield f"objective={objective} is not measured; use one of {', '.join(known)}"
    for name in metrics:
        if name in schema.SCORES or not name.isidentifier():
            yield f"classifier.metrics.{name}: use a plain name; {', '.join(schema.SCORES)} are measured in every run"
    if folder and (secret := secret_problem(folder)):
        yield secret
    elif folder and Path(folder).exists() and not os.access(folder, os.R_OK):
        yield f"data_dir={folder} can't be read"


def metric_problems(view: ConfigView) -> Iterator[str]:
    """Metrics that can't be built, or whose names imply the wrong direction."""
    if not (nodes := metric_nodes(view.config)):
        return
    from torchmetrics import Metric

    from vitlab.training.build import build_metrics

    for name, node in nodes.items():
        path, score = f"classifier.metrics.{name}", f"val/{name}"
        try:
            metric: Any = build_metrics({name: node}, model_checks.facts_of(view).num_classes or 1000)[name]
        except InstantiationException as error:
            yield f"{path} can't be built: {error.__cause__ or error}"
            continue
        higher = getattr(metric, "higher_is_better", None)
        if not isinstance(metric, Metric):
            yield f"{path}._target_={node['_target_']} is no torchmetrics.Metric"
        elif view("objective", str) == score and higher is not None and higher != (schema.direction(score) == "max"):
            remedy = "leave 'loss' and 'error' out of its name" if higher else f"call it {name}_error"
            yield f"objective={score}: {'higher' if higher else 'lower'} values of this metric are better; {remedy}"


RULES: tuple[Rule, ...] = (
    place_problems,
    trainer_checks.trainer_problems,
    trainer_checks.device_problems,
    model_checks.weights_problems,
    model_checks.model_problems,
    model_checks.data_problems,
    model_checks.size_problems,
    model_checks.source_problems,
    model_checks.batch_problems,
    trainer_checks.schedule_problems,
    name_problems,
    optimizer_problems,
    trainer_checks.group_problems,
    trainer_checks.callback_problems,
    root_problems,
)
# Checked only if there are no other problems: they import what a run needs.
LAST_RULES: tuple[Rule, ...] = (
    lambda view: allowlist.import_problems(view.config),
    metric_problems,
    trainer_checks.gpu_problems,
    model_checks.augment_problems,
    model_checks.fine_tuning_problems,
    model_checks.loss_problems,
)
