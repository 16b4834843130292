"""What a process imports before it trains: in the order that costs least, and with Python's collector at rest."""

import gc
import json
import os
import subprocess
import sys
import time

import pytest

from vitlab.cli import imports
from vitlab.jobs import compose

# In a process of its own: what `python src/train.py` imports until its configuration is known to be right.
PROGRAM = """
import gc, json, sys
import train
from vitlab.cli import command
sys.argv = ["train.py", "hydra.run.dir=never"]
command.hydra.main = lambda **_: lambda _: lambda: None  # where the run would begin
during = {}
class Seen:
    def find_spec(self, name, path, target=None):
        during.setdefault(name, gc.isenabled())
sys.meta_path.insert(0, Seen())
train.main()
print(json.dumps([during, [*sys.modules], gc.isenabled(), gc.get_freeze_count()]))
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    environment = {**os.environ, "PYTHONPATH": str(compose.CONF.parent / "src")}
    folder = tmp_path_factory.mktemp("here")
    line = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    told: list[object] = json.loads(ended.stdout)
    return [*told, ended.stderr]


def test_wandb_is_imported_before_torch_and_what_trains_after_it(started: list[object]) -> None:
    modules = started[1]
    assert isinstance(modules, list)
    places = [
        modules.index(name) for name in ("wandb", "wandb.sdk.launch.inputs.internal", "torch", "vitlab.training.build")
    ]
    assert places == sorted(places)


def test_the_default_run_imports_no_library_that_it_does_not_use(started: list[object]) -> None:
    modules = started[1]
    assert isinstance(modules, list)
    assert {"torch", "lightning", "vitlab.cli.checks"} <= set(modules)
    unused = {"timm", "datasets", "webdataset", "optuna", "onnx", "onnxscript", "onnxruntime"}
    unused |= {"tensorboard", "torch._inductor.compile_fx", "sklearn", "wandb_workspaces", "submitit", "joblib"}
    assert unused & set(modules) == set()


def test_the_collector_rests_meanwhile_and_never_looks_at_the_modules(started: list[object]) -> None:
    during, _, enabled, frozen, _ = started
    assert isinstance(during, dict)
    assert {"wandb", "torch", "vitlab.training.build"} <= set(during)
    assert not any(during.values())
    assert enabled is True
    assert isinstance(frozen, int)
    assert frozen > 100_000


def test_a_line_comes_before_the_imports_and_one_before_a_slow_check(
    started: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "train: importing torch and Lightning\n" in str(started[-1])
    for seconds, line in ((60.0, ""), (0.0, "slow\n")):
        with imports.print_if_slow("slow", seconds):
            time.sleep(0.2)
        assert capsys.readouterr().err == line


def test_the_collector_goes_on_after_an_error() -> None:
    with pytest.raises(KeyError), imports.pause_gc():
        raise KeyError(gc.isenabled())
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with imports.pause_gc():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("rank", ["1", None])
def test_lightning_and_torchmetrics_get_the_rank_of_a_fork(rank: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.utilities import rank_zero_only
    from torchmetrics.utilities import prints

    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    called = []
    first_rank_alone = rank_zero_only(lambda: called.append("lightning"))
    try:
        imports.set_rank()
        first_rank_alone()
        prints.rank_zero_only(lambda: called.append("torchmetrics"))()
    finally:
        monkeypatch.delenv("RANK", raising=False)
        imports.set_rank()
    assert called == ([] if rank else ["lightning", "torchmetrics"])
