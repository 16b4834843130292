"""What is wrong with a search, before anything starts: its space, objectives, sampler, pruner and database."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from hydra.core.config_loader import ConfigLoader

from vitlab.resolvers import better
from vitlab.schema import Node, suggest
from vitlab.space import NotASpace, Space, read

PLUGIN = "hydra_plugins.vitlab_sweepers.optuna_sweeper.OptunaSweeper"
GRID = "hydra_plugins.vitlab_grid.grid.GridSweeper"
SWEEPERS = (PLUGIN, GRID)
INSTALL = "pip install 'optuna>=4.5'"
SCORES = ("val/acc", "val/acc5", "val/loss")  # measured at each validation: what a trial can be pruned by
COSTS = ("parameters", "images_per_second", "seconds")
DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {"max": "maximize", "min": "minimize"}


def problems(node: Node, lines: Sequence[str], config: Node, loader: ConfigLoader | None) -> tuple[Space, list[str]]:
    """What is searched, and everything wrong with a sweeper's node, given the command line's other overrides.

    `config` is the configuration with these overrides, which says what the objective is.
    """
    from vitlab import schema

    if node["_target_"] == GRID:
        return grid_problems(node, lines, loader)
    try:
        import optuna  # noqa: F401
    except ImportError:
        return Space(), [f"hydra/sweeper=optuna needs Optuna, which is not installed: {INSTALL}"]
    found = schema.node_problems("hydra.sweeper", {k: v for k, v in node.items() if v != {}})
    space = Space()
    try:
        space, _ = read(lines, node.get("params"), node.get("when"), loader)
        if not space.parameters:
            found.append("hydra/sweeper=optuna has nothing to search; add KEY=interval(A,B), or hydra.sweeper.params")
    except NotASpace as error:
        found += error.problems
    if found:
        return space, found
    for key, least in (("n_trials", 1), ("n_jobs", 1), ("max_failures", 1)):
        if node.get(key) is not None and node[key] < least:
            found.append(f"hydra.sweeper.{key}={node[key]} must be at least {least}")
    objectives = objectives_of(node, config)
    found += [*sampler_problems(node, space), *objective_problems(node, objectives)]
    if (storage := node.get("storage")) is not None:
        found += storage_problems(storage)
    return space, found or [*made_problems(node)]


def grid_problems(node: Node, lines: Sequence[str], loader: ConfigLoader | None) -> tuple[Space, list[str]]:
    """The same for a sweeper that goes through every combination, and has no conditions."""
    try:
        space, _ = read(lines, node.get("params"), None, loader)
        space.combinations()
    except NotASpace as error:
        return Space(), error.problems
    return space, []


def objectives_of(node: Node, config: Node) -> dict[str, str]:
    """What is optimized, and whether to its `min` or its `max`."""
    return dict(node.get("objectives") or {config["objective"]: better(config["objective"])})


def sampler_problems(node: Node, space: Space) -> Iterator[str]:
    sampler = str((node.get("sampler") or {}).get("_target_", ""))
    if sampler.endswith(("GridSampler", "BruteForceSampler")):
        yield f"hydra.sweeper.sampler={sampler}: use hydra/sweeper/sampler=grid, which can be gone on with"
    elif not sampler:
        try:
            space.combinations()
        except NotASpace as error:
            yield from error.problems
    elif node.get("n_trials") is None:
        yield "hydra.sweeper.n_trials is not set; only a grid has an end of its own"


def objective_problems(node: Node, objectives: Mapping[str, str]) -> Iterator[str]:
    for name, direction in objectives.items():
        if name.startswith("test/"):
            yield f"hydra.sweeper.objectives.{name}: what is chosen by the test split can't be tested on it; use val/"
        elif name not in (*SCORES, *COSTS):
            names = ", ".join((*SCORES, *COSTS))
            yield f"hydra.sweeper.objectives.{name} is not measured{suggest(name, (*SCORES, *COSTS))} (of {names})"
        if direction not in DIRECTIONS:
            yield f"hydra.sweeper.objectives.{name}={direction} is no direction; use max or min"
    if node.get("pruner"):
        remedy = "add hydra/sweeper/pruner=none"
        if len(objectives) > 1:
            yield f"hydra.sweeper.pruner: Optuna prunes by one objective, and there are {len(objectives)}; {remedy}"
        elif next(iter(objectives)) in COSTS:
            yield f"hydra.sweeper.pruner: {next(iter(objectives))} isn't known while a trial trains; {remedy}"


def storage_problems(storage: str) -> Iterator[str]:
    if "://" not in storage:
        yield f"hydra.sweeper.storage={storage} is no URL; write sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    elif password := urlsplit(storage).password:
        yield (
            f"hydra.sweeper.storage={storage.replace(f':{password}@', ':...@')} holds a password, which would stand in "
            "every run's folder; leave it out, and put it into ~/.pgpass or the variable PGPASSWORD"
        )


def made_problems(node: Node) -> Iterator[str]:
    """What the sampler and the pruner themselves refuse, and the database."""
    from vitlab import build, study

    made: dict[str, Any] = {}
    for part, make in (("sampler", lambda inner: study.reseeded(inner, build.make)), ("pruner", build.make)):
        if node.get(part):
            try:
                made[part] = make(node[part])
            except Exception as error:  # they refuse in many ways
                yield f"hydra.sweeper.{part}: {str(error.__cause__ or error).splitlines()[0]}"
    if node.get("storage") and (problem := study.unreachable(node["storage"])):
        yield problem
