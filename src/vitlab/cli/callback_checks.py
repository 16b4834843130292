"""Check the configured callbacks: those that a run needs, those that can't work here, and the scores they monitor."""

from collections.abc import Iterator

from vitlab.config.definitions import find_spec, is_kind_of
from vitlab.config.objective import objectives
from vitlab.config.schema import child_nodes, suggest
from vitlab.config.view import ConfigView

NEEDED = {
    "vitlab.training.checkpoints.BestCheckpoint": "keeps the checkpoint that is tested",
    "vitlab.training.checkpoints.LastCheckpoint": "keeps the checkpoint that a run is resumed from",
    "vitlab.training.monitor.Monitor": "logs the training",
}
# Lightning's callbacks that change the size or number of batches (vitlab's follow from the step: data.sampler), the
# optimizer's rates, or modules that the network doesn't have or calls otherwise
REFUSED = {
    "BatchSizeFinder": "changes the batch size during training; python src/plan.py says what fits",
    "LearningRateFinder": "trains before training; sweep the rate: -m optimizer.lr=0.0003,0.001,0.003",
    "GradientAccumulationScheduler": "changes the accumulation between epochs; set trainer.accumulate_grad_batches",
    "StochasticWeightAveraging": "replaces the rates of the schedule; use callbacks=ema",
    "BackboneFinetuning": "trains a module called backbone, and the network has none; set classifier.freeze",
    "ModelPruning": "prunes by hooks that the network doesn't call; prune an exported network",
}
MONITORS = (  # and what is derived from them
    "lightning.pytorch.callbacks.early_stopping.EarlyStopping",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
)
BARS = ("lightning.pytorch.callbacks.progress.progress_bar.ProgressBar",)
CALLBACK_METRICS = ("val/correct", "val/count", "epoch", "step")  # what may be monitored, next to the objectives
AVERAGE = "vitlab.training.averages.WeightAveraging"  # in float32
NARROW = ("16-true", "bf16-true", "transformer-engine", "transformer-engine-float16")


def group_problems(view: ConfigView) -> Iterator[str]:
    """Callbacks that every run needs, and entries of `callbacks` and `logger` that are none."""
    callbacks = view("callbacks", dict)
    targets = {key: node["_target_"] for key, node in child_nodes(callbacks or {}).items()}
    for needed, what in NEEDED.items():
        if callbacks is not None and needed not in targets.values():
            yield f"callbacks has no {needed}, which {what}; use callbacks=default and add to it"
    bars = [f"callbacks.{key}" for key, target in targets.items() if is_kind_of(target, BARS)]
    if len(bars) > 1:
        yield f"{' and '.join(bars)} are progress bars, and a run has one; set {bars[0]}=null"
    for key, kind in (("logger", "logger"), ("callbacks", "callback")):
        for name, inner in (view(key, dict) or {}).items():
            if inner is not None and not child_nodes(inner):
                yield f"{key}.{name} is no {kind}: it has no _target_; remove it, or complete it"


def callback_problems(view: ConfigView) -> Iterator[str]:
    metrics, precision = view("classifier.metrics", dict) or {}, view("trainer.precision", str)
    scores = [*objectives(metrics), *CALLBACK_METRICS]
    for key, node in child_nodes(view("callbacks", dict) or {}).items():
        kind = str(node["_target_"]).rpartition(".")[2]
        monitor = node.get("monitor")
        if kind in REFUSED:
            yield f"callbacks.{key}: {kind} {REFUSED[kind]}, and leave callbacks.{key} out"
        if kind == "DeviceStatsMonitor" and node.get("cpu_stats") is not False and find_spec("psutil") is None:
            remedy = f"pip install psutil, or set callbacks.{key}.cpu_stats=false"
            yield f"callbacks.{key}: {kind} needs psutil, which isn't installed: {remedy}"
        known = [*scores, view.config.get("objective")]  # which has its own check
        if isinstance(monitor, str) and monitor not in known and is_kind_of(str(node["_target_"]), MONITORS):
            there = f"{suggest(monitor, scores)} (of {', '.join(scores)})"
            yield f"callbacks.{key}.monitor={monitor}: no validation measures it{there}"
        stops = is_kind_of(str(node["_target_"]), MONITORS[:1]) and str(monitor).startswith("val/")
        if stops and view("data.val_fraction", float) == 0:
            yield f"callbacks.{key} reads {monitor}, and data.val_fraction=0 holds out no validation; set it to 0.1"
        if "WeightAveraging" in kind and node["_target_"] != AVERAGE and precision in NARROW:
            remedy = f"use trainer.precision={'16' if precision == '16-true' else 'bf16'}-mixed"
            yield f"callbacks.{key} with trainer.precision={precision}: an average of 16 bits stands still; {remedy}"
    yield from schedule_free_problems(view)


def schedule_free_problems(view: ConfigView) -> Iterator[str]:
    """Schedule-free AdamW and the callback that reads its average need each other."""
    targets = [str(node["_target_"]) for node in child_nodes(view("callbacks", dict) or {}).values()]
    optimizer = (view("optimizer._target_", str) or "").endswith(".ScheduleFreeAdamW")
    average = any(target.endswith(".ScheduleFreeWeightAveraging") for target in targets)
    if optimizer != average:
        yield "optimizer=schedule_free and callbacks=schedule_free need each other: the average is the model; set both"
    if optimizer and find_spec("schedulefree") is None:
        yield "optimizer=schedule_free needs a package: python -m pip install schedulefree"
