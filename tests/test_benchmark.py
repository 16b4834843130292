"""`make benchmark`: contenders take turns and do the same work; goals, tables and figures are of what was measured."""

import csv
import gc
import itertools
import logging
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
from omegaconf import OmegaConf

from benchmark import devices, loading, peers, run, startup, training
from benchmark.case import OURS, Case, Part, slope, with_exponents
from benchmark.devices import Devices
from benchmark.goals import Goal, outcomes
from benchmark.jpeg_folder import loaders, write_photographs
from benchmark.loading import CPU_MS, Loading
from benchmark.networks import LIMIT, MEMORY, Networks, peak_bytes
from benchmark.scaling import Scaling
from benchmark.timing import CPU, Clock, Contender, Measurement
from benchmark.training import BARE, Training
from vitlab.config import paths
from vitlab.config.schema import Node
from vitlab.data.datamodule import DataModule
from vitlab.data.decode import quiet
from vitlab.jobs import compose
from vitlab.training.classifier import Classifier

ONCE = Clock(rounds=1, seconds=0.0)


def measurement(name: str, *seconds: float, items: float = 1.0, peer: bool = True, **figures: float) -> Measurement:
    return Measurement(name=name, seconds=seconds, items=items, peer=peer, figures=figures)


def test_the_command_measures_chosen_parts(tmp_path: Path) -> None:
    line = ["parts=[networks]", "networks.sizes=[mini]", "networks.batches=[1]", "networks.tasks=[inference]"]
    line += ["networks.precisions=[float32]", "networks.peers=[timm]", "rounds=1", "seconds=0", f"out={tmp_path}"]
    program = Path(__file__).parent / "benchmark"
    done = subprocess.run([sys.executable, program, *line], check=True, capture_output=True, text=True)
    assert "goals reached" in done.stderr
    with (tmp_path / "benchmark.csv").open() as lines:
        assert [row["contender"] for row in csv.DictReader(lines)] == ["vitlab", "timm", LIMIT]
    assert {"benchmark.md", "networks.png"} <= {file.name for file in tmp_path.iterdir()}


# ------------------------------------------------------------------------------------------------------------ timing


def test_contenders_take_turns_in_an_order_of_each_round_so_that_neighbors_change() -> None:
    turns, states = list[str](), list[bool]()

    def contender(name: str) -> Contender:
        def run() -> None:
            turns.append(name)
            states.append(gc.isenabled())

        return Contender(name=name, run=run, items=2)

    found = Clock(rounds=6, seconds=0.0).measure([contender(name) for name in "abc"])
    assert turns[:6] == ["a", "a", "b", "b", "c", "c"]  # warm-up
    rounds = ["".join(turns[place : place + 3]) for place in range(6, len(turns), 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    followed = {one + other for each in rounds for one, other in itertools.pairwise(each)}
    assert followed == {"ab", "ac", "ba", "bc", "ca", "cb"}
    assert [(m.name, len(m.seconds), m.items) for m in found] == [(n, 6, 2) for n in "abc"]
    assert not any(states[6:]), "no garbage is collected in a measurement"
    assert gc.isenabled()


def test_short_calls_are_repeated_until_they_last_long_enough() -> None:
    calls: list[None] = []
    (found,) = Clock(rounds=2, seconds=0.01).measure([Contender(name="short", run=lambda: calls.append(None))])
    assert len(calls) > 2 + 2 * 100
    assert 0 < found.median < 1e-4


def test_medians_spread_and_ratios_are_of_items_per_second() -> None:
    ours, theirs = measurement("vitlab", 1.0, 2.0, 3.0, items=8), measurement("timm", 4.0, items=4)
    assert (ours.median, ours.rate, ours.spread, theirs.spread) == (2.0, 4.0, 0.5, 0)
    assert ours.ratio(theirs) == 4.0


# ---------------------------------------------------------------------------------------------- exponents and goals


@pytest.mark.parametrize(("unit", "exponent"), [("images", -2.0), (None, 2.0)])
def test_exponents_are_of_what_is_compared(unit: str | None, exponent: float) -> None:
    assert slope([1, 2, 4, 8], [3 * size**1.5 for size in (1, 2, 4, 8)]) == pytest.approx(1.5)
    rows = [[measurement(name, size**2) for name in ("vitlab", "timm")] for size in (1, 3)]
    cases = [Case(part="p", name="", unit=unit, size=n, measured=row) for n, row in zip((1, 3), rows, strict=True)]
    for case in with_exponents(cases, [0.5, 0.7]):
        figures = [{name: pytest.approx(value) for name, value in m.figures.items()} for m in case.measured]
        assert figures == [{"exponent": exponent, "ideal exponent": ideal} for ideal in (0.5, 0.7)]


CASE = Case(
    part="networks",
    name="b16 training",
    measured=[
        measurement("vitlab", 4.0, items=2, MB=12),
        measurement("timm", 4.0, MB=10),
        measurement("other", 1.0),
        measurement("limit", 0.1, peer=False, MB=1),
    ],
)


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (Goal("networks", 1.0), (False, "seconds 2.00 x other (goal: at most 1, missed)")),
        (Goal("networks", 0.5, "timm"), (True, "seconds 0.50 x timm (goal: at most 0.5)")),
        (Goal("networks", 1.1, figure="MB"), (False, "MB 1.20 x timm (goal: at most 1.1, missed)")),
        (Goal("networks", 1.2, figure="MB", case="b16"), (True, "MB 1.20 x timm (goal: at most 1.2)")),
        (Goal("networks", 1.0, "absent"), None),
        (Goal("networks", 1.0, case="s16"), None),
        (Goal("training", 1.0), None),
    ],
)
def test_the_outcome_says_what_was_reached_of_which_rival(goal: Goal, expected: tuple[bool, str] | None) -> None:
    assert goal.outcome(CASE) == expected


# ------------------------------------------------------------------------------------------------- parts and results


class Broken(Part):
    part = "start"

    def cases(self, clock: Clock) -> Iterator[Case]:
        logging.getLogger("vitlab.data.source").info("a split of a training")
        ours, limit = measurement("vitlab", 0.5, 0.25, items=1.0), measurement("limit", 0.5, items=2000.0, peer=False)
        yield Case(part="networks", name="small", measured=[ours, measurement("timm", 0.75, 0.75), limit])
        raise MemoryError("no room")


def test_a_part_that_fails_keeps_what_it_has_and_the_others_follow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(RuntimeError, match=r"failed: start \(MemoryError: no room\)"):
        run.run({"start": Broken(), "devices": Devices()}, ONCE, tmp_path)
    assert "networks: small   vitlab 2.667   timm 1.333   limit 4,000 images/s   seconds 0.50 x timm" in caplog.text
    assert f"1 of 1 goals reached; {tmp_path / 'benchmark.md'}" in caplog.text
    assert "a split of a training" not in caplog.text
    assert "devices: skipped" in caplog.text
    with (tmp_path / "benchmark.csv").open(newline="") as lines:
        assert [row["seconds of each round"] for row in csv.DictReader(lines)] == ["0.5 0.25", "0.75 0.75", "0.5"]
    tables = (tmp_path / "benchmark.md").read_text()
    assert tables.startswith(f"# {run.processor()}, ")
    assert "| small | vitlab | 2.667 | 0.375 | 33.33 | 2 | 1 |" in tables
    assert "| small | limit | 4,000 | 0.00025 | 0 | 1 | 0.0006667 |" in tables, "seconds of as many items"


# ---------------------------------------------------------------------------------------------------------- networks


def test_the_sizes_are_those_of_conf_and_of_the_cifar_experiment() -> None:
    files = {"ti16": "tiny", "s16": "small", "b16": "base", "l16": "large", "mini": "mini"}
    nodes = {size: OmegaConf.load(compose.CONF / "model" / "size" / f"{file}.yaml") for size, file in files.items()}
    nodes["cifar"] = OmegaConf.load(paths.EXPERIMENTS / "cifar10_spt.yaml").model
    for name, node in nodes.items():
        size = peers.SIZES[cast(peers.Size, name)]
        expected = (node.dim, node.depth, node.heads, int(node.dim * node.mlp_ratio))
        assert (size.dim, size.depth, size.heads, size.hidden) == expected, name
    assert set(nodes) == set(peers.SIZES)


def test_all_libraries_are_measured_with_the_machines_limit() -> None:
    everybody: tuple[peers.Peer, ...] = ("timm", "torchvision", "transformers", "vit-pytorch")
    part = Networks(sizes=("mini",), batches=(2,), precisions=("float32",), peers=everybody)
    inference, trained = part.cases(Clock(rounds=2, seconds=0))
    for case in (inference, trained):
        assert [m.name for m in case.measured] == ["vitlab", *everybody, LIMIT]
        for m in case.measured[:-1]:
            assert {*m.figures} == {"M parameters", "MFLOPs", MEMORY, "MFU %"}
            assert all(math.isfinite(value) and value > 0 for value in (*m.figures.values(), *m.seconds))
        assert len(outcomes(case)) == 2
        assert case["vitlab"].figures["MFLOPs"] < case["timm"].figures["MFLOPs"], "the last block is [cls] alone"
    assert trained["timm"].figures["MFLOPs"] > 2.5 * inference["timm"].figures["MFLOPs"]
    weights = case["timm"].figures["M parameters"] * 4
    assert trained["timm"].figures[MEMORY] > 4 * weights, "weights, gradients and AdamW's two"
    assert inference["timm"].figures[MEMORY] > weights


def test_another_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    target, names = peers.CLASSES["torchvision"]
    swapped = names.replace("hidden_dim num_layers", "num_layers hidden_dim")
    monkeypatch.setitem(peers.CLASSES, "torchvision", (target, swapped))
    odd = peers.Architecture(image=32, patch=4, dim=12, depth=8, heads=4, hidden=256, classes=10)
    with pytest.raises(RuntimeError, match=r"torchvision's .* has .* parameters and should have"):
        peers.build("torchvision", odd)


def test_the_peak_is_what_is_held_and_what_is_there_at_once() -> None:
    held = torch.zeros(1000)  # 4000 bytes; a view of it is no more

    def step() -> None:
        first = held + 1  # 4000
        second = torch.cat([first, first])  # 8000
        del first
        third = second[:500].clone()  # 2000: the second and it are less than the first two
        del second, third

    assert [peak_bytes(step, [held, held[:10]], CPU) for _ in range(2)] == [4000 + 12000] * 2


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # torch's compiler has some of its own
def test_compiled_networks_are_measured_too() -> None:
    part = Networks(sizes=("mini",), peers=("timm",), batches=(2,), precisions=("float32",), modes=("compiled",))
    assert [len(case.measured) for case in part.cases(ONCE)] == [3, 3]


def test_time_and_flops_are_fitted_over_each_axis() -> None:
    part = Scaling(tokens=(), width=(), depth=(), batch=(1, 2), at=(5, 32, 1, 1), networks=("timm",), task="inference")
    cases = list(part.cases(Clock(rounds=2, seconds=0)))
    assert [(case.name, case.axis, case.size) for case in cases] == [("batch 1", "batch", 1), ("batch 2", "batch", 2)]
    for case in cases:
        assert math.isfinite(case["timm"].figures["exponent"])
        assert case["timm"].figures["ideal exponent"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"\[60, 1\] are not \[cls\] and a square of patches; use \[50, 2\]"):
        Scaling(tokens=(50, 60), at=(1, 192, 4, 2))


# -------------------------------------------------------------------------------------------------- training, loading


def test_both_loops_train_alike_and_the_goal_has_its_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    made, build_training = [], training.build_training

    def record(config: Node) -> tuple[DataModule, Classifier]:
        torch.manual_seed(0)  # the same first weights
        made.append(build_training(config))
        return made[-1]

    monkeypatch.setattr(training, "build_training", record)
    small = ("batch_size=16", "trainer.log_every_n_steps=3", "model.drop_path=0.0")  # both draw from one generator
    (case,) = Training(default=False, networks={"vit_mini": 8}, settings=small).cases(Clock(rounds=2, seconds=0.0))
    ours, theirs = (module.network for _, module in made)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(other, one, msg=name, atol=1e-6, rtol=1e-5)
    assert [m.name for m in case.measured] == [OURS, BARE]
    for m in case.measured:
        assert len(m.seconds) == 2, "the first turn is a warm-up"
        assert all(math.isfinite(value) and value > 0 for value in (m.rate, *m.figures.values()))
    ((_, outcome),) = outcomes(case)
    assert "x bare loop" in outcome


def test_all_peers_load_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MEMORY_BATCH", 32)
    part = Loading(recipes=("digits", "cifar randaugment"), images=20, image_size=32, workers=(0, 1), batch_size=8)
    digits, cifar, alone, shared = part.cases(ONCE)
    assert [{m.items for m in case.measured} for case in (digits, cifar)] == [{32}, {32}]
    for case in (alone, shared):
        assert [m.items for m in case.measured] == [18, 20, 20, 16], "a tenth is held out; timm's fills its batches"
        if sys.platform == "linux":  # a file of 500 x 375 pixels takes a millisecond or more, wherever it is decoded
            assert all(0.2 < m.figures[CPU_MS] < 100 for m in case.measured)
    assert [len(outcomes(case)) for case in (digits, cifar, alone, shared)] == [1] * 4


def test_each_pass_of_all_loaders_draws_order_crops_and_flips(tmp_path: Path) -> None:
    write_photographs(tmp_path, 30)
    found = loaders(tmp_path, image_size=32, batch_size=15, workers=0)
    assert [*found] == ["vitlab", "torchvision, PIL", "torchvision.io, tensors", "timm"]
    for name, loader in found.items():
        with quiet():
            first, second = (torch.cat([batch[0] for batch in loader]) for _ in range(2))
        assert first.shape == second.shape == (27 if name == "vitlab" else 30, 3, 32, 32), name
        assert -1 < float(first.mean()) < 1 < 3 * float(first.std()), "normalized"
        ordered = [sorted(images.mean(dim=(1, 2, 3)).tolist()) for images in (first, second)]
        assert ordered[0] != ordered[1], "the same crops, whatever their order"


# --------------------------------------------------------------------------------------------------------- processes

# Makes a step after 0.2 s, and would then last a minute, with a child.
TRAINS = """
import subprocess, sys, time
from pathlib import Path
file = Path(sys.argv[1], "metrics.csv")
file.write_text("step,train/loss\\n")
child = subprocess.Popen(["sleep", "60"])
Path(sys.argv[2]).write_text(str(child.pid))
time.sleep(0.2)
file.write_text("step,train/loss\\n1,0.5\\n")
time.sleep(60)
"""


def has_ended(process: int) -> bool:
    """Whether a process is gone, or only waits for its parent."""
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_process_that_trains_counts_until_its_first_step_and_is_killed_with_its_children(tmp_path: Path) -> None:
    line = ["-S", "-c", TRAINS, "{folder}", str(tmp_path / "child")]
    seconds, used = startup.run_process(line, str(tmp_path), trains=True, threads=1)
    assert 0.2 < seconds < 30
    assert 0 < used["CPU seconds"] < seconds
    if sys.platform == "linux":
        assert 1 < used["MiB"] < 100, "not what this process holds, which has imported torch"
        deadline, child = time.monotonic() + 10, int((tmp_path / "child").read_text())
        while not has_ended(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert has_ended(child)


@pytest.mark.parametrize(("code", "trains"), [("raise SystemExit('no such')", False), ("print('no such')", True)])
def test_a_process_that_fails_or_never_trains_is_an_error_with_its_output(
    tmp_path: Path, code: str, trains: bool
) -> None:
    with pytest.raises(RuntimeError, match="no such"):
        startup.run_process(["-S", "-c", code], str(tmp_path), trains=trains, threads=1)


@pytest.mark.long
def test_the_default_run_and_help_are_timed_next_to_their_imports() -> None:
    first, asked = startup.Startup(commands=("sweep",), settings=("logger=csv",)).cases(ONCE)
    assert {m.name for m in first.measured} == {"vitlab", "import torch, lightning, timm"}
    assert {m.name for m in asked.measured} == {"vitlab", "import hydra"}
    assert (len(outcomes(first)), len(outcomes(asked))) == (1, 1)


def test_weak_scaling_keeps_the_images_of_a_device_and_strong_those_of_a_step() -> None:
    assert Devices(counts=[4, 1, 2], batch_size=8).table("cpu") == {
        "weak, 8 images a device": [(1, 8, "default"), (2, 16, "ddp"), (4, 32, "ddp")],
        "strong, 8 images a step": [(1, 8, "default"), (2, 8, "ddp"), (4, 8, "ddp")],
    }
    assert Devices(counts=[2, 4], strategy="fsdp", batch_size=8).table("cuda") == {
        "weak, 8 images a device": [(2, 16, "fsdp"), (4, 32, "fsdp")],
        "strong, 16 images a step": [(2, 16, "fsdp"), (4, 16, "fsdp")],
    }


TRAIN = """
import json, sys
from pathlib import Path
settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
rate = {"2": 100, "4": 150}[settings["trainer.devices"]] + int(settings["batch_size"])
Path(settings["hydra.run.dir"], "results.json").write_text(json.dumps({"images_per_second": rate, "mfu": 0.5}))
"""


def test_efficiency_is_the_rate_of_a_device_relative_to_that_on_the_fewest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setattr(devices, "SOURCE", tmp_path)
    two, four = Devices(counts=[2, 4], batch_size=10).cases(Clock(rounds=2, seconds=0.0))
    assert [(case.name, case.axis, case.size) for case in (two, four)] == [
        ("on 2", "devices", 2),
        ("on 4", "devices", 4),
    ]
    assert [m.figures["efficiency %"] for m in two.measured] == pytest.approx([100, 100])
    assert [m.figures["efficiency %"] for m in four.measured] == pytest.approx([50 * 190 / 120, 50 * 170 / 120])
    assert four.measured[1].figures["MFU %"] == 50


@pytest.mark.long
def test_real_trainings_on_one_process_and_two_are_measured_in_turns() -> None:
    part = Devices(counts=[1, 2], batch_size=8, steps=20, settings=("image_size=8",))
    one, two = part.cases(ONCE)
    assert [m.figures.keys() >= {"efficiency %", "MFU %", "data wait %"} for m in (*one.measured, *two.measured)] == [
        True
    ] * 4
