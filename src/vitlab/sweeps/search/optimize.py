"""The search loop: Optuna suggests settings, Hydra's launcher trains them, the study stores the scores.

SWEEP/study.db                   the study, unless `hydra.sweeper.storage` names another database
SWEEP/JOB/                       the run folder of a trial, a job of the sweep like any other (vitlab.sweeps.ledger)
SWEEP/optimization_results.yaml  the best trials, written at the end

    claim trials: those that were interrupted or may be retried, then new suggestions
      -> the launcher trains a batch of them; in each a callback reports the scores (vitlab.sweeps.search.pruning)
      -> the study stores what their results.json says
      -> ... until the study has `n_trials`

The study and the run folders hold all state: the same command resumes a search that was killed, and several processes
with the same command share one.
"""

import json
import logging
import math
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vitlab.config import instantiate, paths
from vitlab.config.overrides import as_single_run, parse_overrides
from vitlab.config.schema import Node
from vitlab.jobs import fingerprint
from vitlab.jobs.compose import UNSET_RUN_DIR, resolve_config
from vitlab.runs.folder import read_results
from vitlab.storage import atomic
from vitlab.sweeps import claim, ledger
from vitlab.sweeps.search.checks import objectives_of
from vitlab.sweeps.search.space import Parameter, boundary_points, read_space
from vitlab.sweeps.search.study import build_sampler, open_study, suggest_overrides

DATABASE, RESULTS, LOCKS = "study.db", "optimization_results.yaml", ".claims"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search:
    """A search: its study, what it searches, and the overrides that all trials share."""

    study: Study
    folder: Path
    space: list[Parameter]
    shared: list[str]
    objectives: dict[str, ledger.Direction]
    callback: Node
    settings: Node
    cfg: DictConfig
    loader: ConfigLoader

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        return self.loader.load_sweep_config(self.cfg, list(overrides))


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
    objectives, n_trials = objectives_of(settings, {"objective": cfg.objective}), settings["n_trials"]
    line, keys = paths.command_line(sys.argv[1:]), [parameter.key for parameter in space]
    ledger.write_sweep(folder, command=line, varies=keys, objectives=objectives)
    sampler = build_sampler(settings["sampler"])
    pruner = instantiate.build_object(settings["pruner"]) if settings["pruner"] else None
    with open_study(storage, name, objectives.values(), sampler=sampler, pruner=pruner) as study:
        callback = {"_target_": "vitlab.sweeps.search.pruning.Pruning", "storage": storage, "study": name}
        callback |= {"monitor": next(iter(objectives)), "pruner": settings["pruner"]}
        space = [with_prefix(parameter, cfg, loader) for parameter in space]
        search = Search(study, folder, space, shared, objectives, callback, settings, cfg, loader)
        save_study_config(search)
        log.info("%s: %d of %d trials are done", folder, sum(t.state.is_finished() for t in study.trials), n_trials)
        while True:
            with ExitStack() as claims:
                batch = claim_trials(search, claims)
                if not batch:
                    break
                jobs = [trial.overrides for trial in batch]
                returned = launcher.launch(jobs, initial_job_idx=min(trial.number for trial in batch))
                claim.exit_if_cancelled(folder)
                for trial, job in zip(batch, returned, strict=True):
                    failed = job.status == JobStatus.FAILED
                    record_result(search, trial, job._return_value if failed else "it ended without results")
            if len(study.get_trials(states=[TrialState.FAIL])) >= settings["max_failures"]:
                log.error("%d trials failed: the search ends here", settings["max_failures"])
                break
        results = write_results(search)
    if failures := results["trials"].get("fail", 0):
        log.error("failed for good: %d of %d trials", failures, n_trials)
        sys.exit(1)
    return results


def with_prefix(parameter: Parameter, cfg: DictConfig, loader: ConfigLoader) -> Parameter:
    """Return the parameter with Hydra's `++`, if it is a setting that no YAML file lists."""
    parent, _, key = parameter.key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    listed = OmegaConf.is_dict(node) and key in node.keys()  # noqa: SIM118 (`in` overlooks what is ???)
    if listed or parameter.override_key != parameter.key or loader.get_group_options(parameter.key):
        return parameter
    return replace(parameter, override_key=f"++{parameter.key}")


def study_config(search: Search) -> Node:
    """Return what all trials of a study share: objectives, choices, and the settings that are not searched."""
    config = resolve_config(search.compose([*search.shared, *boundary_points(search.space)[0]]), UNSET_RUN_DIR)
    assert isinstance(config, dict)
    keys = {p.key for p in search.space}
    groups = {key.partition("/")[0] for key in keys if search.loader.get_group_options(key)}
    settings = fingerprint.training_settings(config).items()
    return {
        "objectives": search.objectives,
        "settings": {k: v for k, v in settings if k not in keys and k.split(".")[0] not in groups},
        "choices": {p.key: list(p.values) for p in search.space if p.values},
    }


def save_study_config(search: Search) -> None:
    """Store the study's configuration. Exits with status 2 and the differences if it has another one."""
    config = study_config(search)
    if (before := search.study.user_attrs.get("vitlab")) is None:
        search.study.set_user_attr("vitlab", config)
        return
    found = fingerprint.setting_changes(before["settings"], config["settings"])
    for key, values in config["choices"].items():
        if (old := before["choices"].get(key, values)) != values:
            found.append(f"{key}: choice of {old} -> {values} (Optuna can't continue with another choice)")
    if list(before["objectives"].items()) != list(search.objectives.items()):
        found.append(f"objectives: {before['objectives']} -> {search.objectives}")
    if found:
        lines = "".join(f"\n  - {line}" for line in found)
        log.error("study %s has other settings; name another search with sweep=NAME:%s", search.study.study_name, lines)
        sys.exit(2)


def claim_trials(search: Search, claims: ExitStack) -> list[ClaimedTrial]:
    """Return the next trials, locked until `claims` is closed: unfinished ones that nobody trains, then new ones.

    A trial whose job failed stays unfinished until its max_failures_per_job are used up.
    """
    study, settings, batch = search.study, search.settings, list[ClaimedTrial]()
    place = [platform.node(), str(search.folder)]  # machines may share a study without sharing a file system

    def lock(trial: FrozenTrial) -> FileLock:
        return FileLock(search.folder / LOCKS / f"{trial.number:04d}")

    with FileLock(search.folder / LOCKS / "asking"):  # two processes would claim the same
        for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if len(batch) < settings["n_jobs"] and trial.user_attrs.get("place", place) == place:
                try:
                    claims.enter_context(lock(trial).acquire(timeout=0))
                except Timeout:
                    continue  # another process trains it
                log.info("trial %d is not finished, and is resumed", trial.number)
                batch += compose_job(search, trial)
        while len(batch) < settings["n_jobs"]:
            states = [trial.state for trial in study.get_trials(deepcopy=False)]
            if len(states) >= settings["n_trials"] and TrialState.WAITING not in states:
                break
            number = study.ask().number
            trial = study.get_trials(deepcopy=False)[number]
            claims.enter_context(lock(trial))
            study._storage.set_trial_user_attr(trial._trial_id, "place", place)
            batch += compose_job(search, trial)
    return batch


def compose_job(search: Search, trial: FrozenTrial) -> list[ClaimedTrial]:
    """Return a trial's job, entered in the ledger; none if its configuration can't be composed: the trial fails."""
    lines = [*search.shared, *suggest_overrides(search.study, trial, search.space)]
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
    search.study._storage.set_trial_user_attr(trial._trial_id, "folder", entry["folder"])
    folder = search.folder / entry["folder"]
    return [ClaimedTrial(trial.number, lines, folder, ledger.count_failures(folder))]


def record_result(search: Search, trial: ClaimedTrial, error: object) -> None:
    """Store how a trial ended, by its results, or else as failed with `error`, unless it may be retried."""
    results, study = read_results(trial.folder), search.study
    values = [float(results.get(name, math.nan)) for name in search.objectives]
    scores = format_scores(dict(zip(search.objectives, values, strict=True)))
    reason, failures = str(results.get("error", error)), ledger.count_failures(trial.folder)
    status, number, name = results.get("status"), trial.number, trial.folder.name
    if status == "pruned":
        study.tell(number, state=TrialState.PRUNED)
        log.info("trial %d: pruned after %s epochs   %s   %s", number, results.get("epochs"), scores, name)
    elif status == "finished" and not any(map(math.isnan, values)):
        study.tell(number, values)
        log.info("trial %d: %s   %s", number, scores, name)
    elif status == "finished":
        fail(search, number, f"its results have no number for each objective: {scores}")
    elif trial.failures < failures <= search.cfg.max_failures_per_job:  # not one that was refused before its start
        log.error("trial %d failed, and will be retried: %s", number, reason)
    else:
        fail(search, number, reason)


def fail(search: Search, number: int, reason: str) -> None:
    trial = search.study.get_trials(deepcopy=False)[number]
    search.study._storage.set_trial_user_attr(trial._trial_id, "reason", reason[:2000])
    search.study.tell(number, state=TrialState.FAIL)
    log.error("trial %d failed: %s", number, reason)


def format_scores(values: dict[str, float]) -> str:
    return "   ".join(f"{name} {value:.6g}" for name, value in values.items())


def write_results(search: Search) -> Node:
    trials, objectives = search.study.get_trials(deepcopy=False), search.objectives
    counts = dict(Counter(trial.state.name.lower() for trial in trials))
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    log.info("%s: %d trials (%s)", search.folder, len(trials), states)
    if unfinished := counts.get("running", 0) + counts.get("waiting", 0):
        log.info("%d are not finished; run the same command once they are, for the best of all", unfinished)
    rows = [solution(search, trial) for trial in search.study.best_trials]
    if len(objectives) > 1:
        log.info("no trial is better in all of %s than one of these %d:", ", ".join(objectives), len(rows))
    for row in rows:
        log.info("best: trial %d   %s   %s", row["trial"], format_scores(row["values"]), row["folder"])
        log.info("  again: %s", row["command"])
    results: Node = {"name": "optuna", "objectives": objectives, "trials": counts}
    if len(objectives) == 1 and rows:  # as in Hydra's own sweeper for Optuna
        results |= {"best_params": dict(rows[0]["params"]), "best_value": next(iter(rows[0]["values"].values()))}
    results["solutions"] = rows
    atomic.atomic_write(search.folder / RESULTS, yaml.safe_dump(results, sort_keys=False))
    return results


def solution(search: Search, trial: FrozenTrial) -> dict[str, Any]:
    """Return a best trial: its scores, parameters, folder, and the command that trains it again."""
    lines = [parameter.as_override(trial.params[parameter.key]) for parameter in search.space]
    return {
        "trial": trial.number,
        "folder": trial.user_attrs.get("folder"),
        "values": dict(zip(search.objectives, trial.values, strict=True)),
        "params": {override.key_or_group: override.value() for override in parse_overrides(lines)},
        "command": paths.command_line(as_single_run([*search.shared, *lines])),
    }
