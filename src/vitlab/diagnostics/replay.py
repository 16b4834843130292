"""Replay a captured step: repeat forward and backward, and find the first value that isn't finite."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vitlab.config import instantiate
from vitlab.config.schema import Node
from vitlab.diagnostics import inspect
from vitlab.diagnostics.inspect import ModuleCall, ModuleTrace, tensor_stats
from vitlab.runs.folder import read_config
from vitlab.training import build, nonfinite
from vitlab.training.classifier import Classifier, gradient_norm, loss_scale
from vitlab.training.nonfinite import json_number
from vitlab.training.random_state import restore_random_state

log = logging.getLogger(__name__)


class NotReproducedError(ArithmeticError):
    """All values of the replayed step are finite."""


@dataclass
class ReplayResult:
    """The first value that isn't finite, and the losses."""

    info: Node
    rank: int
    device: torch.device
    compiled: bool
    losses: list[Tensor] = field(default_factory=list)  # of each micro-batch
    captured: list[Tensor] = field(default_factory=list)  # in training
    what: str | None = None  # "an output", for example; None if everything is finite
    module: str | None = None
    part: int = 0  # index of its micro-batch
    lines: list[str] = field(default_factory=list)  # details
    trace: ModuleTrace | None = None  # of the micro-batch

    @property
    def is_reproduced(self) -> bool:
        """Whether the losses equal training's, bit for bit."""
        return all(map(equal, self.losses, self.captured))

    def record(self, what: str, module: str | None, lines: list[str], part: int | None = None) -> None:
        """Record a value that isn't finite, if it is the first."""
        if self.what is None:
            self.what, self.module, self.lines = what, module, lines
            self.part = self.part if part is None else part

    def results(self) -> Node:
        """The content of `results.json`. Raises `NotReproducedError` if all values are finite."""
        if self.what is None:
            step = f"step {self.info['step']} of rank {self.rank}"
            raise NotReproducedError(f"all values of {step} are finite when replayed on {self.device}: {self.hint()}")
        return {
            "what": self.what,
            "module": self.module,
            "part": self.part,
            "details": self.lines,
            "losses": [json_number(float(loss)) for loss in self.losses],
            "losses_in_training": [json_number(float(loss)) for loss in self.captured],
            "reproduced": self.is_reproduced,
            "outputs": {call.name: str(call.output) for call in (self.trace.calls if self.trace else [])},
        }

    def hint(self) -> str:
        """Why the replay may differ from training, and the remedy."""
        others = [rank for rank, losses in enumerate(self.info["losses"]) if not nonfinite.is_finite(losses)]
        if others and self.rank not in others:
            return f"the loss that wasn't finite is rank {others[0]}'s; use rank={others[0]}"
        if self.device.type != self.info["device"]:
            return f"the step was computed on {self.info['device']}; use that accelerator"
        if self.compiled:
            return "the training was compiled, which changes rounding and dropout; or a hardware error"
        if self.info["ranks"] > 1 and not others:
            return f"replay the other ranks (rank=0..{self.info['ranks'] - 1}); or it was a hardware error"
        return "possibly a hardware error, such as of the memory or a device"

    def log_report(self) -> None:
        info = self.info
        rates = ", ".join(f"{k} {v:.3g}" for k, v in info["learning_rates"].items())
        summary = "step %s, epoch %d: gradient norm %s, lr %s"
        log.info(summary, info["step"], info["epoch"], info["gradient_norm"], rates)
        for index, (now, then) in enumerate(zip(self.losses, self.captured, strict=True), start=1):
            same = "the same" if equal(now, then) else float(then)
            log.info("part %d of %d: loss %s; in training %s", index, len(self.captured), float(now), same)
        if not self.is_reproduced:
            log.info("the losses differ from training's; %s", self.hint())
        if self.what:
            module = f", in {self.module}" if self.module else ""
            log.info("first non-finite value: %s%s (part %d)", self.what, module, self.part + 1)
        for line in self.lines:
            log.info("  %s", line)


def equal(one: Tensor, two: Tensor) -> bool:
    """Whether two losses are equal; nan equals nan."""
    return torch.equal(one, two) or bool(one.isnan() & two.isnan())


def replay_capture(folder: Path, *, rank: int = 0, accelerator: str = "auto") -> ReplayResult:
    """Repeat a rank's captured step: forward, loss and backward of each micro-batch."""
    info: Node = json.loads((folder / nonfinite.INFO).read_text())
    config = read_config(folder)
    parts, weights = nonfinite.read_parts(folder, rank), nonfinite.read_weights(folder)
    torch.set_num_threads(info["threads"])  # the number of threads affects the rounding of sums
    kept = {k: v for k, v in config["trainer"].items() if k in ("deterministic", "benchmark")}
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False}
    node = {"accelerator": accelerator, "devices": 1, "precision": info["precision"], **kept, **quiet}
    trainer = build.build_trainer({"_target_": "lightning.Trainer", **node}, run_dir=folder)
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    shape = {"num_classes": info["num_classes"], "in_channels": info["in_channels"]}
    with precision.module_init_context():
        network = instantiate.build_object(config["model"], **shape)
    network.load_state_dict(weights)
    options = {**config["classifier"], "class_weights": info.get("class_weights")}  # perhaps computed from the data
    module = Classifier(network, num_classes=info["num_classes"], **options)
    if module.distillation.kind != "none":
        module.distillation.load_teacher(**info["distillation"])
    module = precision.convert_module(module).to(device).train()  # type: ignore[assignment]

    result = ReplayResult(info, rank, device, bool(config["compile"]), captured=[part.loss for part in parts])
    for name, parameter in network.named_parameters():
        if not (stats := tensor_stats(parameter)).finite:
            lines = [f"{name}: {stats}", "an earlier step made it so"]
            result.record("a parameter, before the step", inspect.owner_name(name), lines)
    for index, part in enumerate(parts):
        trace = ModuleTrace(network)
        batch = part.batch._replace(images=part.batch.images.to(device), targets=part.batch.targets.to(device))
        for what, value in (("images", batch.images), ("targets", batch.targets)):
            if not (stats := tensor_stats(value)).finite:
                result.record(f"the {what} of the batch", None, [str(stats)], index)
        restore_random_state(part.random, device)
        with trace.forward(), precision.train_step_context():
            losses = module.batch_losses(batch)
            loss = losses.sum() * loss_scale(batch, info["ranks"], info["accumulated"]) / info["accumulated"]
        result.losses.append(loss.detach().to("cpu", part.loss.dtype))
        if call := trace.first_output():
            result.record("an output", call.origin, call_lines(network, call), index)
        else:
            if not loss.isfinite():
                count = f"{int((~losses.isfinite()).sum())} of {len(losses)}"
                result.record("the loss", None, [f"all outputs are finite; the losses of {count} images aren't"])
            (loss * info["gradient_scale"]).backward()
            gradients = {name: tensor_stats(p.grad) for name, p in network.named_parameters() if p.grad is not None}
            if wrong := [name for name, stats in gradients.items() if not stats.finite]:
                name = wrong[-1]  # the first one of the backward pass
                owner = inspect.owner_name(name)
                lines = [f"gradient of {name}: {gradients[name]}", *inspect.parameter_lines(network, owner)]
                result.record("a gradient", owner, lines, index)
        if result.trace is None or (result.what and result.part == index):
            result.trace = trace
    last = [p.grad for p in network.parameters() if p.grad is not None]
    if result.what is None and not gradient_norm(last).isfinite():
        ranges = {k: tensor_stats(p.grad) for k, p in network.named_parameters() if p.grad is not None}
        name = max(ranges, key=lambda k: max(abs(ranges[k].low), abs(ranges[k].high)))
        lines = ["each gradient is finite, but the sum of their squares is not; the largest:"]
        result.record("the gradient's norm", inspect.owner_name(name), [*lines, f"{name}: {ranges[name]}"])
    return result


def call_lines(network: torch.nn.Module, call: ModuleCall) -> list[str]:
    """The input, output and parameters of the module whose output isn't finite."""
    lines = [f"{call.name} ({call.kind})"]
    if call.origin != call.name:
        lines = [f"computed in {call.origin}, before its {call.name} ({call.kind}), whose input was not finite either"]
    lines += [f"input   {call.input}", f"output  {call.output}"]
    return lines + inspect.parameter_lines(network, call.origin)
