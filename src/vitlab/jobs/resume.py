"""Resume a run: find its folder and its newest intact checkpoint, and check that it fits what is to be trained."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from vitlab.config import renamed
from vitlab.config.overrides import as_single_run, hydra_quote
from vitlab.config.schema import Node
from vitlab.jobs.fingerprint import incompatibilities, setting_changes, training_settings
from vitlab.runs import lock
from vitlab.runs.folder import CONFIG, OVERRIDES, find_run_dir, read_config, read_results
from vitlab.storage.yaml_files import UnreadableYaml, read_yaml

LAST = "checkpoints/last.ckpt"

log = logging.getLogger(__name__)


class CannotResume(ValueError):
    """There is no intact checkpoint, or it is of another network or other data."""


def resumed_overrides(overrides: list[str], problems: list[str]) -> list[str]:
    """Return the overrides that the run of `resume=FOLDER` was started with, except those that `overrides` replaces."""
    parser = OverridesParser.create()
    given = {o.key_or_group: o for o in parser.parse_overrides(overrides)}
    if "resume" not in given or (target := str(given["resume"].value())) in ("auto", "None", "null"):
        return []
    run_dir = find_run_dir(Path(target))
    if run_dir is None:
        problems.append(f"resume={target}: no run folder, nor a checkpoint in one; use resume=auto or a path")
        return []
    try:
        saved = read_yaml(run_dir / OVERRIDES) if (run_dir / OVERRIDES).is_file() else []
        in_sweep = read_config(run_dir).get("sweep")
        if not isinstance(saved, list) or not all(isinstance(line, str) for line in saved):
            raise UnreadableYaml(f"{OVERRIDES} is not a list of overrides")
    except UnreadableYaml as error:
        problems.append(f"resume={target}: {error}")
        return []
    parsed = parser.parse_overrides([new for old in saved if (new := renamed.current_override(old))])
    of_hydra = [
        o.input_line for o in parsed if any(re.match(r"hydra\b", name or "") for name in (o.key_or_group, o.package))
    ]
    if of_hydra:  # its search path, launchers, callbacks and logging; a run saves none of them
        problems.append(
            f"resume={target}: {OVERRIDES} has {', '.join(map(str, of_hydra))}; a run's own sets nothing of hydra"
        )
        return []
    kept = [o.input_line or "" for o in parsed if o.key_or_group not in {*given, "resume", "sweep"}]
    if in_sweep:
        kept = [line for line in as_single_run(kept) if line.split("=")[0] not in given]
    return [*kept, f"hydra.run.dir={hydra_quote(run_dir)}"]


def resume_auto(config: Node, search: Path, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the unfinished run of the same configuration below `search`, for `resume=auto`, as an override.

    Of several it is the run of this cluster job if it was requeued, else the one with the most steps, then the one
    written last: clocks of several machines don't decide between runs of different length.
    """
    job = environment.get("SLURM_JOB_ID")
    candidates = []
    for file in search.glob(f"*/{CONFIG}"):
        run_dir, results = file.parent, read_results(file.parent)
        try:
            other = training_settings(read_config(run_dir))
        except (OSError, yaml.YAMLError, AssertionError) as error:
            log.warning("%s can't be read (%s), and is skipped", file, error)
            continue
        if results.get("status") == "finished" or other != training_settings(config):
            continue
        checkpoints = [f for f in (run_dir / "checkpoints").glob("*.ckpt") if not f.name.startswith(".")]
        same_job = job is not None and results.get("job") == job
        if (checkpoints or same_job or results.get("status") == "preempted") and not lock.is_held(run_dir):
            newest = max((f.stat().st_mtime for f in checkpoints), default=0.0)
            candidates.append((same_job, last_step(run_dir), newest, run_dir))
    return [f"hydra.run.dir={hydra_quote(max(candidates)[-1])}"] if candidates else []


def last_step(run_dir: Path) -> int:
    """Return the last step in the run's `metrics.csv`."""
    file = run_dir / "metrics.csv"
    lines = file.read_text().splitlines()[1:] if file.is_file() else []
    return max((int(step.group()) for line in lines if (step := re.match(r"\d+", line))), default=0)


def folder_problems(config: Node, run_dir: Path) -> list[str]:
    """Return why a run of this configuration can't start or resume in a folder without losing what is saved there."""
    if "resume" not in config:
        return []
    resume, results = config["resume"], read_results(run_dir)
    if lock.is_held(run_dir):
        return [f"hydra.run.dir={run_dir} is being trained in by {lock.owner(results)}; two can't share a folder"]
    if not any((run_dir / "checkpoints").glob("*.ckpt")):
        missing = f"resume={resume}: {run_dir} has no {LAST} to resume from"
        return [] if resume in (None, "auto") or str(resume).endswith(".ckpt") else [missing]
    if resume is None:
        return [f"hydra.run.dir={run_dir} has a run already; resume it with resume={run_dir}, or set another folder"]
    if results.get("status") == "finished" and training_settings(read_config(run_dir)) == training_settings(config):
        return [f"resume={resume}: {run_dir} is finished; raise trainer.max_epochs or trainer.max_steps to continue it"]
    return []


def checkpoint_to_resume(resume: str | None, run_dir: Path, now: Node, *, first_rank: bool) -> Path | None:
    """Return the checkpoint to resume from: `resume` if it is a file, else the newest intact one in the folder, if any.

    `now` is the identity of what is to be trained. Changed settings are logged. The first rank renames a damaged
    checkpoint to `NAME.damaged`, and those of later steps than `resume` to `NAME.abandoned`.

    Raises:
        CannotResume: every checkpoint is damaged, or it is of another network or other data.
    """
    from vitlab.storage import safe_load

    if resume is None:
        return None
    if resume.endswith(".ckpt"):
        file = Path(resume)
        if problem := safe_load.corruption(file):
            raise CannotResume(f"resume={resume} is damaged ({problem}); resume={run_dir} takes the newest intact one")
        if first_rank and file.resolve().parent == run_dir.resolve() / "checkpoints":
            abandon_later_checkpoints(file)
    elif (newest := newest_checkpoint(resume, run_dir, first_rank=first_rank)) is None:
        return None
    else:
        file = newest
    before = safe_load.load_checkpoint(file).get("vitlab")
    if not isinstance(before, dict):
        raise CannotResume(f"resume={resume}: {file} is not a checkpoint of vitlab, with the configuration of its run")
    changes = setting_changes(before["config"], now["config"])
    if differences := incompatibilities(before, now):
        lines = "".join(f"\n  - {line}" for line in [*differences, *(f"also {change}" for change in changes)])
        raise CannotResume(
            f"resume={resume}: {file} is of another network or other data; remove the differences, or start a new "
            f"run:{lines}"
        )
    for change in changes:
        log.warning("resume with another setting: %s", change)
    return file


def newest_checkpoint(resume: str, run_dir: Path, *, first_rank: bool) -> Path | None:
    """Return the newest intact checkpoint of a run, and rename the damaged ones. Raises `CannotResume` if all are."""
    from vitlab.training import checkpoint_files

    file, damaged = checkpoint_files.newest_checkpoint(run_dir / "checkpoints")
    for bad, problem in damaged.items():
        log.warning("%s is damaged (%s), and is renamed to %s.damaged", bad, problem, bad.name)
    if damaged and file is None:
        names = ", ".join(bad.name for bad in damaged)
        raise CannotResume(
            f"resume={resume}: all checkpoints of {run_dir} are damaged ({names}); start again in another folder"
        )
    if damaged:
        log.warning("resuming from the checkpoint before: %s", file)
    if first_rank:
        for bad in damaged:
            bad.replace(bad.with_name(f"{bad.name}.damaged"))
    return file


def abandon_later_checkpoints(file: Path) -> None:
    """Rename the checkpoints of later steps than `file` to `NAME.abandoned`."""
    from vitlab.storage import safe_load

    step = safe_load.load_checkpoint(file)["global_step"]
    for other in file.parent.glob("*.ckpt"):
        if not other.name.startswith(".") and safe_load.load_checkpoint(other)["global_step"] > step:
            log.warning("%s is later than %s, and is renamed to %s.abandoned", other, file.name, other.name)
            other.replace(other.with_name(f"{other.name}.abandoned"))
