"""Resume a run: find its folder and its newest intact checkpoint, and check that it fits what is to be trained."""

import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hydra.errors import HydraException

from vitlab.config import renamed
from vitlab.config.overrides import as_single_run, hydra_quote, parse_overrides
from vitlab.config.schema import Node
from vitlab.jobs.identity import incompatibilities, setting_changes, training_settings
from vitlab.runs import folder, lock

LAST = "checkpoints/last.ckpt"

log = logging.getLogger(__name__)


class CannotResume(ValueError):
    """There is no intact checkpoint, or it is of another network or other data."""


def resumed_overrides(overrides: list[str], problems: list[str]) -> list[str]:
    """Return the overrides that the run of `resume=FOLDER` was started with, except those that `overrides` replaces."""
    given = {o.key_or_group: o for o in parse_overrides(overrides)}
    if "resume" not in given or (target := str(given["resume"].value())) in ("auto", "None", "null"):
        return []
    run_dir = folder.find_run_dir(Path(target))
    if run_dir is None:
        problems.append(f"resume={target}: no run folder, nor a checkpoint in one; use resume=auto or a path")
        return []
    try:
        saved, config = folder.read_overrides(run_dir), folder.read_config(run_dir)
    except (OSError, folder.UnreadableRun) as error:
        problems.append(f"resume={target}: {error}; resume=FILE.ckpt hydra.run.dir=NEW with its settings continues it")
        return []
    warn_of_edits(run_dir)
    try:
        parsed = parse_overrides([new for old in saved if (new := renamed.current_override(old))])
    except HydraException as error:
        problems.append(f"resume={target}: {folder.OVERRIDES} in it is damaged ({error}); restore or correct it")
        return []
    of_hydra = [
        o.input_line for o in parsed if any(re.match(r"hydra\b", name or "") for name in (o.key_or_group, o.package))
    ]
    if of_hydra:  # its search path, launchers, callbacks and logging; a run saves none of them
        listed = ", ".join(map(str, of_hydra))
        problems.append(f"resume={target}: {folder.OVERRIDES} has {listed}; a run's own sets nothing of hydra")
        return []
    kept = [o.input_line or "" for o in parsed if o.key_or_group not in {*given, "resume", "sweep"}]
    if config.get("sweep"):
        kept = [line for line in as_single_run(kept) if line.split("=")[0] not in given]
    return [*kept, f"hydra.run.dir={hydra_quote(run_dir)}"]


def resume_auto(config: Node, *search: Path, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the unfinished run of the same configuration below `search`, for `resume=auto`, as an override.

    Of several it is the run of this cluster job if it was requeued, else the one with the most steps, then the one
    written last: clocks of several machines don't decide between runs of different length.
    """
    job, settings = environment.get("SLURM_JOB_ID"), training_settings(config)
    candidates, others = [], Counter[str]()
    for file in sorted(file for below in search for file in below.glob(f"*/{folder.CONFIG}")):
        run_dir, results = file.parent, folder.read_results(file.parent)
        if results.get("status") == "finished":  # of thousands, these are most: their configurations aren't read
            others["finished"] += 1
            continue
        try:
            other = training_settings(folder.read_config(run_dir))
        except (OSError, folder.UnreadableRun) as error:
            log.warning("%s can't be read (%s), and is skipped", file, error)
            others["unreadable"] += 1
            continue
        warn_of_edits(run_dir)
        if any(other.get(path) != settings.get(path) for path in other.keys() | settings.keys()):  # null is not set
            others["with other settings"] += 1
            continue
        checkpoints = [f for f in (run_dir / "checkpoints").glob("*.ckpt") if not f.name.startswith(".")]
        same_job = job is not None and results.get("job") == job
        if not (checkpoints or same_job or results.get("status") == "preempted"):
            others["without a checkpoint"] += 1
        elif lock.is_held(run_dir):
            others["being trained by another process"] += 1
        else:
            newest = max((f.stat().st_mtime for f in checkpoints), default=0.0)
            candidates.append((same_job, last_step(run_dir), newest, run_dir, results.get("status", "killed")))
    if not candidates:
        why = ", ".join(f"{count} {reason}" for reason, count in others.items()) or "there is no run"
        print(f"resume=auto: starts a new run; in {' and '.join(map(str, search))}: {why}", file=sys.stderr)
        return []
    _, step, _, run_dir, status = max(candidates)
    print(f"resume=auto: resumes {run_dir}, which has logged {step} steps ({status})", file=sys.stderr)
    return [f"hydra.run.dir={hydra_quote(run_dir)}"]


def warn_of_edits(run_dir: Path) -> None:
    if folder.is_edited(run_dir):
        hint = f"resume={run_dir} KEY=VALUE changes a setting of a resumed run"
        log.warning("%s was edited, which changes no setting of the run; %s", run_dir / folder.CONFIG, hint)


def last_step(run_dir: Path) -> int:
    file = run_dir / "metrics.csv"
    lines = file.read_text(errors="replace").splitlines()[1:] if file.is_file() else []
    return max((int(step.group()) for line in lines if (step := re.match(r"\d+", line))), default=0)


def folder_problems(config: Node, run_dir: Path) -> list[str]:
    """Return why a run of this configuration can't start or resume in a folder without losing what is saved there."""
    if "resume" not in config:
        return []
    resume, results = config["resume"], folder.read_results(run_dir)
    if lock.is_held(run_dir):
        return [f"hydra.run.dir={run_dir} is being trained in by {lock.owner(results)}; two can't share a folder"]
    if not any((run_dir / "checkpoints").glob("*.ckpt")):
        missing = f"resume={resume}: {run_dir} has no {LAST} to resume from"
        return [] if resume in (None, "auto") or str(resume).endswith(".ckpt") else [missing]
    if resume is None:
        return [f"hydra.run.dir={run_dir} has a run already; resume it with resume={run_dir}, or set another folder"]
    is_finished = results.get("status") == "finished"
    with suppress(OSError, folder.UnreadableRun):
        if is_finished and training_settings(folder.read_config(run_dir)) == training_settings(config):
            hint = "raise trainer.max_epochs or trainer.max_steps to continue it"
            return [f"resume={resume}: {run_dir} is finished; {hint}"]
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
    is_named = resume.endswith(".ckpt")
    file = Path(resume) if is_named else newest_checkpoint(resume, run_dir, first_rank=first_rank)
    if file is None:
        log.info("resume=%s: %s has no checkpoint: training starts from the beginning", resume, run_dir)
        return None
    if is_named and (problem := safe_load.corruption(file)):
        raise CannotResume(f"resume={resume} is damaged ({problem}); resume={run_dir} takes the newest intact one")
    content = safe_load.load_checkpoint(file)
    before = content.get("vitlab")
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
    if first_rank and is_named and file.resolve().parent == run_dir.resolve() / "checkpoints":
        abandon_later_checkpoints(file, content["global_step"])
    log.info("resume=%s: training continues at step %s, from %s", resume, content["global_step"], file)
    return file


def newest_checkpoint(resume: str, run_dir: Path, *, first_rank: bool) -> Path | None:
    """Return the newest intact checkpoint of a run, and rename the damaged ones. Raises `CannotResume` if all are."""
    from vitlab.training import checkpoint_files

    file, damaged = checkpoint_files.newest_checkpoint(run_dir / "checkpoints")
    for bad, problem in damaged.items():
        log.warning("%s is damaged (%s), and is renamed to %s.damaged", bad, problem, bad.name)
        if first_rank and file is not None:
            bad.replace(bad.with_name(f"{bad.name}.damaged"))
    if damaged and file is None:
        names = ", ".join(bad.name for bad in damaged)
        raise CannotResume(
            f"resume={resume}: all checkpoints of {run_dir} are damaged ({names}); start again in another folder"
        )
    return file


def abandon_later_checkpoints(file: Path, step: int) -> None:
    """Rename the checkpoints of later steps than `file` to `NAME.abandoned`."""
    from vitlab.storage import safe_load

    for other in file.parent.glob("*.ckpt"):
        if not other.name.startswith(".") and safe_load.load_checkpoint(other)["global_step"] > step:
            log.warning("%s is later than %s, and is renamed to %s.abandoned", other, file.name, other.name)
            other.replace(other.with_name(f"{other.name}.abandoned"))
