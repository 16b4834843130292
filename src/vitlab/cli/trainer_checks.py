"""Check the settings of the Trainer, of its callbacks and of the schedule."""

import math
import os
import re
from collections.abc import Iterator

from vitlab.cli.model_checks import batch_problems, train_samples
from vitlab.config.definitions import find_spec, is_kind_of
from vitlab.config.schema import ConfigView, Node, child_nodes, objectives, suggest
from vitlab.distributed import environment
from vitlab.training.schedules import count_warmup

# As Lightning registers them; looking them up would import it.
ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps", "tpu")
DDP = [f"ddp{kind}" for kind in ("", "_fork", "_notebook", "_spawn")]
STRATEGIES = (
    *("auto", "single_device", "single_tpu", "single_xla", "xla", "xla_debug", "fsdp", "fsdp_cpu_offload"),
    *(f"{name}{more}" for name in DDP for more in ("", *(f"_find_unused_parameters_{x}" for x in ("false", "true")))),
    *(f"deepspeed{stage}" for stage in ("", "_stage_1", "_stage_2", "_stage_2_offload", "_stage_3")),
    *("deepspeed_stage_3_offload", "deepspeed_stage_3_offload_nvme"),
)
SHARES = ("overfit_batches", "val_check_interval", *(f"limit_{x}_batches" for x in ("train", "val", "test", "predict")))
AT_LEAST_1 = ("accumulate_grad_batches", "num_nodes", "log_every_n_steps", "check_val_every_n_epoch")
UNSHARDED = {
    "vitlab.training.muon.MuonQKV": {"optimizer=muon_qkv": "split matrices"},
    "timm.optim.AdafactorBigVision": {"optimizer=adafactor": "save moments"},  # torch knows no dtypes in its settings
}
SHARDED = ("lightning.pytorch.strategies.ModelParallelStrategy",)  # its subclasses shard weights
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


def trainer_problems(view: ConfigView) -> Iterator[str]:
    for key, names in (("accelerator", ACCELERATORS), ("strategy", STRATEGIES)):
        value = view(f"trainer.{key}", str)
        if value is not None and value not in names:
            yield f"trainer.{key}={value}: there is no such {key}{suggest(value, sorted(names))}"
    if (clip := view("trainer.gradient_clip_val", float)) is not None and clip < 0:
        yield f"trainer.gradient_clip_val={clip} must be 0 (off) or more"
    for key in AT_LEAST_1:
        value = view(f"trainer.{key}", int)
        if value is not None and value < 1:
            yield f"trainer.{key}={value} must be at least 1"
    for key in SHARES:
        value = view(f"trainer.{key}")
        if isinstance(value, float) and not 0 <= value <= 1:
            yield f"trainer.{key}={value} is a share from 0.0 to 1.0; a number of batches has no decimal point"
    epochs, steps = view("trainer.max_epochs", int), view("trainer.max_steps", int)
    for key, value in (("max_epochs", epochs), ("max_steps", steps)):
        if value is not None and value < 1 and value != -1:
            yield f"trainer.{key}={value} must be at least 1, or -1 for no limit"
    if epochs == steps == -1:
        yield "trainer.max_epochs=-1 and trainer.max_steps=-1 set no end, which the schedule needs; set one of them"
    duration = view("trainer.max_time", str)
    if duration is not None and not re.fullmatch(r"\d+(:\d\d){3}", duration):
        yield f"trainer.max_time={duration} is no duration; write days:hours:minutes:seconds, such as 00:02:30:00"
    if view("trainer.use_distributed_sampler", bool):
        yield "trainer.use_distributed_sampler=true would divide the data twice, after vitlab's samplers; use false"
    if view("trainer.barebones", bool):
        yield "trainer.barebones=true leaves out checkpoints and logs; trainer.profiler=simple measures speed"
    if view("trainer.fast_dev_run"):
        yield f"trainer.fast_dev_run={view('trainer.fast_dev_run')} leaves out checkpoints and logs; use trainer=debug"
    targets = {key: str(node["_target_"]) for key, node in child_nodes(view("callbacks", dict) or {}).items()}
    averages = {key: target for key, target in targets.items() if "WeightAveraging" in target}
    clip, optimizer = view("classifier.adaptive_clip", float), view("optimizer._target_", str) or ""
    if is_kind_of(strategy := view("trainer.strategy._target_", str) or "", SHARDED):
        sharded = view("trainer.strategy.save_distributed_checkpoint", bool) is not False
        others = [key for key, target in averages.items() if sharded or "lightning." in target + strategy]
        work = {f"callbacks.{key}": "average weights" for key in others}
        work |= {f"classifier.adaptive_clip={clip}": "clip gradients"} if clip else {}
        fused = optimizer == "torch.optim.SGD" and view("optimizer.fused", bool)
        work |= {"optimizer.fused=true of optimizer=sgd": "update weights"} if fused else {}
        for setting, what in {**work, **UNSHARDED.get(optimizer, {})}.items():
            yield f"{setting} can't {what} that trainer=fsdp shards over devices; use trainer=ddp, or leave it out"
    if optimizer.endswith("training.sam.SAM"):
        if (parts := view("trainer.accumulate_grad_batches", int) or 1) > 1:
            yield f"optimizer=sam with trainer.accumulate_grad_batches={parts}: it runs each batch twice; set it to 1"
        if view("trainer.precision", str) in ("16", "16-mixed"):
            yield "optimizer=sam needs gradients without a scale; use trainer.precision=bf16-mixed"
    if clip and view("trainer.precision", str) in ("16", "16-mixed"):
        yield f"classifier.adaptive_clip={clip} needs gradients without a scale; use trainer.precision=bf16-mixed"


def device_problems(view: ConfigView) -> Iterator[str]:
    devices, named = view("trainer.devices", int), view("trainer.devices", str)
    if devices is not None and (devices == 0 or devices < -1):
        yield f"trainer.devices={devices} is not a number of devices; use 1 or more, or -1 for all"
    if named is not None and not re.fullmatch(r"auto|-1|\d+(,\s*\d+)*", named):
        yield f"trainer.devices={named} is not a number of devices; use 1 or more, auto, or -1 for all"
    if view.remote and view("trainer.devices") in (-1, "-1", "auto"):
        yield f"trainer.devices={view('trainer.devices')}: a cluster needs a number of devices; set one"
    if (nodes := view("trainer.num_nodes", int) or 1) > 1:
        by_others, each = environment.launched_externally(os.environ), environment.node_from_env(os.environ)
        if not (by_others or each or view.remote):
            remedy = "with torchrun or srun, or leave that to -m hydra/launcher=slurm"
            yield f"trainer.num_nodes={nodes}: start the processes of all nodes yourself, {remedy}"
        elif view("max_restarts", int) and not by_others:
            remedy = f"starts one machine's processes again, not {nodes}; use max_restarts=0"
            yield f"max_restarts={view('max_restarts', int)} {remedy}"


def gpu_problems(view: ConfigView) -> Iterator[str]:
    """Report devices that this machine doesn't have. torch counts them, so this is checked last."""
    devices, accelerator = view("trainer.devices", int), view("trainer.accelerator", str)
    if view.remote or (devices in (None, 1) and accelerator in (None, "auto", "cpu")):
        return
    gpus = 0
    if accelerator in ("auto", "gpu", "cuda"):
        import torch

        gpus = torch.cuda.device_count()
        if accelerator != "auto" and not gpus and not (accelerator == "gpu" and torch.backends.mps.is_available()):
            remedy = "use cpu or auto, or install a build of torch with CUDA"
            yield f"trainer.accelerator={accelerator}: torch finds no GPU on this machine; {remedy}"
            return
    if devices == -1 and not gpus:
        yield "trainer.devices=-1 means all GPUs, and there is none; set a number of processes"
    if gpus and devices > gpus:
        remedy = f"use trainer.devices={gpus}, or trainer.accelerator=cpu"
        yield f"trainer.devices={devices}: this machine has {gpus} GPUs; {remedy}"


def schedule_problems(view: ConfigView) -> Iterator[str]:
    samples, batch = train_samples(view), view("batch_size", int)
    epochs, steps = view("trainer.max_epochs", int), view("trainer.max_steps", int)
    total, per_epoch = steps if steps is not None and steps > 0 else math.inf, 0
    if samples and batch:
        per_epoch = samples // batch if view("data.drop_last", bool) else math.ceil(samples / batch)
        accumulate = view("trainer.accumulate_grad_batches", int) or 1
        most = batches = per_epoch * accumulate
        if (limit := view("trainer.limit_train_batches", float)) is not None:
            if (most := min(batches, limit) if isinstance(limit, int) else int(batches * limit)) < 1 <= batches:
                remedy = "raise it, or leave it out"
                yield f"trainer.limit_train_batches={limit} of the {batches} batches of an epoch is none; {remedy}"
            per_epoch = math.ceil(most / accumulate)
        total = min(total, epochs * per_epoch) if epochs is not None and epochs > 0 else total
        interval, every = view("trainer.val_check_interval"), view("trainer.check_val_every_n_epoch", int)
        if isinstance(interval, int) and every is not None and interval > per_epoch * accumulate:
            remedy = "lower it, or count over epochs with trainer.check_val_every_n_epoch=null"
            batches = per_epoch * accumulate
            yield f"trainer.val_check_interval={interval} is above the {batches} batches of an epoch; {remedy}"
        elif isinstance(interval, int | float) and accumulate > 1:
            batches = interval if isinstance(interval, int) else int(interval * most)
            uneven = every is None and most % accumulate and batches % most  # an epoch's last step has fewer batches
            if uneven or (batches % accumulate and (batches < most or every is None)):
                before = batches // accumulate * accumulate
                near = " or ".join(str(end) for end in (before, before + accumulate) if end)
                ends = f"a multiple of {most}, the batches of an epoch" if uneven else near
                why = f"is within a step of trainer.accumulate_grad_batches={accumulate}"
                yield f"trainer.val_check_interval={interval}, {batches} batches, {why}; use {ends}"
    if 0 < total < math.inf:
        cooldown = view("schedule.cooldown_steps", int) or (view("schedule.cooldown_epochs", int) or 0) * per_epoch
        fraction, length = view("schedule.warmup_fraction", float) or 0.0, view("schedule.warmup_steps", int)
        epochs = view("schedule.warmup_epochs", float) if per_epoch else None
        try:
            count_warmup(int(total), length, fraction, epochs, per_epoch, cooldown)
        except ValueError as error:
            yield str(error)


def check_samples(config: Node, samples: int) -> None:
    """Raise `ValueError` for a batch or schedule that doesn't fit the images to train on, now that they are loaded."""
    view = ConfigView(config, set())
    view.samples = samples
    if problems := [*batch_problems(view), *schedule_problems(view)]:
        raise ValueError("; ".join(problems))


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
    scores, nodes = [*objectives(metrics), *CALLBACK_METRICS], child_nodes(view("callbacks", dict) or {})
    for key, node in nodes.items():
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
    optimizer = (view("optimizer._target_", str) or "").endswith(".ScheduleFreeAdamW")
    average = any(str(node["_target_"]).endswith(".ScheduleFreeWeightAveraging") for node in nodes.values())
    if optimizer != average:
        yield "optimizer=schedule_free and callbacks=schedule_free need each other: the average is the model; set both"
    if optimizer and find_spec("schedulefree") is None:
        yield "optimizer=schedule_free needs a package: python -m pip install schedulefree"
