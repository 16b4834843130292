"""A real case of each task on the smallest network: possible numbers, and the same work for all."""

import math
from typing import Any

import pytest
import torch

from vitlab.benchmark import networks, peers
from vitlab.benchmark.case import Case
from vitlab.benchmark.goals import outcomes
from vitlab.benchmark.networks import LIMIT, MEMORY, Networks, peak_bytes
from vitlab.diagnostics.timing import CPU, Clock

EVERYBODY: tuple[peers.Peer, ...] = ("timm", "torchvision", "transformers", "vit-pytorch")


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    part = Networks(sizes=("mini",), batches=(2,), precisions=("float32",), peers=EVERYBODY)
    return list(part.cases(Clock(rounds=2, seconds=0)))


def test_all_libraries_are_measured_with_the_machines_limit(cases: list[Case]) -> None:
    assert [case.name for case in cases] == ["mini inference of 2, float32 eager", "mini training of 2, float32 eager"]
    for case in cases:
        assert [m.name for m in case.measured] == ["vitlab", *EVERYBODY, LIMIT]
        for m in case.measured[:-1]:
            assert {*m.figures} == {"M parameters", "MFLOPs", MEMORY, "MFU %"}
            assert all(math.isfinite(value) and value > 0 for value in (*m.figures.values(), *m.seconds))
            share = m.rate * m.figures["MFLOPs"] / (case[LIMIT].rate * case["vitlab"].figures["MFLOPs"])
            assert m.figures["MFU %"] == pytest.approx(100 * share)
        assert len(outcomes(case)) == 2
        assert case["vitlab"].figures["MFLOPs"] < case["timm"].figures["MFLOPs"], "the last block is [cls] alone"
    inference, training = cases
    assert training["timm"].figures["MFLOPs"] > 2.5 * inference["timm"].figures["MFLOPs"]
    weights = peers.parameters(peers.build("timm", peers.SIZES["mini"])) * 4 / 1e6
    assert training["timm"].figures[MEMORY] > 4 * weights, "weights, gradients and AdamW's two"
    assert inference["timm"].figures[MEMORY] > weights


def test_a_step_trains_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    network = peers.build("vitlab", peers.SIZES["mini"])
    monkeypatch.setattr(networks, "build", lambda *_: network)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    for task, precision, moves in (("inference", "bf16", False), ("training", "float32", True)):
        found = networks.contender("vitlab", peers.SIZES["mini"], task, 2, precision, CPU, "eager")  # type: ignore[arg-type]
        found.run()
        moved = [not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
        assert moved == [moves] * len(moved)
        assert all(parameter.grad is None for parameter in network.parameters())
    assert networks.adamw("vitlab", network).defaults["fused"] is True
    assert not networks.adamw("timm", network).defaults["fused"]


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
    settings: dict[str, Any] = {"batches": (2,), "precisions": ("float32",), "modes": ("compiled",)}
    cases = list(Networks(sizes=("mini",), peers=("timm",), **settings).cases(Clock(rounds=1, seconds=0)))
    assert [len(case.measured) for case in cases] == [3, 3]
