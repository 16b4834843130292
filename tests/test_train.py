"""`python src/train.py` as a user runs it: what it leaves, repeats, takes up again, and trains on several processes."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from conftest import SRC, Configure, Program, Start, Tracked
from forked_ranks import RANKS
from vitlab.config.schema import Node
from vitlab.runs.folder import write_config
from vitlab.sweeps import ledger
from vitlab.training.throughput import TIMED

STEPS, EPOCHS, IMAGES = 21, 6, 1292
UNVARIED = ["data.augment.degrees=0", "data.augment.translate=0", "data.augment.scale=[1,1]", "data.augment.shear=0"]
UNVARIED += ["data.augment.mixup=0"]


def checkpoint(run: Path, name: str) -> Any:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", map_location="cpu", weights_only=True)


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return {k: v for k, v in checkpoint(run, name)["state_dict"].items() if k.startswith("network.")}


def same(one: Any, two: Any) -> bool:
    """Whether two checkpoints' contents are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


def results(run: Path) -> Any:
    return json.loads((run / "results.json").read_text())


def config(run: Path) -> Any:
    return yaml.safe_load((run / "config.yaml").read_text())


def rows(run: Path) -> list[dict[str, str]]:
    """What was logged but for the speed, which no two runs share."""
    with (run / "metrics.csv").open(newline="") as lines:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(lines)]


def logged(run: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(run) if row[name]]


# -------------------------------------------------------------------------------------------------------- one run


def test_a_run_leaves_everything_in_its_folder(twins: list[Path]) -> None:
    run = twins[0]
    for file in ("config.yaml", "train.log", ".hydra/overrides.yaml", "wandb/run_id", "figures/curves.png"):
        assert (run / file).stat().st_size > 0, file
    with Image.open(run / "figures" / "curves.png") as picture:
        assert picture.size > (500, 300)
    assert {p.name for p in run.parent.iterdir()} == {"a", "b", "a.txt", "b.txt"}, "and nothing next to it"


def test_its_configuration_is_resolved_and_complete(twins: list[Path], small: list[str]) -> None:
    saved = config(twins[0])
    assert "${" not in (twins[0] / "config.yaml").read_text()
    assert saved["run_dir"] == str(twins[0])
    assert saved["image_size"] == saved["model"]["image_size"] == saved["data"]["image_size"] == 8
    for override in small:
        key, _, value = override.partition("=")
        found = saved
        for name in key.split("."):
            found = found[name]
        assert found == yaml.safe_load(value), override


def test_its_results_have_the_logged_names_scores_counts_and_provenance(twins: list[Path]) -> None:
    found = results(twins[0])
    assert found["status"] == "finished"
    assert found["samples"] == {"train": IMAGES, "val": 145, "test": 360}
    assert (found["steps"], found["epochs"], found["images"]) == (STEPS * EPOCHS, EPOCHS, IMAGES * EPOCHS)
    assert (found["devices"], found["device"], found["precision"]) == (1, "cpu", "32-true")
    for split, count in (("val", 145), ("test", 360)):
        assert found[f"{split}/count"] == count
        assert isinstance(found[f"{split}/correct"], int)
        assert found[f"{split}/acc"] == pytest.approx(found[f"{split}/correct"] / count)
        assert 0 < found[f"{split}/acc"] <= found[f"{split}/acc5"] <= 1
        assert found[f"{split}/loss"] > 0
    assert found["test/acc"] > 0.25, "it learnt something"
    assert found["seconds"] > 0
    assert found["images_per_second"] > 0
    assert 0 < found["mfu"] < 2, "the CPU is noisy"
    assert 0 < found["data_wait"] < 1
    assert "src/train.py" in found["command"]
    assert "model.dim=16" in found["command"]
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_its_metrics_report_losses_scores_rates_and_speed_by_step_and_images(twins: list[Path]) -> None:
    found = rows(twins[0])
    train = [int(row["step"]) for row in found if row["train/loss"]]
    ends = [STEPS * epoch for epoch in range(1, EPOCHS + 1)]
    assert train == sorted({*range(5, STEPS * EPOCHS + 1, 5), *ends}), "every 5 steps, and at an epoch's end"
    val = [(int(row["step"]), float(row["images"])) for row in found if row["val/acc"]]
    assert val == [(end, IMAGES * epoch) for epoch, end in enumerate(ends, start=1)]
    assert [row["step"] for row in found if row["test/acc"]] == [str(STEPS * EPOCHS)]
    first = next(row for row in found if row["step"] == "5")
    assert float(first["lr/decay"]) == pytest.approx(config(twins[0])["optimizer"]["lr"]), "the warm-up's last step"
    assert float(first["train/gradient_norm"]) > 0
    epochs = [int(float(row["epoch"])) for row in found if row["train/loss"]]
    assert epochs == [(step - 1) // STEPS + 1 for step in train], "counted from 1"


def test_its_checkpoints_hold_plain_clean_weights_and_the_best_is_the_best(twins: list[Path]) -> None:
    scores = [float(row["val/acc"]) for row in rows(twins[0]) if row["val/acc"]]
    for name, epoch in (("best", scores.index(max(scores)) + 1), ("last", EPOCHS)):
        found = checkpoint(twins[0], name)
        assert found["global_step"] == STEPS * epoch
        assert not any("_orig_mod." in key for key in found["state_dict"])
        assert "network.blocks.0.attn.qkv.weight" in found["state_dict"]
    assert results(twins[0])["val/acc"] == pytest.approx(max(scores))
    assert {p.name for p in (twins[0] / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}


def test_it_says_what_it_trains_how_it_ends_and_warns_of_nothing(twins: list[Path]) -> None:
    printed, found = (twins[0].parent / "a.txt").read_text(), results(twins[0])
    logged = (twins[0] / "train.log").read_text()
    for text in (printed, logged):
        assert "1,292 images to train on, 145 to validate, 360 to test" in text
        assert "batch_size=64: 1 device(s) x 1 accumulated x 64 images; 21 steps an epoch" in text
        assert len(re.findall(r"epoch \d/6", text)) == EPOCHS
        percent = f"test accuracy {100 * found['test/acc']:.2f} % ({found['test/correct']} of 360)"
        assert percent in text
        assert f"run folder: {twins[0]}" in text
        assert "wandb sync" in text, "not logged in: offline, and how to send it"
        assert "warning" not in text.lower()


def test_the_same_command_and_seed_give_the_same_run_bit_for_bit(twins: list[Path]) -> None:
    for name in ("best", "last"):
        one, two = (checkpoint(run, name) for run in twins)
        assert same(one["state_dict"], two["state_dict"])
        assert same(one["optimizer_states"], two["optimizer_states"])
    assert rows(twins[0]) == rows(twins[1])


# ---------------------------------------------------------------------------------------------------------- resume


def interrupted(start: Start, folder: Path, *arguments: str) -> Path:
    """The folder of a run that was killed in the middle of an epoch, after at least one checkpoint."""
    process = start("train", *arguments, cwd=folder)
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            for run in folder.glob("runs/*/*"):
                last, metrics = run / "checkpoints" / "last.ckpt", run / "metrics.csv"
                if last.exists() and metrics.exists() and (step := int(rows(run)[-1]["step"])) > STEPS and step % STEPS:
                    os.kill(process.pid, signal.SIGKILL)
                    return run
            time.sleep(0.005)
    finally:
        process.kill()
        output, _ = process.communicate()
    pytest.fail(f"it ended before it could be killed:\n{output}")


@pytest.fixture(scope="module")
def resumed(start: Start, program: Program, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run killed and taken up again by the same command, and what was found in between."""
    folder = tmp_path_factory.mktemp("resumed")
    run = interrupted(start, folder, *small, "resume=auto")
    found = {"run": run, "status": results(run)["status"], "id": (run / "wandb" / "run_id").read_text()}
    found |= {"step": checkpoint(run, "last")["global_step"], "logged": int(rows(run)[-1]["step"])}
    return found | {"output": program("train", *small, "resume=auto", cwd=folder)}


def test_a_killed_run_is_taken_up_again_in_its_folder_and_its_wandb_run(resumed: Any) -> None:
    run = resumed["run"]
    assert resumed["status"] == "running"
    assert 0 < resumed["step"] < resumed["logged"] < STEPS * EPOCHS, "it was killed between two checkpoints"
    assert [p for p in run.parent.parent.glob("*/*") if p.is_dir()] == [run]
    assert results(run)["status"] == "finished"
    assert (run / "wandb" / "run_id").read_text() == resumed["id"]
    parts = {p.name.rsplit("-", 1)[-1] for p in (run / "wandb").glob("offline-run-*")}
    assert parts == {resumed["id"]}
    reported = [int(epoch) for epoch in re.findall(r"epoch (\d)/6", resumed["output"])]
    assert reported == list(range(-(-resumed["step"] // STEPS), EPOCHS + 1)), (
        "it went on, with the validation that was due"
    )


def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(resumed: Any, twins: list[Path]) -> None:
    for name in ("best", "last"):
        one, two = checkpoint(resumed["run"], name), checkpoint(twins[0], name)
        assert same(one["state_dict"], two["state_dict"])
        assert same(one["optimizer_states"], two["optimizer_states"])
        assert same(one["lr_schedulers"], two["lr_schedulers"])


def test_a_resumed_runs_metrics_have_no_row_twice_and_none_missing(resumed: Any, twins: list[Path]) -> None:
    assert rows(resumed["run"]) == rows(twins[0])


def test_a_resumed_run_remembers_its_best_score_and_all_that_it_saw(resumed: Any, twins: list[Path]) -> None:
    one, two = results(resumed["run"]), results(twins[0])
    assert {k: v for k, v in one.items() if k.startswith(("val/", "test/"))} == {
        k: v for k, v in two.items() if k.startswith(("val/", "test/"))
    }
    assert (one["steps"], one["images"], one["epochs"]) == (two["steps"], two["images"], two["epochs"])


def test_the_newest_part_of_a_resumed_runs_tracking_holds_all_of_it(resumed: Any, tracked: Tracked) -> None:
    parts = tracked(resumed["run"])
    assert len(parts) == 2
    assert parts[0][0]["state"] != "finished", "the killed part never ended, and may hold nothing"
    summary, history = parts[-1]
    assert (summary["state"], summary["exit_code"], summary["run_id"]) == ("finished", 0, resumed["id"])
    steps = [row["trainer/global_step"] for row in history if "train/loss" in row]
    assert steps == [int(row["step"]) for row in rows(resumed["run"]) if row["train/loss"]]


# ------------------------------------------------------------------------------------------------------- preemption


ONE_OR_TWO = [pytest.param(1, id="one-process", marks=pytest.mark.long), pytest.param(2, id="two-ranks")]


@pytest.fixture(scope="module", params=ONE_OR_TWO)
def preempted(
    request: pytest.FixtureRequest, start: Start, small: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A run that a cluster warned in the middle of an epoch, and how it ended."""
    folder = tmp_path_factory.mktemp("preempted")
    process = start("train", *small, f"trainer.devices={request.param}", "hydra.run.dir=run", cwd=folder)
    metrics = folder / "run" / "metrics.csv"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and len(rows(folder / "run")) > 6) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    return folder / "run", process.returncode, output


def test_a_warned_run_saves_its_step_and_ends_with_the_status_to_requeue_on(preempted: Any) -> None:
    run, status, output = preempted
    assert status == 75, output
    assert results(run)["status"] == "preempted"
    assert "error" not in results(run)
    assert f"preempted: stopped on request; resume={run} resumes it" in output
    assert checkpoint(run, "last")["global_step"] >= int(rows(run)[-1]["step"])
    assert "Traceback" not in (run / "train.log").read_text()


def test_the_dashboard_knows_that_it_was_preempted(preempted: Any) -> None:
    (part,) = (preempted[0] / "wandb").glob("offline-run-*")
    records = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(part)]
    found = subprocess.run(records, capture_output=True, text=True, check=True).stdout
    assert '"type":"preempting"' in found.replace(" ", "")


# ----------------------------------------------------------------------------------------------- several processes


@pytest.fixture(scope="module")
def sweep(start: Start, program: Program, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Jobs of a single process and of two that accumulate, each followed by one whose Trainer can't be built.

    In the third of them everything is killed, and the same command given again.
    """
    folder = tmp_path_factory.mktemp("sweep")
    axes = ["trainer.devices=1,2", "trainer.gradient_clip_algorithm=norm,nonsense"]
    axes += ["trainer.accumulate_grad_batches=${trainer.devices}"]
    arguments = ["-m", *axes, *small, *UNVARIED, "seed=1", "hydra.sweep.dir=jobs", "max_failures_per_job=0"]
    process = start("train", *arguments, cwd=folder)
    deadline, begun = time.monotonic() + 600, list[Path]()
    while not begun and process.poll() is None and time.monotonic() < deadline:
        begun = list(folder.glob("jobs/devices_2-*_norm-*/checkpoints/last.ckpt"))
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # it can't say of its job any more how that ended
    for file in begun:
        os.kill(results(file.parents[1])["process"], signal.SIGKILL)  # the first rank
    process.kill()
    output, _ = process.communicate(timeout=100)
    assert begun, output
    output = program("train", *arguments, cwd=folder, status=1)
    (folder / "again.txt").write_text(output)
    return [job.folder for job in ledger.read_sweep(folder / "jobs").jobs]


@pytest.mark.long
def test_each_job_of_a_sweep_has_its_own_overrides_and_its_own_number_of_processes(sweep: list[Path]) -> None:
    reported = [config(run)["trainer"] for run in sweep]
    assert [(t["devices"], t["gradient_clip_algorithm"]) for t in reported] == [
        (1, "norm"),
        (1, "nonsense"),
        (2, "norm"),
        (2, "nonsense"),
    ]
    assert [results(run).get("devices") for run in sweep] == [1, None, 2, None]
    assert "1 device(s) x 1 accumulated x 64 images" in (sweep[0] / "train.log").read_text()
    assert "2 device(s) x 2 accumulated x 16 images" in (sweep[2] / "train.log").read_text()
    assert len({(run / "wandb" / "run_id").read_text() for run in sweep}) == 4
    assert {p for p in sweep[0].parent.iterdir() if p.is_dir()} == {*sweep, sweep[0].parent / "report"}


@pytest.mark.long
def test_a_killed_sweep_is_gone_on_with_by_the_same_command_and_each_job_is_trained_once(sweep: list[Path]) -> None:
    jobs, output = ledger.read_sweep(sweep[0].parent).jobs, (sweep[0].parents[1] / "again.txt").read_text()
    assert [(job.status, job.attempts) for job in jobs] == [
        ("finished", 1),
        ("crashed", 1),
        ("finished", 2),
        ("crashed", 1),
    ]
    assert f"{sweep[2].name}: resumed (it was interrupted; start 2)" in output
    assert "max_failures_per_job=1 retries it" in output
    assert [int(row["step"]) for row in rows(sweep[2]) if row["val/loss"]] == [STEPS * n for n in range(1, EPOCHS + 1)]


@pytest.mark.long
def test_a_job_that_fails_stops_no_other_and_says_why(sweep: list[Path]) -> None:
    assert [results(run)["status"] for run in sweep] == ["finished", "crashed", "finished", "crashed"]
    for run in (sweep[1], sweep[3]):
        assert "nonsense" in results(run)["error"]
        assert "Traceback" in (run / "train.log").read_text()


@pytest.mark.long
def test_each_job_is_a_tracked_run_of_its_own_with_its_true_end(sweep: list[Path], tracked: Tracked) -> None:
    parts = [tracked(run) for run in sweep]
    assert [len(found) for found in parts] == [1, 1, 2, 1], "one was killed; the second rank tracks nothing"
    one, failed, two, ended = (found[-1][0] for found in parts)
    assert [summary["exit_code"] for summary in (one, failed, two)] == [0, 1, 0]
    assert ended["state"] != "finished", "a rank that its launcher ends may have no time to say more"
    assert len({summary["run_id"] for summary in (one, failed, two)}) == 3
    assert [summary["config"]["trainer"]["devices"] for summary in (one, two)] == [1, 2]


@pytest.mark.long
def test_two_processes_draw_each_image_once_an_epoch_in_the_same_steps(sweep: list[Path]) -> None:
    one, two = results(sweep[0]), results(sweep[2])
    for found in (one, two):
        assert (found["steps"], found["images"]) == (STEPS * EPOCHS, IMAGES * EPOCHS)
        assert (found["val/count"], found["test/count"]) == (145, 360)
    assert [row["images"] for row in rows(sweep[0])] == [row["images"] for row in rows(sweep[2])]


def assert_equal_to_rounding(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        # softmax doesn't see the keys' bias: its gradient is rounding alone, which Adam makes as large as any other
        kept_rows = slice(None) if "qkv.bias" not in name else torch.arange(48)[(torch.arange(48) // 16) != 1]
        torch.testing.assert_close(one[name][kept_rows], two[name][kept_rows], rtol=1e-2, atol=1e-3, msg=name)


def assert_trained_alike(one: Path, two: Path) -> None:
    assert logged(one, "train/loss") == pytest.approx(logged(two, "train/loss"), rel=1e-4)
    assert logged(one, "train/gradient_norm") == pytest.approx(logged(two, "train/gradient_norm"), rel=1e-3)
    assert len(logged(one, "train/gradient_norm")) == len(logged(one, "train/loss")) == 30
    assert_equal_to_rounding(weights(one), weights(two))


@pytest.mark.long
def test_two_processes_of_two_accumulated_parts_train_as_one_of_one_does(sweep: list[Path]) -> None:
    assert_trained_alike(sweep[2], sweep[0])


@pytest.mark.long
def test_another_seed_gives_another_run(sweep: list[Path], twins: list[Path]) -> None:
    one, two = weights(sweep[0]), weights(twins[0])
    assert not same(one["network.patch_embed.proj.weight"], two["network.patch_embed.proj.weight"])


@pytest.fixture(scope="module")
def strategies(program: Program, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One job of each other strategy: two processes of two accumulated parts."""
    folder, names = tmp_path_factory.mktemp("strategies"), ["ddp", "fsdp"]
    parts = ["trainer.accumulate_grad_batches=2", "hydra.sweep.dir=jobs", "hydra/launcher=local"]
    program("train", "-m", f"trainer={','.join(names)}", *parts, *small, *UNVARIED, "seed=1", cwd=folder)
    return {job.choices["trainer"]: job.folder for job in ledger.read_sweep(folder / "jobs").jobs}


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_other_strategies_agree_with_one_process_and_leave_whole_checkpoints(
    sweep: list[Path], strategies: dict[str, Path], strategy: str
) -> None:
    run = strategies[strategy]
    assert "2 device(s) x 2 accumulated x 16 images" in (run / "train.log").read_text()
    assert results(run)["devices"] == 2
    assert results(run)["images"] == IMAGES * EPOCHS
    assert_trained_alike(run, sweep[0])
    assert (results(run)["test/count"], results(run)["val/count"]) == (360, 145)


@pytest.fixture(scope="module")
def two_nodes(start: Start, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two machines of one process each, as two of torchrun's agents on this one start it."""
    folder = tmp_path_factory.mktemp("nodes")
    with socket.socket() as listener:
        listener.bind(("", 0))
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
    agent = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=two", f"--rdzv-endpoint={endpoint}"]
    job = ["trainer.num_nodes=2", "trainer.devices=1", "trainer.accumulate_grad_batches=2", "hydra.run.dir=run"]
    line = [str(SRC / "train.py"), *job, *small, *UNVARIED, "seed=1", "logger=csv"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    agents = [
        subprocess.Popen([*torchrun, f"--node-rank={n}", *agent, *line], cwd=folder, env=environment) for n in range(2)
    ]
    try:
        assert [process.wait(timeout=400) for process in agents] == [0, 0]
    finally:
        for process in agents:
            process.kill()
    return folder / "run"


@pytest.mark.long
def test_two_machines_that_torchrun_brings_together_train_as_one_process_does(
    two_nodes: Path, sweep: list[Path]
) -> None:
    found, one = results(two_nodes), results(sweep[0])
    assert (found["status"], found["devices"]) == ("finished", 2)
    for name in ("steps", "epochs", "images", "samples", "val/count", "test/count"):
        assert found[name] == one[name], name
    assert_trained_alike(two_nodes, sweep[0])


@pytest.fixture(scope="module")
def worlds(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of 21 steps by one process and by four ranks, of which some are resumed by other numbers of ranks."""
    folder = tmp_path_factory.mktemp("worlds")
    first = [*small, *UNVARIED, "seed=1", "logger=csv", "trainer.log_every_n_steps=1", "trainer.max_epochs=1"]
    second = [*first, "trainer.max_epochs=2"]
    jobs: list[list[Any]] = [
        ["train", "one", 1, *first],
        ["train", "ddp4", 4, "trainer=ddp", *first],
        ["train", "fsdp4", 4, "trainer=fsdp", *first],
        ["train", "one-of-fsdp4", 1, *second, f"resume={folder}/fsdp4/checkpoints/last.ckpt"],
        ["train", "ddp2-of-fsdp4", 2, "trainer=ddp", *second, f"resume={folder}/fsdp4/checkpoints/last.ckpt"],
        ["train", "fsdp2-of-ddp4", 2, "trainer=fsdp", *second, f"resume={folder}/ddp4/checkpoints/last.ckpt"],
        ["evaluate", "one-evaluates-fsdp4", 1, f"run={folder}/fsdp4", "trainer.accelerator=cpu"],
        ["evaluate", "two-evaluate-fsdp4", 2, f"run={folder}/fsdp4", "trainer.accelerator=cpu"],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SRC)}
    subprocess.run([sys.executable, "-c", RANKS, json.dumps(jobs)], cwd=folder, env=environment, check=True)
    return folder


@pytest.mark.parametrize("name", ["ddp4", "fsdp4"])
@pytest.mark.long
def test_four_ranks_train_as_one_process_does_step_by_step(worlds: Path, name: str) -> None:
    assert results(worlds / name)["devices"] == 4
    assert len(logged(worlds / name, "train/loss")) == STEPS
    assert logged(worlds / name, "train/loss") == pytest.approx(logged(worlds / "one", "train/loss"), rel=1e-4)
    assert_equal_to_rounding(weights(worlds / name), weights(worlds / "one"))


@pytest.mark.long
def test_a_checkpoint_is_gone_on_with_by_any_other_number_of_ranks(worlds: Path) -> None:
    alone = logged(worlds / "one-of-fsdp4", "train/loss")
    assert len(alone) == STEPS, "it went on where the four stopped"
    for name in ("ddp2-of-fsdp4", "fsdp2-of-ddp4"):
        assert results(worlds / name)["devices"] == 2
        assert results(worlds / name)["steps"] == 2 * STEPS
        assert logged(worlds / name, "train/loss") == pytest.approx(alone, rel=1e-4), name


@pytest.mark.long
def test_any_number_of_ranks_counts_the_same_right_answers(worlds: Path) -> None:
    trained = results(worlds / "fsdp4")
    for name in ("one-evaluates-fsdp4", "two-evaluate-fsdp4"):
        assert [results(worlds / name)[f"test/{k}"] for k in ("correct", "count")] == [trained["test/correct"], 360]


# --------------------------------------------------------------------------------------------------------- compile


@pytest.fixture
def _deterministic_no_longer() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic_no_longer")
# torch's compiler asks for it, and hides its own warning, which an error is not
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_run_leaves_the_checkpoints_of_one_that_is_not(
    twins: list[Path],
    small: list[str],
    configure: Configure,
    train_function: Callable[..., Node],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        """Traced but run as it is: the code that torch's default makes of a graph takes a CPU half a minute."""
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=backend))
    run = tmp_path / "run"
    settings = [*small, "trainer.max_steps=2", "schedule.warmup_steps=0", "logger=csv"]
    config = configure(*settings, "compile=true")
    write_config(run, config)
    train_function(**config)
    assert len(graphs) >= 2, "one to train, one to test"
    for name in ("best", "last"):
        assert list(checkpoint(run, name)["state_dict"]) == list(checkpoint(twins[0], name)["state_dict"])


@pytest.mark.long
def test_a_run_begins_from_anothers_weights_and_is_resumed_without_them(
    twins: list[Path], program: Program, tmp_path: Path
) -> None:
    shutil.copytree(twins[0], source := tmp_path / "source")
    quick = ["schedule.warmup_steps=0", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "logger=csv"]
    quick += ["optimizer.lr=1e-6", "data.val_fraction=0.1005", "trainer.max_steps=2"]
    line = ["model=auto", "model.weights=source", "image_size=16", "model.patch_size=4", *quick]
    output = program("train", *line, "hydra.run.dir=run", cwd=tmp_path)
    assert re.search(r"weights from source: best\.ckpt, timm's names.*float32", output)
    assert "patch_embed.proj.weight: 2x2 -> 4x4 pixels" in output
    assert "preprocessing of images: data.{mean=[0.30" in output
    assert "as in its run" in output
    assert config(tmp_path / "run")["model"]["depth"] == 1
    assert results(tmp_path / "run")["test/acc"] > results(source)["test/acc"] - 0.15, "it need not learn again"
    assert "config" in checkpoint(tmp_path / "run", "last")["vitlab"]
    shutil.rmtree(source)
    output = program("train", "resume=run", "trainer.max_steps=4", cwd=tmp_path)
    assert "weights from" not in output
    assert results(tmp_path / "run")["steps"] == 4
