"""Replay a captured step: forward and backward again, and the first module whose output is not finite."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vitlab.config import instantiate
from vitlab.config.schema import Node
from vitlab.diagnostics import inspect
from vitlab.diagnostics.inspect import ModuleCall, ModuleTrace, TensorStats
from vitlab.runs.folder import read_config
from vitlab.training import build, nonfinite
from vitlab.training.classifier import Classifier, loss_scale
from vitlab.training.nonfinite import json_number
from vitlab.training.random_state import restore_random_state

log = logging.getLogger(__name__)


class NotReproducedError(ArithmeticError):
    """Everything in a captured step is finite when it is made again."""


@dataclass
class ReplayResult:
    """What was seen: `what` isn't finite first, in which `module`, of which micro-batch; `lines` has the details."""

    info: Node
    rank: int
    device: torch.device
    compiled: bool
    losses: list[Tensor] = field(default_factory=list)
    captured: list[Tensor] = field(default_factory=list)
    what: str | None = None
    module: str | None = None
    part: int = 0
    lines: list[str] = field(default_factory=list)
    inspected: ModuleTrace | None = None

    @property
    def reproduced(self) -> bool:
        """Whether the losses are those of training, bit for bit; a nan equals a nan."""
        pairs = zip(self.losses, self.captured, strict=True)
        return all(torch.equal(a, b) or bool(a.isnan() & b.isnan()) for a, b in pairs)

    @property
    def title(self) -> str:
        first = f": first {self.what}, in {self.module}" if self.module else f": first {self.what}" if self.what else ""
        return f"step {self.info['step']}, rank {self.rank}, part {self.part + 1} of {len(self.captured)}{first}"

    def find(self, what: str, module: str | None, lines: list[str], part: int | None = None) -> None:
        """Keeps the first finding."""
        if self.what is None:
            self.what, self.module, self.lines = what, module, lines
            self.part = self.part if part is None else part

    def calls(self) -> list[ModuleCall]:
        return self.inspected.calls if self.inspected else []

    def magnitudes(self) -> tuple[list[str], list[float], int | None]:
        """Names of the modules in order of execution, the largest finite |output| of each, which isn't finite first."""
        calls = self.calls()
        largest = [max(abs(call.output.low), abs(call.output.high)) for call in calls]
        first = next((i for i, call in enumerate(calls) if not call.output.finite), None)
        return [call.name for call in calls], largest, first

    def results(self) -> Node:
        """For `results.json`. Raises `NotReproducedError` where nothing was found."""
        if self.what is None:
            raise NotReproducedError(
                f"everything in step {self.info['step']} of rank {self.rank} is finite when it is made again on "
                f"{self.device}: {self.hint()}"
            )
        return {
            "what": self.what,
            "module": self.module,
            "part": self.part,
            "details": self.lines,
            "losses": [json_number(float(loss)) for loss in self.losses],
            "losses_in_training": [json_number(float(loss)) for loss in self.captured],
            "reproduced": self.reproduced,
            "outputs": {call.name: str(call.output) for call in self.calls()},
        }

    def hint(self) -> str:
        """What else may be the reason."""
        others = [rank for rank, losses in enumerate(self.info["losses"]) if not nonfinite.is_finite(losses)]
        if others and self.rank not in others:
            return f"the loss that wasn't finite is rank {others[0]}'s: use rank={others[0]}"
        if self.device.type != self.info["device"]:
            return f"it was made on {self.info['device']}: use that accelerator"
        if self.compiled:
            return "training was compiled, which rounds otherwise and drops other numbers; or a fault of the machine"
        if self.info["ranks"] > 1 and not others:
            return f"look at the other ranks' parts (0..{self.info['ranks'] - 1}); or it was a fault of the machine"
        return "perhaps a fault of the machine, such as of its memory or a device"

    def tell(self, picture: Path) -> None:
        """The findings, in lines for people."""
        info = self.info
        rates = ", ".join(f"{k} {v:.3g}" for k, v in info["learning_rates"].items())
        log.info(
            "step %s, epoch %d: gradient norm %s, lr %s", info["step"], info["epoch"], info["gradient_norm"], rates
        )
        for index, (now, then) in enumerate(zip(self.losses, self.captured, strict=True), start=1):
            same = "the same" if torch.equal(now, then) or bool(now.isnan() & then.isnan()) else f"{float(then)}"
            log.info("part %d of %d: loss %s; in training %s", index, len(self.captured), float(now), same)
        if not self.reproduced:
            log.info("the losses are not training's bit for bit; %s", self.hint())
        if self.what:
            log.info("first that isn't finite: %s%s", self.what, f", in {self.module}" if self.module else "")
        for line in self.lines:
            log.info("  %s", line)
        log.info("every module's largest output: %s", picture)


def replay_capture(folder: Path, *, rank: int = 0, accelerator: str = "auto") -> ReplayResult:
    """Makes a captured step of a rank again: forward and loss of each micro-batch, and backward as far as it helps."""
    info, config = nonfinite.read_info(folder), read_config(folder)
    parts, weights = nonfinite.read_parts(folder, rank), nonfinite.read_weights(folder)
    torch.set_num_threads(info["threads"])  # sums are cut up by threads, and so rounded
    kept = {k: v for k, v in config["trainer"].items() if k in ("deterministic", "benchmark")}
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False}
    node = {"accelerator": accelerator, "devices": 1, "precision": info["precision"], **kept, **quiet}
    trainer = build.build_trainer({"_target_": "lightning.Trainer", **node}, run_dir=folder)
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    with precision.module_init_context():
        network = instantiate.build_object(
            config["model"], num_classes=info["num_classes"], in_channels=info["in_channels"]
        )
    network.load_state_dict(weights)
    module = Classifier(network, num_classes=info["num_classes"], **config["classifier"])
    module = precision.convert_module(module).to(device).train()  # type: ignore[assignment]

    found = ReplayResult(info, rank, device, bool(config["compile"]), captured=[part.loss for part in parts])
    for name, range_ in inspect.nonfinite_tensors(dict(network.named_parameters())).items():
        owner = name.rpartition(".")[0] or "network"
        found.find("a parameter, before the step", owner, [f"{name}: {range_}", "an earlier step left it so"])
    for index, part in enumerate(parts):
        inspected = ModuleTrace(network)
        batch = part.batch._replace(images=part.batch.images.to(device), targets=part.batch.targets.to(device))
        for what, value in (("images", batch.images), ("targets", batch.targets)):
            if not (range_ := inspect.tensor_stats(value)).finite:
                found.find(f"the {what} of the batch", None, [str(range_)], index)
        restore_random_state(part.random, device)
        with inspected.forward(), precision.train_step_context():
            losses = module.losses(module(batch.images), batch.targets)
            loss = losses.sum() * loss_scale(batch, info["ranks"], info["accumulated"]) / info["accumulated"]
        found.losses.append(loss.detach().to("cpu", part.loss.dtype))
        if call := inspected.first_output():
            found.find("an output", call.origin, call_lines(network, call), index)
        elif not loss.isfinite():
            wrong = int((~losses.isfinite()).sum())
            found.find(
                "the loss", None, [f"all outputs are finite; the losses of {wrong} of {len(losses)} images aren't"]
            )
        if inspected.first_output() is None:
            with inspected.backward():
                (loss * info["gradient_scale"]).backward()
            if gradient := inspected.first_gradient():
                lines = [f"gradient of {gradient.of}: {gradient.range}"]
                lines += (
                    [f"{k}: {v}" for k, v in inspect.parameter_stats(network, gradient.origin).items()]
                    if gradient.origin != "loss"
                    else []
                )
                found.find("a gradient", gradient.origin, lines, index)
        if found.inspected is None or (found.what and found.part == index):
            found.inspected = inspected
    if found.what is None and not torch.tensor(inspect.gradient_norm(network)).isfinite():
        largest = max(
            ((name, inspect.tensor_stats(p.grad)) for name, p in network.named_parameters() if p.grad is not None),
            key=lambda pair: max(abs(pair[1].low), abs(pair[1].high)),
        )
        owner = largest[0].rpartition(".")[0] or "network"
        lines = ["each gradient is finite, but their squares' sum is not; the largest:", f"{largest[0]}: {largest[1]}"]
        found.find("the gradient's norm", owner, lines)
    return found


def call_lines(network: torch.nn.Module, call: ModuleCall) -> list[str]:
    """What a module's wrong output comes from: its input, output and parameters."""
    lines = [f"{call.name} ({call.kind})"]
    if call.origin != call.name:
        lines = [f"it came about in {call.origin}, before its {call.name} ({call.kind}), whose input had it already"]
    lines += [f"input   {call.input}{is_finite(call.input)}", f"output  {call.output}"]
    return lines + [f"{name}: {range_}" for name, range_ in inspect.parameter_stats(network, call.origin).items()]


def is_finite(range_: TensorStats) -> str:
    return ": nothing was wrong with it" if range_.finite else ""
