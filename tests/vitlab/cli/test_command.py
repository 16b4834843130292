"""A program as a user calls it: questions are answered at once, and what is wrong starts nothing."""

import os
import resource
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import train
from vitlab.cli.checks import sweep_problems
from vitlab.jobs.compose import CONF

SOURCE = CONF.parent / "src"


def test_a_program_is_its_function_its_name_and_the_rule_for_its_settings() -> None:
    assert (train.main.name, train.main.check) == ("train", sweep_problems)
    assert train.main.entry == Path(train.__file__).resolve()
    assert train.main.function.__name__ == "main"


def run(folder: Path, *argv: str) -> "subprocess.CompletedProcess[str]":
    """`python src/train.py ...` in another folder, with a list of what it imports on stderr."""
    arguments = [sys.executable, "-X", "importtime", str(SOURCE / "train.py"), *argv]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def imported(errors: str) -> set[str]:
    return {line.rpartition("|")[2].strip() for line in errors.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["--help"],
            ["model: auto, timm, vit, vit_b16", "model/size: base, huge", "batch_size: an int", "python src/train.py"],
        ),
        (["--help", "model", "trainer", "optimizer"], ["vit_mini (default)", "trainer.max_epochs: an int"]),
        (["--cfg", "job", "--resolve", "model=vit_b16"], ["dim: 768", "name: digits-vit_b16-224px", "qkv_bias: true"]),
        (["--info", "searchpath"], ["file://"]),
    ],
)
def test_questions_are_answered_without_importing_anything_heavy(
    tmp_path: Path, argv: list[str], words: list[str]
) -> None:
    ended = run(tmp_path, *argv)
    assert ended.returncode == 0
    for word in words:
        assert word in ended.stdout
    loaded = imported(ended.stderr)
    assert "vitlab.cli.command" in loaded
    heavy = {"torch", "torchvision", "lightning", "torchmetrics", "timm", "transformers", "wandb", "sklearn", "scipy"}
    assert not loaded & {*heavy, "matplotlib", "numpy", "PIL", "optuna"}
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_command_line_ends_with_status_2_and_starts_nothing(tmp_path: Path) -> None:
    ended = run(tmp_path, "+model.dmi=3", "seed=abc")
    assert ended.returncode == 2
    told = [line for line in ended.stderr.splitlines() if not line.startswith(("import time:", "train: checking"))]
    assert told == [
        "train: 2 problems in the configuration; nothing was started.",
        "  - seed=abc is not an int",
        "  - model.dmi=3: there is no such setting; did you mean 'dim'?",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shown", [["--cfg", "job"], ["--info"]])
def test_the_configuration_of_several_jobs_at_once_is_refused(shown: list[str], tmp_path: Path) -> None:
    ended = run(tmp_path, "-m", "seed=0,1", *shown)
    assert ended.returncode == 2
    assert f"  - {shown[0]} is for one run, and -m starts several; leave out -m" in ended.stderr


def cpu_seconds(line: list[str], folder: Path) -> float:
    """Of all processes that a command has."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(line, cwd=folder, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.long
def test_a_mistake_and_help_take_little_longer_than_importing_hydra(tmp_path: Path) -> None:
    """In CPU time, in turns, since other programs slow all down alike; on a quiet machine the limits are 4, 4, 3, 4."""
    program = [sys.executable, str(SOURCE / "train.py")]
    lines = {
        "hydra": [sys.executable, "-c", "import hydra"],
        "a mistake": [*program, "optimizr.lr=1"],
        "a value out of bounds": [*program, "data.val_fraction=2", "schedule.warmup_steps=99999"],
        "--help": [*program, "--help"],
        "--help model": [*program, "--help", "model"],
    }
    rounds = [{name: cpu_seconds(line, tmp_path) for name, line in lines.items()} for _ in range(8)]
    median = {name: statistics.median(times[name] for times in rounds[1:]) for name in lines}  # the first warms caches
    ratios = {name: time / median["hydra"] for name, time in median.items()}
    print(", ".join(f"{name}: {median[name]:.2f} s, {ratio:.2f} times" for name, ratio in ratios.items()))
    assert ratios["a mistake"] < 6
    assert ratios["a value out of bounds"] < 6
    assert ratios["--help"] < 4
    assert ratios["--help model"] < 5


@pytest.mark.parametrize("moment", ["| hydra.version", "| vitlab.cli.preflight", "importing torch and Lightning"])
def test_ctrl_c_while_it_starts_ends_it_without_a_traceback(moment: str, tmp_path: Path) -> None:
    line = [sys.executable, "-X", "importtime", str(SOURCE / "train.py"), "trainer.max_epochs=1"]
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a script it is ignored
    with subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, former)
        assert process.stderr is not None
        assert any(moment in " ".join(text.split()) for text in process.stderr)
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == -signal.SIGINT
