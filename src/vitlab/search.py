"""A search: Optuna suggests settings, Hydra's launcher trains them, and the study remembers all of it.

SWEEP/study.db                   the study, unless `hydra.sweeper.storage` names another database
SWEEP/JOB/                       the run folder of a suggestion, a job of the sweep like any other (vitlab.ledger)
SWEEP/optimization_results.yaml  the best trials, when nothing is left to do

    next trials: those that were cut off, those to be tried again, new suggestions
      -> the launcher trains a batch of them; in each, a callback reports the scores (vitlab.pruning)
      -> what their results.json says is told to the study
      -> ... until the study has `n_trials`

The study and the run folders are all there is to know: a search that is killed goes on by the same command, and several
processes with the same command share one.
"""

import itertools
import logging
import math
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitlab import claiming, identity, ledger, runs
from vitlab.config import paths
from vitlab.schema import Node
from vitlab.search_checks import DIRECTIONS, objectives_of
from vitlab.space import Parameter, Space, read

if TYPE_CHECKING:  # it is imported when there is something to search
    from optuna.study import Study
    from optuna.trial import FrozenTrial

DATABASE, RESULTS, CLAIMS = "study.db", "optimization_results.yaml", ".claims"

log = logging.getLogger(__name__)

Launch = Callable[[Sequence[Sequence[str]], int], Sequence[JobReturn]]
Compose = Callable[[Sequence[str]], DictConfig]


@dataclass(frozen=True)
class Plan:
    """What is searched for, and where. `fixed`: the overrides that all trials have."""

    folder: Path
    name: str
    storage: str
    space: Space
    fixed: list[str]
    objectives: dict[str, str]
    settings: Node
    retries: int

    @property
    def place(self) -> list[str]:
        """Where the run folders lie: machines may share a study and no file system."""
        return [platform.node(), str(self.folder)]


@dataclass(frozen=True)
class Taken:
    """A trial that this process has trained: as the study knows it, the number of its suggestion, and its job.

    `problem`: why the job's configuration can't even be composed.
    """

    trial: "FrozenTrial"
    number: int
    job: list[str]
    folder: Path
    problem: str | None = None


def search(
    settings: Node, cfg: DictConfig, arguments: Sequence[str], loader: ConfigLoader, launch: Launch
) -> dict[str, Any]:
    """Trains until the study has `n_trials`, and returns its best.

    Exits with status 1 where a trial failed for good, with 2 where the study is of something else.
    """
    from vitlab import build, study

    def compose(lines: Sequence[str]) -> DictConfig:
        return loader.load_sweep_config(cfg, list(lines))

    plan = planned(settings, cfg, arguments, loader)
    plan.folder.mkdir(parents=True, exist_ok=True)
    ledger.begin(
        plan.folder,
        command=paths.command_line(sys.argv[1:]),
        varies=dict.fromkeys(parameter.key for parameter in plan.space.parameters),
        objectives=plan.objectives,  # type: ignore[arg-type]
    )
    sampler = study.reseeded(settings["sampler"], build.make) if settings["sampler"] else None
    pruner = build.make(settings["pruner"]) if settings["pruner"] else None
    directions = [DIRECTIONS[direction] for direction in plan.objectives.values()]
    with study.opened(plan.storage, plan.name, directions, sampler=sampler, pruner=pruner) as opened:
        remember(opened, plan, compared(plan, compose, loader))
        wanted = settings["n_trials"]
        if sampler is None:
            combinations = list(plan.space.combinations())
            wanted = len(combinations) if wanted is None else min(wanted, len(combinations))
            with asking(plan):
                study.queue(opened, combinations[:wanted])
        log.info("%s: %d of %d trials are done", plan.folder, done(opened), wanted)
        for _ in itertools.count():
            claiming.leave_if_cancelled(plan.folder)
            with ExitStack() as claims:
                taken = take(opened, plan, wanted, compose, claims)
                if not taken:
                    break
                for one, error in zip(taken, train(taken, launch), strict=True):
                    tell(opened, plan, one.trial, one.folder, error or RuntimeError("it ended without results"))
            if len(failures(opened)) >= settings["max_failures"]:
                log.error("%d trials failed: the search gives up", settings["max_failures"])
                break
        results = summary(opened, plan)
        failed = failures(opened)
    if failed:
        log.error("failed for good: %d of %d trials", len(failed), wanted)
        sys.exit(1)
    return results


def callbacks_of(hydra: Any) -> Node:
    """The callbacks that a search adds to those of its trials, by name."""
    trial = OmegaConf.select(hydra, "sweeper.trial")
    return {"pruning": OmegaConf.to_container(trial)} if trial else {}


# --------------------------------------------------------------------------------------------------------- the plan


def planned(settings: Node, cfg: DictConfig, arguments: Sequence[str], loader: ConfigLoader) -> Plan:
    """The plan of a command line that has passed the checks."""
    space, fixed = read(arguments, settings["params"], settings["when"], loader)
    folder = Path(cfg.hydra.sweep.dir).resolve()
    return Plan(
        folder=folder,
        name=settings["study"] or folder.name,
        storage=settings["storage"] or f"sqlite:///{folder / DATABASE}",
        space=replace(space, parameters=tuple(spelt(p, cfg, loader) for p in space.parameters)),
        fixed=fixed,
        objectives=objectives_of(settings, {"objective": cfg.objective}),
        settings=settings,
        retries=cfg.retries,
    )


def spelt(parameter: Parameter, cfg: DictConfig, loader: ConfigLoader) -> Parameter:
    """A parameter that no file lists is added."""
    if parameter.written != parameter.key or loader.get_group_options(parameter.key):
        return parameter
    parent, _, key = parameter.key.rpartition(".")
    holder = OmegaConf.select(cfg, parent) if parent else cfg
    listed = OmegaConf.is_dict(holder) and key in holder.keys()  # noqa: SIM118 (`in` overlooks what is ???)
    return parameter if listed else replace(parameter, written=f"++{parameter.key}")


def compared(plan: Plan, compose: Compose, loader: ConfigLoader) -> Node:
    """What all trials of a study have in common, by dotted paths: what is searched is left out."""
    from vitlab import command, resume

    config = command.plain(compose([*plan.fixed, *next(plan.space.corners())]), command.UNSET_RUN_DIR)
    assert isinstance(config, dict)
    searched = {p.key for p in plan.space.parameters}
    groups = {p.key.partition("/")[0] for p in plan.space.parameters if loader.get_group_options(p.key)}
    return {
        path: value
        for path, value in resume.settled(config).items()
        if path not in searched and path.split(".")[0] not in groups
    }


def remember(study: "Study", plan: Plan, common: Node) -> None:
    """Writes down what a study is of; refuses, with status 2, one that is of something else."""
    from vitlab import resume

    choices = {p.name: list(p.values) for p in plan.space.parameters if p.values}
    now = {"objectives": plan.objectives, "settings": common, "choices": choices}
    before = study.user_attrs.get("vitlab")
    if before is None:
        study.set_user_attr("vitlab", now)
        return
    found = resume.changes(before["settings"], common)
    for name, values in choices.items():
        if before["choices"].get(name, values) != values:
            found.append(f"{name}: choice of {before['choices'][name]} -> {values} (which Optuna can't go on with)")
    if list(before["objectives"].items()) != list(plan.objectives.items()):
        found.append(f"objectives: {before['objectives']} -> {plan.objectives}")
    if found:
        lines = "".join(f"\n  - {line}" for line in found)
        log.error(
            "the study %s is of other trials; give this search a name of its own, sweep=NAME:%s", plan.name, lines
        )
        sys.exit(2)


# ------------------------------------------------------------------------------------------------------- the trials


@contextmanager
def asking(plan: Plan) -> Iterator[None]:
    """One process at a time looks for what is to be done: it would be taken twice."""
    (plan.folder / CLAIMS).mkdir(exist_ok=True)
    with FileLock(plan.folder / CLAIMS / "asking"):
        yield


def take(study: "Study", plan: Plan, wanted: int, compose: Compose, claims: ExitStack) -> list[Taken]:
    """The next trials, each claimed until `claims` is closed. What ended without having been told is told now."""
    from optuna.trial import TrialState

    from vitlab import study as studies

    taken = list[Taken]()

    def add(trial: "FrozenTrial") -> None:
        taken.append(job(study, plan, trial, compose))
        studies.note(study, trial, studies.FOLDER, taken[-1].folder.name)

    with asking(plan):
        for number, trial in studies.suggestions(study).items():
            if len(taken) == plan.settings["n_jobs"]:
                break
            if trial.state != TrialState.RUNNING or trial.user_attrs.get(studies.PLACE, plan.place) != plan.place:
                continue
            claim = FileLock(plan.folder / CLAIMS / f"{number:04d}")
            try:
                claim.acquire(timeout=0)
            except Timeout:
                continue  # another process has it trained
            folder = plan.folder / trial.user_attrs.get(studies.FOLDER, CLAIMS)
            if not ledger.is_run(folder) and tell(study, plan, trial, folder, None):
                claim.release()
                continue
            claims.callback(claim.release)
            add(trial)
            log.info("trial %d was cut off, and is taken up again", number)
        while len(taken) < plan.settings["n_jobs"] and studies.to_be_tried(study, wanted):
            asked = study.ask()
            trial = study.get_trials(deepcopy=False)[asked.number]
            claims.enter_context(FileLock(plan.folder / CLAIMS / f"{studies.first(trial):04d}"))
            studies.note(study, trial, studies.PLACE, plan.place)
            add(trial)
    return taken


def job(study: "Study", plan: Plan, trial: "FrozenTrial", compose: Compose) -> Taken:
    """A trial's job: its overrides, and its folder among those of the sweep."""
    from vitlab import command
    from vitlab import study as studies

    number = studies.first(trial)
    lines = [*plan.fixed, *studies.suggested(study, trial, plan.space)]
    if plan.settings["pruner"]:
        callback = {
            "_target_": "vitlab.pruning.Pruning",
            "storage": plan.storage,
            "study": plan.name,
            "trial": trial.number,
            "monitor": next(iter(plan.objectives)),
            "pruner": plan.settings["pruner"],
        }
        lines.append(f"hydra.sweeper.trial={grammatical(callback)}")
    try:
        config = compose(lines)
        HydraConfig.instance().set_config(config)
        name, entry = command.ledger_entry(config.hydra, command.plain(config, command.UNSET_RUN_DIR))
    except (HydraException, OmegaConfBaseException) as error:
        return Taken(trial, number, lines, plan.folder / CLAIMS, problem=str(error))
    ledger.enter(plan.folder, {name: entry})
    return Taken(trial, number, lines, plan.folder / entry["folder"])


def grammatical(value: Any) -> str:
    """Plain data in Hydra's override grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{grammatical(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(grammatical, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def train(taken: Sequence[Taken], launch: Launch) -> list[BaseException | None]:
    """Has a batch trained, and returns the errors. A launcher would give up at the first that can't be composed."""
    errors: dict[int, BaseException | None] = {
        index: ValueError(one.problem) for index, one in enumerate(taken) if one.problem
    }
    good = [index for index in range(len(taken)) if index not in errors]
    if good:
        returned = launch([taken[index].job for index in good], min(taken[index].number for index in good))
        for index, result in zip(good, returned, strict=True):
            errors[index] = result._return_value if result.status == JobStatus.FAILED else None
    return [errors[index] for index in range(len(taken))]


def tell(study: "Study", plan: Plan, trial: "FrozenTrial", folder: Path, error: BaseException | None) -> bool:
    """Tells the study how a trial ended: as its folder says, else by `error`. False where it has no end yet."""
    from optuna.trial import TrialState

    from vitlab import study as studies

    results, number = runs.read_results(folder), studies.first(trial)
    status = results.get("status")
    values = [float(results.get(name, math.nan)) for name in plan.objectives]
    shown = "   ".join(f"{name} {value:.6g}" for name, value in zip(plan.objectives, values, strict=True))
    if status == "pruned":
        study.tell(trial.number, state=TrialState.PRUNED)
        log.info("trial %d: pruned after %s epochs   %s   %s", number, results.get("epochs"), shown, folder.name)
        return True
    if status == "finished" and not any(map(math.isnan, values)):
        study.tell(trial.number, values)
        log.info("trial %d: %s   %s", number, shown, folder.name)
        return True
    failures = sum("error" in attempt for attempt in ledger.attempts(folder))
    if error is None and not (status == "finished" or (status == "crashed" and failures > studies.attempt(trial))):
        return False
    reason = f"its results have no number for each objective: {shown}" if status == "finished" else str(error)
    if status == "crashed":
        reason = results.get("error", reason)
    # what was refused before it began would be refused again
    again = studies.fail(study, trial, reason, retries=plan.retries if failures else 0)
    log.error("trial %d failed%s: %s", number, ", and will be tried again" if again else "", reason)
    return True


# ---------------------------------------------------------------------------------------------------- what came of it


def done(study: "Study") -> int:
    """How many suggestions have an end."""
    from vitlab import study as studies

    return sum(trial.state.is_finished() for trial in studies.suggestions(study).values())


def failures(study: "Study") -> list[int]:
    """The suggestions that failed and won't be tried again."""
    from optuna.trial import TrialState

    from vitlab import study as studies

    return [n for n, trial in studies.suggestions(study).items() if trial.state == TrialState.FAIL]


def summary(study: "Study", plan: Plan) -> dict[str, Any]:
    """Tells how many trials came to what, and the best of them; writes them down."""
    from optuna.trial import TrialState

    from vitlab import study as studies

    newest = studies.suggestions(study).values()
    counts = {state.name.lower(): n for state in TrialState if (n := sum(t.state == state for t in newest))}
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    log.info("%s: %d trials (%s)", plan.folder, len(newest), told)
    if left := counts.get("running", 0) + counts.get("waiting", 0):
        log.info("%d are trained by other processes; the same command tells the best of all when they have ended", left)
    rows = [solution(trial, plan) for trial in (study.best_trials if counts.get("complete") else [])]
    if len(plan.objectives) > 1:
        log.info("no trial is better than one of these %d in all of %s:", len(rows), ", ".join(plan.objectives))
    for row in rows:
        values = "   ".join(f"{name} {value:.6g}" for name, value in row["values"].items())
        log.info("best: trial %d   %s   %s", row["trial"], values, row["folder"])
        log.info("  again: %s", row["command"])
    results: dict[str, Any] = {"name": "optuna", "objectives": plan.objectives, "trials": counts}
    if len(plan.objectives) == 1 and rows:
        results |= {"best_params": dict(rows[0]["params"]), "best_value": next(iter(rows[0]["values"].values()))}
    results["solutions"] = rows
    runs.replace(plan.folder / RESULTS, yaml.safe_dump(results, sort_keys=False))
    return results


def solution(trial: "FrozenTrial", plan: Plan) -> dict[str, Any]:
    """A trial that no other is better than: values, parameters, folder, and the command that trains it again."""
    from vitlab import study as studies

    lines = plan.space.overrides(lambda parameter: trial.params[parameter.name])
    params = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(lines)}
    return {
        "trial": studies.first(trial),
        "folder": trial.user_attrs.get(studies.FOLDER),
        "values": dict(zip(plan.objectives, trial.values, strict=True)),
        "params": dict(params),
        "command": paths.command_line(identity.alone([*plan.fixed, *lines])),
    }
