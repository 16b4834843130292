"""A search: Optuna suggests settings, Hydra's launcher trains them, and the study remembers all of it.

SWEEP/study.db                   the study, unless `hydra.sweeper.storage` names another database
SWEEP/NNNN/                      the run folder of suggestion NNNN, with the lock of the process that has it trained
SWEEP/optimization_results.yaml  the best trials, when nothing is left to do

    next trials: those that were cut off, those to be tried again, new suggestions
      -> the launcher trains a batch of them, each a job like any other; a callback reports its scores (vitlab.pruning)
      -> their results.json is told to the study
      -> ... until the study has `n_trials`

The study and the run folders are all there is to know: a search that is killed goes on by the same command, and several
processes with the same command share one.
"""

import itertools
import logging
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml
from filelock import FileLock, Timeout
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitlab import runs
from vitlab.resolvers import mode
from vitlab.schema import Node, suggest
from vitlab.space import NotASpace, Parameter, Space, read

if TYPE_CHECKING:  # it is imported when there is something to search
    from optuna.study import Study
    from optuna.trial import FrozenTrial

PLUGIN = "hydra_plugins.vitlab_sweepers.optuna_sweeper.OptunaSweeper"
INSTALL = "pip install 'optuna>=4.4'"
SCORES = ("val/acc", "val/acc5", "val/loss")  # measured at each validation: what a trial can be pruned by
COSTS = ("parameters", "images_per_second", "seconds")
DIRECTIONS = {"max": "maximize", "min": "minimize"}
DATABASE, RESULTS, ASKING, CLAIM = "study.db", "optimization_results.yaml", ".search.lock", ".trial.lock"
ORPHAN = 2.0  # seconds between two looks at a trial that goes on without the search that started it

log = logging.getLogger(__name__)

Launch = Callable[[Sequence[Sequence[str]], int], Sequence[JobReturn]]
Compose = Callable[[Sequence[str]], DictConfig]


# -------------------------------------------------------------------------------------------- before anything starts


def problems(node: Node, lines: Sequence[str], config: Node, loader: ConfigLoader) -> tuple[Space, list[str]]:
    """What is searched, and everything wrong with a sweeper's node, given the command line's other overrides.

    `config` is the configuration with these overrides, which says what the objective is.
    """
    from vitlab import build, schema

    try:
        import optuna  # noqa: F401
    except ImportError:
        return Space(), [f"hydra/sweeper=optuna needs Optuna, which is not installed: {INSTALL}"]
    found = schema.node_problems("hydra.sweeper", node)
    space = Space()
    try:
        space, _ = read(lines, node.get("params"), node.get("when"), loader)
        if not space.parameters:
            found.append("hydra/sweeper=optuna has nothing to search; add KEY=interval(A,B), or hydra.sweeper.params")
    except NotASpace as error:
        found += error.problems
    if found:
        return space, found
    for key, least in (("n_trials", 1), ("n_jobs", 1), ("retries", 0), ("max_failures", 1)):
        if node.get(key) is not None and node[key] < least:
            found.append(f"hydra.sweeper.{key}={node[key]} must be at least {least}")
    found += sampler_problems(node, space)
    objectives = objectives_of(node, config)
    found += objective_problems(node, objectives)
    if (storage := node.get("storage")) is not None:
        found += storage_problems(storage)
    for part in ("sampler", "pruner"):
        if node.get(part) and not found:
            try:
                build.make(node[part])
            except Exception as error:  # they refuse in many ways
                reason = str(error.__cause__ or error).splitlines()[0]
                found.append(f"hydra.sweeper.{part}: {reason}")
    return space, found


def objectives_of(node: Node, config: Node) -> dict[str, str]:
    """What is optimized, and whether to its `min` or its `max`."""
    return dict(node.get("objectives") or {config["objective"]: mode(config["objective"])})


def sampler_problems(node: Node, space: Space) -> Iterator[str]:
    sampler = str((node.get("sampler") or {}).get("_target_", ""))
    if sampler.endswith(("GridSampler", "BruteForceSampler")):
        yield f"hydra.sweeper.sampler={sampler}: use hydra/sweeper=grid, which can be gone on with"
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
    if node.get("pruner") is not None:
        remedy = "add hydra/sweeper/pruner=none"
        if len(objectives) > 1:
            yield f"hydra.sweeper.pruner: Optuna prunes by one objective, and there are {len(objectives)}; {remedy}"
        elif next(iter(objectives)) in COSTS:
            yield f"hydra.sweeper.pruner: {next(iter(objectives))} isn't known while a trial trains; {remedy}"


def storage_problems(storage: str) -> Iterator[str]:
    if "://" not in storage:
        yield f"hydra.sweeper.storage={storage} is no URL; write sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    elif urlsplit(storage).password:
        hidden = storage.replace(f":{urlsplit(storage).password}@", ":...@")
        yield (
            f"hydra.sweeper.storage={hidden} holds a password, which would stand in every run's folder; "
            "leave it out, and put it into ~/.pgpass or the variable PGPASSWORD"
        )


# ------------------------------------------------------------------------------------------------------- the search


@dataclass(frozen=True)
class Plan:
    """What is searched for, and where."""

    folder: Path
    name: str
    storage: str
    space: Space
    fixed: list[str]
    objectives: dict[str, str]
    settings: Node

    def trial_folder(self, number: int) -> str:
        return f"{number:04d}"


@dataclass(frozen=True)
class Taken:
    """A trial that this process has trained: its Optuna number, its suggestion's, and its overrides."""

    trial: "FrozenTrial"
    number: int
    lines: list[str]
    folder: Path


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
        for batch in itertools.count():
            with ExitStack() as claims:
                taken, waited_for = take(opened, plan, wanted, claims)
                if taken:
                    tell_batch(opened, plan, taken, train(plan, taken, launch, compose))
                elif waited_for:
                    if batch == 0:
                        log.info("%d trials still go on by themselves; waiting for them", waited_for)
                    time.sleep(ORPHAN)
                else:
                    break
            if len(failed := failures(opened)) >= settings["max_failures"]:
                log.error("%d trials failed: the search gives up (hydra.sweeper.max_failures)", len(failed))
                break
        results = summary(opened, plan)
        failed = failures(opened)
    if failed:
        log.error("failed for good: %s", ", ".join(plan.trial_folder(number) for number in failed))
        sys.exit(1)
    return results


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
    """What all trials of a study have in common, by dotted paths: settings that are searched are left out."""
    from vitlab import command, resume

    lines = [*plan.fixed, *next(plan.space.corners())]
    config = command.plain(compose(lines), command.UNSET_RUN_DIR)
    assert isinstance(config, dict)
    searched = {p.key.replace("/", ".") for p in plan.space.parameters}
    groups = {p.key.partition("/")[0] for p in plan.space.parameters if loader.get_group_options(p.key)}
    return {
        path: value
        for path, value in resume.settled(config).items()
        if path not in searched and path.split(".")[0] not in groups
    }


def remember(study: "Study", plan: Plan, common: Node) -> None:
    """Writes down what a study is of; refuses, with status 2, one that is of something else."""
    from vitlab import resume

    now = {"objectives": plan.objectives, "settings": common}
    before = study.user_attrs.get("vitlab")
    if before is None:
        study.set_user_attr("vitlab", now)
        return
    found = resume.changes(before["settings"], now["settings"])
    if list(before["objectives"].items()) != list(plan.objectives.items()):
        found.insert(0, f"objectives: {before['objectives']} -> {plan.objectives}")
    if found:
        lines = "".join(f"\n  - {line}" for line in found)
        log.error(
            "the study %s in %s is of other trials; name another hydra.sweep.dir:%s", plan.name, plan.folder, lines
        )
        sys.exit(2)


@contextmanager
def asking(plan: Plan) -> Iterator[None]:
    """One process at a time looks for what is to be done: it would be taken twice."""
    with FileLock(plan.folder / ASKING):
        yield


def take(study: "Study", plan: Plan, wanted: int, claims: ExitStack) -> tuple[list[Taken], int]:
    """The next trials, claimed until `claims` is closed; and how many go on without the search that started them.

    What has ended without having been told to the study is told now.
    """
    from optuna.trial import TrialState

    from vitlab import study as studies

    taken, orphans = list[Taken](), 0
    with asking(plan):
        for number, trial in studies.suggestions(study).items():
            if trial.state != TrialState.RUNNING or len(taken) == plan.settings["n_jobs"] or elsewhere(trial, plan):
                continue
            claim = FileLock(plan.folder / plan.trial_folder(number) / CLAIM)
            try:
                claim.acquire(timeout=0)
            except Timeout:
                continue  # another process has it trained
            folder = plan.folder / plan.trial_folder(number)
            if runs.is_held(folder):
                orphans += 1
            elif tell(study, plan, trial, None):
                pass
            else:
                claims.callback(claim.release)
                taken.append(Taken(trial, number, studies.suggested(study, trial, plan.space), folder))
                log.info("trial %04d was cut off, and is taken up again", number)
                continue
            claim.release()
        while len(taken) < plan.settings["n_jobs"] and studies.to_be_tried(study, wanted):
            asked = study.ask()
            trial = study._storage.get_trial(asked._trial_id)
            number = studies.first(trial)
            folder = plan.folder / plan.trial_folder(number)
            folder.mkdir(exist_ok=True)
            claim = FileLock(folder / CLAIM)
            claims.enter_context(claim)
            asked.set_user_attr(studies.PLACE, place(plan))
            taken.append(Taken(trial, number, studies.suggested(study, trial, plan.space), folder))
    return taken, orphans


def place(plan: Plan) -> list[str]:
    """Where a trial's folder lies: machines may share a study and no file system."""
    return [platform.node(), str(plan.folder)]


def elsewhere(trial: "FrozenTrial", plan: Plan) -> bool:
    """Whether a trial is trained on a machine whose files can't be seen from here."""
    from vitlab import study as studies

    where = trial.user_attrs.get(studies.PLACE, place(plan))
    there = (plan.folder / plan.trial_folder(studies.first(trial))).is_dir()
    return where != place(plan) and not there


def job(plan: Plan, taken: Taken) -> list[str]:
    """The overrides of a trial's job."""
    begun = any((taken.folder / "checkpoints").glob("*.ckpt"))
    lines = [*plan.fixed, *taken.lines, f"hydra.sweep.subdir={plan.trial_folder(taken.number)}"]
    if begun:
        lines = [*(line for line in lines if not line.startswith("resume=")), "resume=auto"]
    if plan.settings["pruner"]:
        callback = {
            "_target_": "vitlab.pruning.Pruning",
            "storage": plan.storage,
            "study": plan.name,
            "trial": taken.trial.number,
            "monitor": next(iter(plan.objectives)),
            "pruner": plan.settings["pruner"],
        }
        lines.append(f"hydra.sweeper.trial={grammatical(callback)}")
    return lines


def callbacks_of(hydra: DictConfig) -> Node:
    """The callbacks that a search adds to its trials' own, by name."""
    trial = OmegaConf.select(hydra, "sweeper.trial")
    return {"pruning": OmegaConf.to_container(trial)} if trial else {}


def grammatical(value: Any) -> str:
    """Plain data in Hydra's override grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{grammatical(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(grammatical, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


# --------------------------------------------------------------------------------------------------- what came of it


def train(plan: Plan, taken: Sequence[Taken], launch: Launch, compose: Compose) -> list[JobReturn]:
    """Has a batch trained: all whose configurations can be composed; a launcher would give up at the first that can't."""
    jobs, returned = [job(plan, one) for one in taken], dict[int, JobReturn]()
    for index, lines in enumerate(jobs):
        try:
            compose(lines)
        except (HydraException, OmegaConfBaseException) as error:
            returned[index] = JobReturn(status=JobStatus.FAILED, _return_value=ValueError(str(error)))
    good = [index for index in range(len(jobs)) if index not in returned]
    if good:
        results = launch([jobs[index] for index in good], min(taken[index].number for index in good))
        returned |= dict(zip(good, results, strict=True))
    return [returned[index] for index in range(len(jobs))]


def tell_batch(study: "Study", plan: Plan, taken: Sequence[Taken], returned: Sequence[JobReturn]) -> None:
    """Tells the study what a batch came to."""
    for one, result in zip(taken, returned, strict=True):
        error = None
        if result.status == JobStatus.FAILED:
            error = result._return_value
        if not tell(study, plan, one.trial, error or RuntimeError("it ended without results")):
            raise AssertionError("a trial that was trained has an end")


def tell(study: "Study", plan: Plan, trial: "FrozenTrial", error: BaseException | None) -> bool:
    """Tells the study how a trial ended, as its folder says, or `error`; whether it has ended."""
    from optuna.trial import TrialState

    from vitlab import study as studies

    number = studies.first(trial)
    results = runs.read_results(plan.folder / plan.trial_folder(number))
    status = results.get("status")
    shown = " ".join(f"{name}={results[name]:.6g}" for name in plan.objectives if name in results)
    if status == "pruned":
        study.tell(trial.number, state=TrialState.PRUNED)
        log.info("trial %04d pruned after %s epochs: %s", number, results.get("epochs"), shown)
        return True
    if status == "finished" and isinstance(error, ValueError):
        error = None  # it was refused to be trained again
    if status == "finished":
        values = [float(results.get(name, math.nan)) for name in plan.objectives]
        if not any(map(math.isnan, values)):
            study.tell(trial.number, values)
            log.info("trial %04d: %s   (%d of the study)", number, shown, done(study))
            return True
        missing = [name for name, value in zip(plan.objectives, values, strict=True) if math.isnan(value)]
        reason = f"its results have no number for {', '.join(missing)}"
    elif status == "crashed":
        reason = results.get("error") or str(error)
    elif error is None:
        return False
    else:
        reason = str(error)
    # what was refused before it began would be again
    retries = 0 if isinstance(error, ValueError) and status != "crashed" else plan.settings["retries"]
    again = studies.fail(study, trial, reason, retries=retries)
    log.error("trial %04d failed%s: %s", number, ", and will be tried again" if again else "", reason)
    return True


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
    counts = {state.name.lower(): sum(t.state == state for t in newest) for state in TrialState}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    log.info("%s: %d trials (%s)", plan.folder, len(newest), told)
    best = study.best_trials if counts["complete"] else []
    rows = [solution(trial, plan) for trial in best]
    if len(plan.objectives) > 1:
        log.info("no other trial is better in all of %s than one of these %d:", ", ".join(plan.objectives), len(rows))
    for row in rows:
        values = "   ".join(f"{name} {value:.6g}" for name, value in row["values"].items())
        log.info("best: trial %s   %s   %s", row["folder"], values, " ".join(row["overrides"]))
        log.info("  train it again: %s", row["command"])
    name, objectives = "optuna", plan.objectives
    results: dict[str, Any] = {"name": name, "objectives": objectives, "trials": counts}
    if len(objectives) == 1 and rows:
        results |= {"best_params": rows[0]["params"], "best_value": next(iter(rows[0]["values"].values()))}
    results |= {"solutions": rows}
    runs.replace(plan.folder / RESULTS, yaml.safe_dump(results, sort_keys=False))
    return results


def solution(trial: "FrozenTrial", plan: Plan) -> dict[str, Any]:
    """A trial that is as good as any: values, parameters, folder, and how it is trained again."""
    from vitlab import study as studies

    lines = plan.space.overrides(lambda parameter: trial.params[parameter.name])
    script = sys.argv[0]
    return {
        "trial": studies.first(trial),
        "folder": plan.trial_folder(studies.first(trial)),
        "values": dict(zip(plan.objectives, trial.values, strict=True)),
        "params": {p.key: trial.params[p.name] for p in plan.space.parameters if p.name in trial.params},
        "overrides": lines,
        "command": shlex.join(["python", script, *plan.fixed, *lines]),
    }
