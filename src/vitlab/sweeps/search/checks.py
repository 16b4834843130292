"""Check a search before it starts: its space, objectives, sampler, pruner and database."""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_loader import ConfigLoader

from vitlab.config import schema
from vitlab.config.objective import OBJECTIVES
from vitlab.config.schema import Node, suggest
from vitlab.runs.folder import write_problem
from vitlab.sweeps import ledger
from vitlab.sweeps.report.table import COSTS
from vitlab.sweeps.search.space import InvalidSearchSpace, Parameter, read_space

GRID = "hydra_plugins.vitlab.grid.GridSweeper"
SWEEPERS = (GRID, "hydra_plugins.vitlab.optuna.OptunaSweeper")
# a database's URL without a place for a password
URL = re.compile(
    r"sqlite:///[^?]+|\w+(\+\w+)?://(([\w.-]|%40)+@)?([\w.-]*|\[[\da-f:.]+\])(:\d+)?/[\w-]+(\?sslmode=[\w-]+)?"
)


def problems(
    node: Node, lines: Sequence[str], config: Node, loader: ConfigLoader | None
) -> tuple[list[Parameter], list[str]]:
    """Return the searched parameters and the problems of a sweeper's node, given the command line's other overrides.

    `config` is the configuration with these overrides; it has the objective.
    """
    parameters, mistakes = list[Parameter](), list[str]()
    try:
        parameters, _ = read_space(lines, node.get("params"), loader)
    except InvalidSearchSpace as error:
        mistakes += error.problems
    if node["_target_"] == GRID:
        remedy = "a grid needs choice(...) or range(...); or add hydra/sweeper=optuna"
        endless = [p.key for p in parameters if not p.values and p.step is None]
        return parameters, mistakes + [f"{key} has infinitely many values: {remedy}" for key in endless]
    if not find_spec("optuna"):
        return [], ["hydra/sweeper=optuna needs Optuna, which is not installed: pip install 'optuna>=4.5'"]
    if not parameters and not mistakes:
        mistakes.append("hydra/sweeper=optuna has nothing to search; add KEY=interval(A,B), or hydra.sweeper.params")
    mistakes = schema.node_problems("hydra.sweeper", {k: v for k, v in node.items() if v != {}}) + mistakes
    if isinstance(node.get("objectives"), dict | None):
        objectives = ledger.objectives_of(node, config["objective"])
        mistakes += objective_problems(node, objectives)
        if config["data"].get("val_fraction") == 0 and any(name.startswith("val/") for name in objectives):
            mistakes.append(
                "a search compares validation scores, and data.val_fraction=0 holds out no split; set it to 0.1"
            )
    if isinstance(storage := node.get("storage"), str):
        mistakes += filter(None, [storage_problem(storage)])
    return parameters, mistakes or [*constructor_problems(node)]


def objective_problems(node: Node, objectives: Mapping[str, str]) -> Iterator[str]:
    known = (*OBJECTIVES, *COSTS)
    for name, goal in objectives.items():
        if name.startswith("test/"):
            yield f"hydra.sweeper.objectives.{name}: the test split can't test what was chosen by it; use val/"
        elif name not in known:
            yield f"hydra.sweeper.objectives.{name} is not measured{suggest(name, known)} (of {', '.join(known)})"
        if goal not in ("max", "min"):
            yield f"hydra.sweeper.objectives.{name}={goal} is not a direction; use max or min"
    if node.get("pruner"):
        first, remedy = next(iter(objectives)), "add hydra/sweeper/pruner=none"
        if len(objectives) > 1:
            yield f"hydra.sweeper.pruner: Optuna prunes by one objective, and there are {len(objectives)}; {remedy}"
        elif first in COSTS:
            yield f"hydra.sweeper.pruner: {first} isn't known while a trial trains; {remedy}"


def storage_problem(storage: str) -> str | None:
    """Return why a database can't be used, or None; write nothing to it."""
    from sqlalchemy import NullPool, create_engine, make_url
    from sqlalchemy.exc import SQLAlchemyError

    if problem := url_problem(storage):
        return problem
    if storage.startswith("sqlite"):  # connecting would create the file
        return write_problem("hydra.sweeper.storage", Path(make_url(storage).database or ".").absolute().parent)
    try:
        create_engine(storage, poolclass=NullPool).connect().close()
    except (SQLAlchemyError, ImportError) as error:
        return f"hydra.sweeper.storage={storage} can't be reached: {str(error).splitlines()[0]}"
    return None


def url_problem(storage: str) -> str | None:
    """Return why a URL may have a password in it, or None; nothing of what may be one is repeated.

    Drivers read passwords from the query too, under many names. Unquoted characters put a password into the database.
    """
    if URL.fullmatch(storage):
        return None
    scheme, separator, _ = storage.strip().partition("://")
    shown = f"{scheme}://..." if separator else "..."
    forms = "sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    why = "each run's folder would show a password or other options; put them into ~/.pgpass or the variable PGPASSWORD"
    return f"hydra.sweeper.storage={shown} has another form than {forms}: {why}"


def constructor_problems(node: Node) -> Iterator[str]:
    """Yield the errors of the sampler's and the pruner's constructors."""
    from vitlab.config import instantiate
    from vitlab.sweeps.search.study import build_sampler

    if str(node["sampler"].get("_target_")).endswith(("GridSampler", "BruteForceSampler")):
        yield f"hydra.sweeper.sampler={node['sampler']['_target_']} can't be resumed; use hydra/sweeper=grid"
        return
    for part in ("sampler", "pruner"):
        try:
            if node.get(part):
                (build_sampler if part == "sampler" else instantiate.build_object)(node[part])
        except Exception as error:  # of many kinds
            yield f"hydra.sweeper.{part}: {str(error.__cause__ or error).splitlines()[0]}"
