"""Check the configured callbacks: those that can't work with vitlab's batches, and the scores they monitor."""

from collections.abc import Iterator

from vitlab.config.objective import objectives
from vitlab.config.schema import child_nodes, suggest
from vitlab.config.view import ConfigView

# Lightning's callbacks that change the size or number of batches: vitlab's batches follow from the step (data.sampler)
REFUSED = {
    "BatchSizeFinder": "changes the batch size during training; python src/doctor.py finds the largest that fits",
    "LearningRateFinder": "trains before training; sweep the rate: -m optimizer.lr=0.0003,0.001,0.003",
    "GradientAccumulationScheduler": "changes the accumulation between epochs; set trainer.accumulate_grad_batches",
}
NARROW = ("16-true", "bf16-true", "transformer-engine", "transformer-engine-float16")


def callback_problems(view: ConfigView) -> Iterator[str]:
    metrics, precision = view("classifier.metrics", dict) or {}, view("trainer.precision", str)
    scores = [*objectives(metrics), "val/correct"]
    for key, node in child_nodes(view("callbacks", dict) or {}).items():
        kind = str(node["_target_"]).rpartition(".")[2]
        monitor = node.get("monitor")
        if kind in REFUSED:
            yield f"callbacks.{key}: {kind} {REFUSED[kind]}, and leave callbacks.{key} out"
        if kind == "EarlyStopping" and isinstance(monitor, str) and monitor not in scores:
            there = f"{suggest(monitor, scores)} (of {', '.join(scores)})"
            yield f"callbacks.{key}.monitor={monitor}: no validation measures it{there}"
        if kind == "WeightAveraging" and precision in NARROW:
            remedy = f"use trainer.precision={'16' if precision == '16-true' else 'bf16'}-mixed"
            yield f"callbacks.{key} with trainer.precision={precision}: an average of 16 bits stands still; {remedy}"
