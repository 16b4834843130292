"""What is wrong with the settings of the other programs than `train.py`: a rule each, silent where it isn't its own."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import yaml

from vitlab import ledger, runs
from vitlab.config import allowlist
from vitlab.config.schema import format_value
from vitlab.config.view import ConfigView


def evaluation_problems(read: ConfigView) -> Iterator[str]:
    yield from run_problems(read)
    yield from probe_problems(read)


def run_problems(read: ConfigView) -> Iterator[str]:
    run, checkpoint = read("run", str), read("checkpoint", str)
    if run is None or checkpoint is None:
        return
    file = Path(run) / runs.CONFIG
    if not file.is_file():
        yield f"run={run} is not a run folder: it has no {runs.CONFIG}"
    elif refused := allowlist.problems(yaml.safe_load(file.read_text())):
        yield from (f"run={run}: {problem}" for problem in refused)
    elif not runs.checkpoint_file(Path(run), checkpoint).is_file():
        yield f"checkpoint={checkpoint}: {run}/checkpoints has no {checkpoint}.ckpt; has the run begun, and been kept?"


def probe_problems(read: ConfigView) -> Iterator[str]:
    node = read("probe", dict)
    if not node or "_target_" not in node or read.has_problem("probe"):
        return
    if read("split", str) == "train" and node["_target_"] != "vitlab.evaluation.probes.Head":
        yield "split=train: a probe is fitted to the training images, and is measured on others; use val or test"
    kind, class_token = node.get("features"), read("model.class_token", bool)
    if kind in ("cls", "both") and class_token is False:
        yield f"probe.features={kind}: model.class_token=false leaves no [cls] token to read; use mean or pooled"


def doctor_problems(read: ConfigView) -> Iterator[str]:
    for knob, least in (("steps", 1), ("warmup", 1), ("rounds", 1)):
        if (value := read(knob, int)) is not None and value < least:
            yield f"{knob}={value} must be at least {least}"
    for count in read("workers", list[int]) or []:
        if count < 0:
            yield f"workers={format_value(read('workers'))}: {count} is not a number of processes; use 0 or more"
    if (ranks := read.ranks()) > 1 and (batch := read("batch_size", int)) is not None:
        share = f"use trainer.devices=1 trainer.num_nodes=1 batch_size={max(1, batch // ranks)}, the share of one"
        yield f"trainer.devices={format_value(read('trainer.devices'))}: the doctor looks at one device; {share}"


def export_problems(read: ConfigView) -> Iterator[str]:
    if (tolerance := read("tolerance", float)) is not None and not tolerance >= 0:
        yield f"tolerance={format_value(tolerance)} must be 0 or more"
    name, run, checkpoint, out = (read(key, str) for key in ("format", "run", "checkpoint", "out"))
    if name is None or run is None or checkpoint is None or out is None:
        return
    from vitlab.exporting import formats

    yield from formats.problems(
        run=Path(run),
        checkpoint=checkpoint,
        part=read("part", str),
        name=name,
        fold=bool(read("fold", bool)),
        out=Path(out),
        overwrite=bool(read("overwrite", bool)),
    )


def replay_problems(read: ConfigView) -> Iterator[str]:
    capture, rank = read("capture", str), read("rank", int)
    if capture is None or rank is None:
        return
    from vitlab import nonfinite

    folder = Path(capture)
    if not (folder / nonfinite.INFO).is_file():
        inside = sorted(map(str, folder.glob(f"captures/*/{nonfinite.INFO}")))
        there = f"; that run has {', '.join(str(Path(file).parent) for file in inside)}" if inside else ""
        yield f"capture={capture} is not a captured step: it has no {nonfinite.INFO}{there}"
    elif not (folder / runs.CONFIG).is_file():
        yield f"capture={capture} has no {runs.CONFIG}, which says what the network is; copy the run's there"
    elif not (folder / f"rank{rank}" / nonfinite.PARTS).is_file():
        there = ", ".join(sorted(part.name.removeprefix("rank") for part in folder.glob("rank*")))
        yield f"rank={rank}: {capture} has no part of it; there is {there}"


def sweep_action_problems(read: ConfigView) -> Iterator[str]:
    action, sweep, run = read("action", str), read("sweep", str), read("run", str)
    if action is None or {"sweep", "run"} & read.bad:
        return
    from vitlab import panels

    takes = f"{action} takes sweep=NAME" + " or run=FOLDER" * (action == "dashboard")
    if action != "dashboard" and (sweep is None or run is not None):
        yield f"{'sweep is not set' if run is None else f'run={run} is for dashboard'}; {takes}"
    elif (sweep is None) == (run is None):
        yield f"{'neither sweep nor run is' if sweep is None else 'sweep and run are both'} set; {takes}"
    elif action == "dashboard" and importlib.util.find_spec("wandb_workspaces") is None:
        yield f"wandb-workspaces, which makes dashboards, is not installed: {panels.INSTALL}"
    else:
        try:
            folder = ledger.find_sweep(sweep) if sweep is not None else None
            if action == "dashboard":
                jobs = ledger.read_sweep(folder).jobs if folder else []
                panels.tracked_in([runs.read_config(Path(run))] if run else [job.config for job in jobs if job.config])
        except (ledger.NoSweep, FileNotFoundError) as error:
            yield str(error)
        except ValueError as error:
            yield f"{f'run={run}' if run else f'sweep={sweep}'}: {error}"
