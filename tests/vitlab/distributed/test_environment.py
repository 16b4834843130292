"""The environment says which rank this process is, of how many, and who started it."""

from typing import Any

import pytest
import torch

from vitlab.distributed import environment as distributed_environment
from vitlab.distributed.environment import (
    NodeInfo,
    is_restart,
    launched_externally,
    node_from_env,
    ranks_per_node,
)

GPUS_OR_ONE = max(1, torch.cuda.device_count())


@pytest.mark.parametrize(
    ("devices", "accelerator", "ranks"),
    [
        (1, "cpu", 1),
        (4, "cpu", 4),
        (4, "auto", 4),
        ("3", "cpu", 3),
        ([0], "gpu", 1),
        ([1, 3], "gpu", 2),
        ((0, 1, 2), "gpu", 3),
        ("0,2", "gpu", 2),
        ("0,", "gpu", 1),
        ("1, 2, 3", "gpu", 3),
        ("auto", "cpu", 1),
        (-1, "cpu", 1),
        ("-1", "cpu", 1),
        ("auto", "auto", GPUS_OR_ONE),
        (-1, "gpu", GPUS_OR_ONE),
        ("-1", "auto", GPUS_OR_ONE),
    ],
)
def test_devices_in_every_spelling_are_a_number_of_ranks(devices: Any, accelerator: str, ranks: int) -> None:
    assert ranks_per_node(devices, accelerator) == ranks


@pytest.mark.parametrize(
    ("environment", "by_others"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "4"}, True),
        ({"TORCHELASTIC_RUN_ID": "none"}, True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, False),
    ],
)
def test_ranks_made_by_torchrun_or_slurm_are_known(environment: dict[str, str], by_others: bool) -> None:
    assert launched_externally(environment) is by_others


SLURM = {"SLURM_NNODES": "2", "SLURM_NTASKS": "2", "SLURM_NODEID": "1", "SLURM_PROCID": "1", "SLURM_JOB_ID": "70042"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({**SLURM, "SLURM_JOB_NODELIST": "gpu[03,07-09]"}, NodeInfo(1, 2, "gpu03", 15042)),
        ({**SLURM, "SLURM_NTASKS": "8"}, None),
        ({**SLURM, "TORCHELASTIC_RUN_ID": "none"}, None),
        ({"SLURM_NNODES": "1", "SLURM_NTASKS": "1"}, None),
    ],
)
def test_a_machines_place_in_a_job_is_what_its_launcher_says_or_slurm_with_one_task_on_each(
    environment: dict[str, str], place: NodeInfo | None
) -> None:
    assert node_from_env(environment) == place
    if place:
        assert distributed_environment.rank(environment) == 1
        assert not launched_externally(environment)


@pytest.mark.parametrize(
    ("environment", "rank"),
    [({}, 0), ({"RANK": "3", "SLURM_PROCID": "0"}, 3), ({"SLURM_PROCID": "2"}, 2)],
)
def test_a_process_knows_its_number(environment: dict[str, str], rank: int) -> None:
    assert distributed_environment.rank(environment) == rank


@pytest.mark.parametrize(
    ("environment", "again"),
    [
        ({}, False),
        ({"SLURM_RESTART_COUNT": "0"}, False),
        ({"SLURM_RESTART_COUNT": "2"}, True),
        ({"TORCHELASTIC_RESTART_COUNT": "1"}, True),
    ],
)
def test_a_job_knows_that_it_was_started_before(environment: dict[str, str], again: bool) -> None:
    assert is_restart(environment) is again
