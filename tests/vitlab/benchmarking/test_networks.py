"""Rows of the matrix, and a real one of each task on the smallest network: numbers that can be, and the same work."""

import logging
import math
from typing import Any

import pytest
import torch

from vitlab.benchmarking import networks, peers
from vitlab.benchmarking.networks import LIMIT, MEMORY, Networks, Row
from vitlab.benchmarking.timing import CPU, Case, Clock, Goal

EVERYBODY: tuple[peers.Peer, ...] = ("timm", "torchvision", "transformers", "vit-pytorch")


def test_the_matrix_has_every_combination_and_compiles_few() -> None:
    rows = Networks(sizes=("cifar", "b16"), compiled=("cifar",)).rows(CPU)
    assert len(rows) == len(set(rows)) == 2 * 2 * 2 * 2 + 2 * 2
    assert {row.batch for row in rows if row.size == "b16"} == {1, 2}
    assert {(row.size, row.batch) for row in rows if row.mode == "compiled"} == {("cifar", 64)}
    all_of_it = Networks(sizes=("cifar",), batches=(1, 3), compiled=None).rows(CPU)
    assert {(row.batch, row.mode) for row in all_of_it} == {(b, m) for b in (1, 3) for m in ("eager", "compiled")}
    assert str(rows[0]) == "cifar inference of 1, float32 eager"


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    part = Networks(sizes=("mini",), batches=(2,), precisions=("bf16",), modes=("eager",), peers=EVERYBODY)
    return list(part.cases(Clock(rounds=2, seconds=0)))


def test_everybody_is_measured_beside_the_machines_limit(cases: list[Case]) -> None:
    assert [case.name for case in cases] == ["mini inference of 2, bf16 eager", "mini training of 2, bf16 eager"]
    for case in cases:
        assert [m.name for m in case.measured] == ["vitlab", *EVERYBODY, LIMIT]
        for m in case.measured[:-1]:
            assert {*m.figures} == {"M parameters", "MFLOPs", MEMORY, "MFU %"}
            assert all(math.isfinite(value) and value > 0 for value in (*m.figures.values(), *m.seconds))
            share = m.rate * m.figures["MFLOPs"] / (case[LIMIT].rate * case["vitlab"].figures["MFLOPs"])
            assert m.figures["MFU %"] == pytest.approx(100 * share)
        assert [rival for _, rival, _ in case.outcomes()][1:] == ["timm", "timm"]
        assert case["vitlab"].figures["MFLOPs"] < case["timm"].figures["MFLOPs"], "the last block is [cls] alone"
    inference, training = cases
    assert training["timm"].figures["MFLOPs"] > 2.5 * inference["timm"].figures["MFLOPs"]
    weights = peers.parameters(peers.build("timm", peers.SIZES["mini"])) * 4 / 1e6
    assert training["timm"].figures[MEMORY] > 4 * weights, "weights, gradients and AdamW's two"
    assert inference["timm"].figures[MEMORY] > weights


@pytest.mark.parametrize(("size", "goals"), [("b16", 3), ("s16", 2), ("cifar", 3)])
def test_goals_are_for_speed_and_memory_and_higher_where_it_was_promised(size: peers.Size, goals: int) -> None:
    row = Row(size=size, task="training", batch=1, precision="float32", mode="eager")
    found = networks.goals(row)
    assert len(found) == goals
    assert found[1] == Goal(least=1.0, against="timm", figure=MEMORY)


def test_a_training_step_trains_and_leaves_nothing_behind() -> None:
    network = peers.build("vitlab", peers.SIZES["mini"])
    optimizer = networks.adamw("vitlab", network, fused=False)
    assert optimizer.defaults["fused"] is True
    before = [parameter.detach().clone() for parameter in network.parameters()]
    networks.train(network, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), optimizer, "float32")
    moved = [not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
    assert all(moved)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert networks.adamw("timm", network, fused=True).defaults["fused"] is True
    assert not networks.adamw("timm", network, fused=False).defaults["fused"]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # torch's compiler has some of its own
def test_compiled_networks_are_measured_too(caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {"batches": (2,), "precisions": ("float32",), "modes": ("compiled",), "compiled": None}
    part = Networks(sizes=("mini",), peers=("timm",), **settings)
    with caplog.at_level(logging.INFO):
        cases = list(part.cases(Clock(rounds=1, seconds=0)))
    assert [len(case.measured) for case in cases] == [3, 3]
    assert "networks: 2 of 2, mini training of 2, float32 compiled ..." in caplog.text
