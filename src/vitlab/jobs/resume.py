"""Going on with a run: its folder, its newest whole checkpoint, and whether that belongs to what is asked for."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from vitlab.config import renamed
from vitlab.config.overrides import as_single_run, hydra_quote
from vitlab.config.schema import Node
from vitlab.jobs.fingerprint import incompatibilities, setting_changes, training_settings
from vitlab.runs import lock
from vitlab.runs.folder import CONFIG, OVERRIDES, find_run_dir, read_config, read_results

if TYPE_CHECKING:
    pass

LAST = "checkpoints/last.ckpt"

log = logging.getLogger(__name__)


class CannotResume(ValueError):
    """There is no whole checkpoint, or it is one of another network or of other data."""


# ------------------------------------------------------------------------------------------------------- the folder


def resumed_overrides(overrides: list[str], problems: list[str]) -> list[str]:
    """For `resume=FOLDER`: what that run was started with, less what `overrides` says anew."""
    given = {o.key_or_group: o for o in OverridesParser.create().parse_overrides(overrides)}
    if "resume" not in given or (target := str(given["resume"].value())) in ("auto", "None", "null"):
        return []
    run_dir = find_run_dir(Path(target))
    if run_dir is None:
        problems.append(f"resume={target}: no run folder, nor a checkpoint in one; use resume=auto or a path")
        return []
    saved = yaml.safe_load((run_dir / OVERRIDES).read_text()) if (run_dir / OVERRIDES).is_file() else []
    parsed = OverridesParser.create().parse_overrides([new for old in saved if (new := renamed.current_override(old))])
    kept = [o.input_line or "" for o in parsed if o.key_or_group not in {*given, "resume", "sweep"}]
    if read_config(run_dir).get("sweep"):
        kept = [line for line in as_single_run(kept) if line.split("=")[0] not in given]
    return [*kept, f"hydra.run.dir={hydra_quote(run_dir)}"]


def resume_auto(config: Node, search: Path, environment: Mapping[str, str] = os.environ) -> list[str]:
    """For `resume=auto`: the unfinished run of the same configuration below `search`, as an override.

    Of several it is the one of this cluster job, if it was requeued; else the one that was trained furthest, then the
    one that was written last. No clock decides between runs of different length.
    """
    job = environment.get("SLURM_JOB_ID")
    candidates = []
    for file in search.glob(f"*/{CONFIG}"):
        run_dir, results = file.parent, read_results(file.parent)
        try:
            other = training_settings(read_config(run_dir))
        except (OSError, yaml.YAMLError, AssertionError) as error:
            log.warning("%s can't be read (%s), and is passed over", file, error)
            continue
        if results.get("status") == "finished" or other != training_settings(config):
            continue
        begun = [f for f in (run_dir / "checkpoints").glob("*.ckpt") if not f.name.startswith(".")]
        same_job = job is not None and results.get("job") == job
        if (begun or same_job or results.get("status") == "preempted") and not lock.is_held(run_dir):
            newest = max((f.stat().st_mtime for f in begun), default=0.0)
            candidates.append((same_job, steps_trained(run_dir), newest, run_dir))
    return [f"hydra.run.dir={hydra_quote(max(candidates)[-1])}"] if candidates else []


def steps_trained(run_dir: Path) -> int:
    """The last step that the run's `metrics.csv` knows of."""
    file = run_dir / "metrics.csv"
    lines = file.read_text().splitlines()[1:] if file.is_file() else []
    return max((int(found.group()) for line in lines if (found := re.match(r"\d+", line))), default=0)


def folder_problems(config: Node, run_dir: Path) -> list[str]:
    """Why a run of this configuration can't begin, or go on, in a folder: what is saved there must not be lost."""
    if "resume" not in config:
        return []
    resume, results = config["resume"], read_results(run_dir)
    if lock.is_held(run_dir):
        return [f"hydra.run.dir={run_dir} is being trained in by {lock.owner(results)}; two can't share a folder"]
    if not any((run_dir / "checkpoints").glob("*.ckpt")):
        missing = f"resume={resume}: {run_dir} has no {LAST} to go on from"
        return [] if resume in (None, "auto") or str(resume).endswith(".ckpt") else [missing]
    if resume is None:
        return [f"hydra.run.dir={run_dir} holds a run already: resume={run_dir} goes on with it; else name another"]
    if results.get("status") == "finished" and training_settings(read_config(run_dir)) == training_settings(config):
        return [f"resume={resume}: {run_dir} is finished; raise trainer.max_epochs or trainer.max_steps to go on"]
    return []


# --------------------------------------------------------------------------------------------------- the checkpoint


def set_aside_newer(file: Path) -> None:
    """Sets aside, as `NAME.abandoned`, what a run has saved after a checkpoint that it goes back to."""
    from vitlab.storage import safe_load

    step = safe_load.load_checkpoint(file)["global_step"]
    for other in file.parent.glob("*.ckpt"):
        if not other.name.startswith(".") and safe_load.load_checkpoint(other)["global_step"] > step:
            log.warning("%s is of a later step than %s, and is set aside as %s.abandoned", other, file.name, other.name)
            other.replace(other.with_name(f"{other.name}.abandoned"))


def checkpoint_to_resume(resume: str | None, run_dir: Path, now: Node, *, first_rank: bool) -> Path | None:
    """The checkpoint that a run goes on from: `resume` itself if it is one, else the folder's newest whole one, if any.

    `now` is the identity of what is to be trained. Changed settings are told. A damaged file is told, and set aside as
    `NAME.damaged` by the first rank.

    Raises:
        CannotResume: every checkpoint is damaged, or it is one of another network or of other data.
    """
    from vitlab.storage import safe_load
    from vitlab.training import checkpoint_files

    if resume is None:
        return None
    damaged: dict[Path, str] = {}
    file: Path | None
    if resume.endswith(".ckpt"):
        file = Path(resume)
        if problem := safe_load.corruption(file):
            raise CannotResume(f"resume={resume} is damaged ({problem}); resume={run_dir} takes the newest whole one")
        if first_rank and file.resolve().parent == run_dir.resolve() / "checkpoints":
            set_aside_newer(file)
    else:
        file, damaged = checkpoint_files.newest_checkpoint(run_dir / "checkpoints")
    for bad, problem in damaged.items():
        log.warning("%s is damaged (%s), and is set aside as %s.damaged", bad, problem, bad.name)
    if file is None and damaged:
        names = ", ".join(bad.name for bad in damaged)
        raise CannotResume(
            f"resume={resume}: all checkpoints of {run_dir} are damaged ({names}); begin anew in another folder"
        )
    if first_rank:
        for bad in damaged:
            bad.replace(bad.with_name(f"{bad.name}.damaged"))
    if file is None:
        return None
    before = safe_load.load_checkpoint(file).get("vitlab")
    if not isinstance(before, dict):
        raise CannotResume(f"resume={resume}: {file} isn't a checkpoint of vitlab's, which say what they are of")
    changed = setting_changes(before["config"], now["config"])
    if found := incompatibilities(before, now):
        lines = "".join(f"\n  - {line}" for line in [*found, *(f"also {change}" for change in changed)])
        raise CannotResume(
            f"resume={resume}: {file} is of another network or of other data; leave out what differs, or begin a new "
            f"run:{lines}"
        )
    if damaged:
        log.warning("going on from the one before: %s", file)
    for change in changed:
        log.warning("resume with another setting: %s", change)
    return file
