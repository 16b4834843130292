"""Going on with a run: its folder, its newest whole checkpoint, and whether that belongs to what is asked for."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from vitlab import runs
from vitlab.config.overrides import as_single_run, hydra_quote
from vitlab.config.schema import Node

if TYPE_CHECKING:
    from vitlab.data.datamodule import DataModule

LAST = "checkpoints/last.ckpt"

# What may differ between two runs that train the same, bit for bit ...
WITHOUT_EFFECT = (
    r"run_dir|resume|sweep|retries|name|logger|logger\..*|restarts|on_out_of_memory|data_dir|weights\.strict",
    r"data\.(num_workers|eval_batch_size|source\.(data_dir|cache_dir|cache_gb|verify)|skipped_file|scan)",
    r"callbacks\.(last|progress|nonfinite|pruning)(\..*)?|callbacks\.best\.keep|callbacks\.\w+\.dirpath",
    r"trainer\.(enable_\w+|log_every_n_steps|profiler|num_sanity_val_steps)",
)
# ... and what changes no more than the order in which numbers are added up.
UP_TO_ROUNDING = (
    r"trainer\.(accelerator|devices|num_nodes|accumulate_grad_batches|strategy|strategy\..*|precision|benchmark)",
    r"trainer\.deterministic|compile|model\.(checkpointing|embedding|fused_attention)",
)
# Of the model's settings, those that are no part of what it computes once it is trained.
TRAINING_OF_MODEL = (
    r"model\.(\w*dropout|drop_path|checkpointing|embedding|fused_attention|\w*drop_\w*rate|\w*drop_rate)"
)
# What the optimizer's groups follow from.
GROUPED_BY = ("layer_decay", "head_lr_factor", "freeze")

log = logging.getLogger(__name__)


class CannotResume(ValueError):
    """There is no whole checkpoint, or it is one of another network or of other data."""


# ------------------------------------------------------------------------------------------------------- the folder


def resumed_overrides(overrides: list[str], problems: list[str]) -> list[str]:
    """For `resume=FOLDER`: what that run was started with, less what `overrides` says anew."""
    given = {o.key_or_group: o for o in OverridesParser.create().parse_overrides(overrides)}
    if "resume" not in given or (target := str(given["resume"].value())) in ("auto", "None", "null"):
        return []
    run_dir = run_of(Path(target))
    if run_dir is None:
        problems.append(f"resume={target}: no run folder, nor a checkpoint in one; use resume=auto or a path")
        return []
    saved = yaml.safe_load((run_dir / runs.OVERRIDES).read_text()) if (run_dir / runs.OVERRIDES).is_file() else []
    parsed = OverridesParser.create().parse_overrides(saved)
    dropped = {*given, "resume", "sweep", "on_out_of_memory"}  # the last one is a setting of earlier versions
    kept = [o.input_line or "" for o in parsed if o.key_or_group not in dropped]
    if runs.read_config(run_dir).get("sweep"):
        kept = [line for line in as_single_run(kept) if line.split("=")[0] not in given]
    return [*kept, f"hydra.run.dir={hydra_quote(run_dir)}"]


def resume_auto(config: Node, search: Path, environment: Mapping[str, str] = os.environ) -> list[str]:
    """For `resume=auto`: the unfinished run of the same configuration below `search`, as an override.

    Of several it is the one of this cluster job, if it was requeued; else the one that was trained furthest, then the
    one that was written last. No clock decides between runs of different length.
    """
    job = environment.get("SLURM_JOB_ID")
    candidates = []
    for file in search.glob(f"*/{runs.CONFIG}"):
        run_dir, results = file.parent, runs.read_results(file.parent)
        try:
            other = settled(runs.read_config(run_dir))
        except (OSError, yaml.YAMLError, AssertionError) as error:
            log.warning("%s can't be read (%s), and is passed over", file, error)
            continue
        if results.get("status") == "finished" or other != settled(config):
            continue
        begun = [f for f in (run_dir / "checkpoints").glob("*.ckpt") if not f.name.startswith(".")]
        same_job = job is not None and results.get("job") == job
        if (begun or same_job or results.get("status") == "preempted") and not runs.is_held(run_dir):
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
    resume, results = config["resume"], runs.read_results(run_dir)
    if runs.is_held(run_dir):
        return [f"hydra.run.dir={run_dir} is being trained in by {runs.holder(results)}; two can't share a folder"]
    if not any((run_dir / "checkpoints").glob("*.ckpt")):
        missing = f"resume={resume}: {run_dir} has no {LAST} to go on from"
        return [] if resume in (None, "auto") or str(resume).endswith(".ckpt") else [missing]
    if resume is None:
        return [f"hydra.run.dir={run_dir} holds a run already: resume={run_dir} goes on with it; else name another"]
    if results.get("status") == "finished" and settled(runs.read_config(run_dir)) == settled(config):
        return [f"resume={resume}: {run_dir} is finished; raise trainer.max_epochs or trainer.max_steps to go on"]
    return []


def run_of(path: Path) -> Path | None:
    """The run folder that a path is or lies in."""
    for folder in (path, path.parent, path.parent.parent):
        if (folder / runs.CONFIG).is_file():
            return folder.resolve()
    return None


# ----------------------------------------------------------------------------------------------- the same run, or not


def settled(config: Node) -> dict[str, Any]:
    """The part of a configuration that decides what is trained, by dotted paths."""
    ignored = re.compile("|".join((*WITHOUT_EFFECT, r"trainer\.accumulate_grad_batches")))
    return {path: value for path, value in flat(config).items() if not ignored.fullmatch(path)}


def flat(config: Node, path: str = "") -> dict[str, Any]:
    """Values by dotted paths."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{path}{key}.")
        else:
            found[f"{path}{key}"] = value
    return found


def changes(before: Node, after: Node) -> list[str]:
    """What differs between two configurations, and what comes of it; what has no effect on the training comes last.

    `optimizer.lr: 0.1 -> 0.2 (trains otherwise)`
    """
    old, new = flat(before), flat(after)
    found: dict[str, list[str]] = {"trains otherwise": [], "the same up to rounding": [], "no effect on training": []}
    for path in dict.fromkeys([*old, *new]):
        if path in ("run_dir", "resume") or old.get(path) == new.get(path):
            continue
        effect = "trains otherwise"
        if re.fullmatch("|".join(UP_TO_ROUNDING), path):
            effect = "the same up to rounding"
        if re.fullmatch("|".join(WITHOUT_EFFECT), path):
            effect = "no effect on training"
        found[effect].append(f"{path}: {shown(path, old)} -> {shown(path, new)} ({effect})")
    return [line for lines in found.values() for line in lines]


def shown(path: str, values: dict[str, Any]) -> str:
    """A value, or that there is none."""
    return str(values[path]) if path in values else "(not there)"


def identity(config: Node, datamodule: "DataModule", run_id: str | None = None) -> Node:
    """What a checkpoint says of its run: configuration, data, how images are prepared, and wandb's id for it."""
    prepared = datamodule.preprocessing()
    return {"config": config, "data": fingerprint(datamodule), "preprocessing": prepared, "wandb": run_id}


def fingerprint(datamodule: "DataModule") -> Node:
    """What data a run has: names, numbers, and for each split a digest of its labels and of its images."""
    found: Node = {"data set": datamodule.source.name, "classes": list(datamodule.classes)}
    for name in ("train", "val", "test"):
        split = datamodule.split(name)
        found[f"{name} images"], found[f"{name} digest"] = len(split), split.digest()
    return found


def differences(before: Node, after: Node) -> list[str]:
    """Why a checkpoint of the one identity can't be gone on from with the other: another network, other data."""
    old, new = flat(before["config"].get("model") or {}, "model."), flat(after["config"].get("model") or {}, "model.")
    found = [
        f"{path}: {shown(path, old)} in the checkpoint, {shown(path, new)} now"
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path) and not re.fullmatch(TRAINING_OF_MODEL, path)
    ]
    begun = [((identity["config"].get("weights") or {}).get("source")) for identity in (before, after)]
    if begun[0] != begun[1]:  # its weights are loaded where training begins, and never again
        found.append(f"model.weights: {begun[0]} in the checkpoint, {begun[1]} now")
    # what an optimizer's groups are is taken up with its state: other rates would be believed, and not used
    groups = [identity["config"].get("classifier") or {} for identity in (before, after)]
    for key in GROUPED_BY:
        if all(key in group for group in groups) and groups[0][key] != groups[1][key]:
            found.append(f"classifier.{key}: {groups[0][key]} in the checkpoint's optimizer, {groups[1][key]} now")
    for key in dict.fromkeys([*before["data"], *after["data"]]):
        one, two = before["data"].get(key), after["data"].get(key)
        counts = key.replace("digest", "images")
        if one == two or (key.endswith("digest") and before["data"].get(counts) != after["data"].get(counts)):
            continue
        what = "differ, though they are as many" if key.endswith("digest") else f"{one} in the checkpoint, {two} now"
        found.append(f"data: {counts if key.endswith('digest') else key}: {what}")
    return found


# --------------------------------------------------------------------------------------------------- the checkpoint


def abandon(file: Path) -> None:
    """Sets aside, as `NAME.abandoned`, what a run has saved after a checkpoint that it goes back to."""
    from vitlab import checkpoints

    step = checkpoints.read(file)["global_step"]
    for other in file.parent.glob("*.ckpt"):
        if not other.name.startswith(".") and checkpoints.read(other)["global_step"] > step:
            log.warning("%s is of a later step than %s, and is set aside as %s.abandoned", other, file.name, other.name)
            other.replace(other.with_name(f"{other.name}.abandoned"))


def checkpoint_to_resume(resume: str | None, run_dir: Path, now: Node, *, first_rank: bool) -> Path | None:
    """The checkpoint that a run goes on from: `resume` itself if it is one, else the folder's newest whole one, if any.

    `now` is the identity of what is to be trained. Changed settings are told. A damaged file is told, and set aside as
    `NAME.damaged` by the first rank.

    Raises:
        CannotResume: every checkpoint is damaged, or it is one of another network or of other data.
    """
    from vitlab import checkpoints

    if resume is None:
        return None
    damaged: dict[Path, str] = {}
    file: Path | None
    if resume.endswith(".ckpt"):
        file = Path(resume)
        if problem := checkpoints.damage(file):
            raise CannotResume(f"resume={resume} is damaged ({problem}); resume={run_dir} takes the newest whole one")
        if first_rank and file.resolve().parent == run_dir.resolve() / "checkpoints":
            abandon(file)
    else:
        file, damaged = checkpoints.newest(run_dir / "checkpoints")
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
    before = checkpoints.read(file).get("vitlab")
    if not isinstance(before, dict):
        raise CannotResume(f"resume={resume}: {file} isn't a checkpoint of vitlab's, which say what they are of")
    changed = changes(before["config"], now["config"])
    if found := differences(before, now):
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
