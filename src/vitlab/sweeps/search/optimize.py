"""The search loop: Optuna suggests settings, Hydra's launcher trains them, the study stores the scores.

SWEEP/study.db                   the study, unless `hydra.sweeper.storage` names another database
SWEEP/JOB/                       the run folder of a trial, a job of the sweep like any other (vitlab.sweeps.ledger)
SWEEP/optimization_results.yaml  the best trials, written at the end

    claim trials: those that were interrupted or may be retried, then new suggestions
      -> the launcher trains a batch of them; in each a callback reports the scores (vitlab.sweeps.search.pruning)
      -> the study stores their results.json, until it has `n_trials`

All state is in the study and the run folders: the same command resumes a search that was killed, and several processes
with the same command share one.
"""

import json
import logging
import math
import platform
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.trial import FrozenTrial, TrialState

from vitlab.config import instantiate
from vitlab.config.schema import Node
from vitlab.jobs import identity
from vitlab.jobs.compose import UNSET_RUN_DIR, resolve_config
from vitlab.runs.folder import read_results
from vitlab.sweeps import claim, ledger
from vitlab.sweeps.search.space import Parameter, boundary_points, read_space
from vitlab.sweeps.search.study import Search, build_sampler, open_study, suggest_overrides, write_results

DATABASE, LOCKS = "study.db", ".claims"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial that this process trains: its overrides, its folder, and the failures of its job so far."""

    number: int
    overrides: list[str]
    folder: Path
    failures: int


def optimize(
    settings: Node, cfg: DictConfig, arguments: Sequence[str], loader: ConfigLoader, launcher: Launcher
) -> Node:
    """Train until the study has `n_trials`, and return its best trials.

    Exits with status 1 if a trial has failed for good, with 2 if the study was made for another search.
    """
    space, shared = read_space(arguments, settings["params"], loader)
    folder = Path(cfg.hydra.sweep.dir).resolve()
    (folder / LOCKS).mkdir(parents=True, exist_ok=True)
    name, storage = settings["study"] or folder.name, settings["storage"] or f"sqlite:///{folder / DATABASE}"
    objectives, n_trials = ledger.objectives_of(settings, cfg.objective), settings["n_trials"]
    sampler = build_sampler(settings["sampler"])
    pruner = instantiate.build_object(settings["pruner"]) if settings["pruner"] else None
    callback = {"_target_": "vitlab.sweeps.search.pruning.Pruning", "storage": storage, "study": name}
    callback |= {"monitor": next(iter(objectives)), "pruner": settings["pruner"]}
    space = [with_prefix(parameter, cfg, loader) for parameter in space]
    with open_study(storage, name, objectives.values(), sampler=sampler, pruner=pruner) as study:
        search = Search(study, folder, space, shared, objectives, callback, settings, cfg, loader)
        check_study(search)
        log.info("%s: %d of %d trials are done", folder, sum(t.state.is_finished() for t in study.trials), n_trials)
        while train_batch(search, launcher):
            if len(search.trials(TrialState.FAIL)) >= settings["max_failures"]:
                log.error("%d trials failed: the search ends here", settings["max_failures"])
                break
        results = write_results(search)
    if failures := results["trials"].get("fail", 0):
        log.error("failed for good: %d of %d trials", failures, n_trials)
        sys.exit(1)
    return results


def train_batch(search: Search, launcher: Launcher) -> bool:
    """Train the next trials and store how they ended. Returns False if there are none left."""
    with ExitStack() as claims:
        batch = claim_trials(search, claims)
        if batch:
            jobs = [trial.overrides for trial in batch]
            returned = launcher.launch(jobs, initial_job_idx=min(trial.number for trial in batch))
            claim.exit_on_cancel(search.folder)
            for trial, job in zip(batch, returned, strict=True):
                failed = job.status == JobStatus.FAILED
                record_result(search, trial, job._return_value if failed else "it ended without results")
    return bool(batch)


def with_prefix(parameter: Parameter, cfg: DictConfig, loader: ConfigLoader) -> Parameter:
    """Return the parameter with Hydra's `++`, if it is a setting that no YAML file lists."""
    parent, _, key = parameter.key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    listed = OmegaConf.is_dict(node) and key in node.keys()  # noqa: SIM118 (`in` overlooks what is ???)
    if listed or parameter.override_key != parameter.key or loader.get_group_options(parameter.key):
        return parameter
    return replace(parameter, override_key=f"++{parameter.key}")


def check_study(search: Search) -> None:
    """Store what all trials of the study share. Exits with status 2 and the differences if it has other settings."""
    config = resolve_config(search.compose([*search.shared, *boundary_points(search.space)[0]]), UNSET_RUN_DIR)
    assert isinstance(config, dict)
    keys = {p.key for p in search.space}
    groups = {key.partition("/")[0] for key in keys if search.loader.get_group_options(key)}
    settings = identity.training_settings(config)
    now: Node = {k: v for k, v in settings.items() if k not in keys and k.split(".")[0] not in groups}
    now |= {f"choice of {p.key}": list(p.values) for p in search.space if p.values}
    now["objectives"] = [list(objective) for objective in search.objectives.items()]
    before = search.study.user_attrs.get("vitlab")
    if before is None:
        search.study.set_user_attr("vitlab", now)
    elif changes := identity.setting_changes(before, now):
        lines = "".join(f"\n  - {line}" for line in changes)
        log.error("study %s has other settings; name another search with sweep=NAME:%s", search.study.study_name, lines)
        sys.exit(2)


def claim_trials(search: Search, claims: ExitStack) -> list[ClaimedTrial]:
    """Return the next trials, locked until `claims` is closed: unfinished ones that nobody trains, then new ones.

    A trial whose job failed stays unfinished until its max_failures_per_job are used up.
    """
    settings, batch = search.settings, list[ClaimedTrial]()
    place = [platform.node(), str(search.folder)]  # machines may share a study without sharing a file system

    def lock(trial: FrozenTrial) -> FileLock:
        return FileLock(search.folder / LOCKS / f"{trial.number:04d}")

    with FileLock(search.folder / LOCKS / "asking"):  # two processes would claim the same
        for trial in search.trials(TrialState.RUNNING):
            if len(batch) < settings["n_jobs"] and trial.user_attrs.get("place", place) == place:
                try:
                    claims.enter_context(lock(trial).acquire(timeout=0))
                except Timeout:
                    continue  # another process trains it
                log.info("trial %d is not finished, and is resumed", trial.number)
                batch += compose_job(search, trial)
        while len(batch) < settings["n_jobs"]:
            states = [trial.state for trial in search.trials()]
            if len(states) >= settings["n_trials"] and TrialState.WAITING not in states:
                break
            number = search.study.ask().number
            trial = search.trials()[number]
            claims.enter_context(lock(trial))
            search.note(trial, "place", place)
            batch += compose_job(search, trial)
    return batch


def compose_job(search: Search, trial: FrozenTrial) -> list[ClaimedTrial]:
    """Return a trial's job, entered in the ledger; none if its configuration can't be composed: the trial fails."""
    lines = [*search.shared, *suggest_overrides(search.study, trial, search.space, search.settings["sampler"])]
    if search.settings["pruner"]:
        text = json.dumps({**search.callback, "trial": trial.number}, ensure_ascii=False).replace("'", "\\'")
        lines.append(f"hydra.sweeper.trial='{text}'")
    try:
        config = search.compose(lines)
        HydraConfig.instance().set_config(config)
        name, entry = ledger.job_entry(config.hydra, resolve_config(config, UNSET_RUN_DIR))
    except (HydraException, OmegaConfBaseException) as error:  # a launcher would end the search
        fail(search, trial.number, str(error))
        return []
    ledger.add_jobs(search.folder, {name: entry})
    search.note(trial, "folder", entry["folder"])
    folder = search.folder / entry["folder"]
    return [ClaimedTrial(trial.number, lines, folder, ledger.count_failures(folder))]


def record_result(search: Search, trial: ClaimedTrial, error: object) -> None:
    """Store a trial's results, or that it failed with `error`, unless it may be retried."""
    results, study = read_results(trial.folder), search.study
    values = [float(results.get(name, math.nan)) for name in search.objectives]
    reason, failures = str(results.get("error", error)), ledger.count_failures(trial.folder)
    status, number = results.get("status"), trial.number
    if status == "pruned":
        study.tell(number, state=TrialState.PRUNED)
    elif status in ("finished", "stopped") and not any(map(math.isnan, values)):  # max_time limits each trial
        study.tell(number, values)
    elif status == "finished":
        scores = dict(zip(search.objectives, values, strict=True))
        fail(search, number, f"its results have no number for each objective: {scores}")
    elif trial.failures < failures <= search.cfg.max_failures_per_job:  # not one that was refused before its start
        log.error("trial %d failed, and will be retried: %s", number, reason)
    else:
        fail(search, number, reason)


def fail(search: Search, number: int, reason: str) -> None:
    search.note(search.trials()[number], "reason", reason[:2000])
    search.study.tell(number, state=TrialState.FAIL)
    log.error("trial %d failed: %s", number, reason)
