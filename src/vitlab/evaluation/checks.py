"""Check the settings of an evaluation."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from vitlab.config import allowlist
from vitlab.config.view import ConfigView
from vitlab.runs.folder import CONFIG, checkpoint_file


def evaluation_problems(read: ConfigView) -> Iterator[str]:
    yield from run_problems(read)
    yield from probe_problems(read)


def run_problems(read: ConfigView) -> Iterator[str]:
    run, checkpoint = read("run", str), read("checkpoint", str)
    if run is None or checkpoint is None:
        return
    file = Path(run) / CONFIG
    if not file.is_file():
        yield f"run={run} is not a run folder: it has no {CONFIG}"
    elif refused := allowlist.problems(yaml.safe_load(file.read_text())):
        yield from (f"run={run}: {problem}" for problem in refused)
    elif not checkpoint_file(Path(run), checkpoint).is_file():
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
