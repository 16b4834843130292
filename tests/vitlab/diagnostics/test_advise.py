"""Changes that apply are tried in rounds with the configuration, and less than the noise is no gain."""

import shlex
from functools import partial
from pathlib import Path

import hydra
import pytest
import torch
from PIL import Image
from torch import Tensor

from doctor_fixtures import FEW_WORKERS, SlowData, folder_data, profiled_run
from vitlab.cli import register
from vitlab.data.augment import Augment
from vitlab.data.datamodule import MOST_WORKERS
from vitlab.data.sets.image_folder import image_folder
from vitlab.diagnostics import advise
from vitlab.diagnostics.advise import Trial
from vitlab.diagnostics.measure import Overrides
from vitlab.distributed import environment
from vitlab.jobs import compose
from vitlab.models.vit import VisionTransformer


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((1.5, 1.6, 1.4), "faster"),
        ((0.8, 0.8, 0.8), "slower"),
        ((1.02, 1.02, 1.02), "within noise"),
        ((1.1, 1.6, 0.7), "within noise"),
        ((0.9, 0.9, 1.06), "within noise"),
    ],
)
def test_less_than_the_spread_is_no_gain(gains: tuple[float, ...], verdict: str) -> None:
    assert Trial(overrides={"data.num_workers": 1}, gains=gains).verdict == verdict


def test_changes_that_apply_are_candidates_in_the_order_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    run = profiled_run()
    every = ["batch_size", "num_workers", "precision", "compile", "log_every_n_steps", "auto_augment", "smaller"]
    assert advise.candidates(run, every, [0, 2], None) == [
        {"batch_size": 64},
        {"data.num_workers": 2},
        {"trainer.precision": "bf16-mixed"},
        {"compile": True},
        {"trainer.log_every_n_steps": 50},
    ]
    run.datamodule.augment = Augment(auto_augment="randaugment")
    run.datamodule.batch_size = 1000
    run.trainer |= {"precision": "bf16-mixed", "log_every_n_steps": 50}
    others = advise.candidates(run, [kind for kind in every if kind != "num_workers"], None, "photos-18")
    assert others == [
        {"compile": True},
        {"data.augment.auto_augment": "none"},
        {"data": "shards", "data_dir": "photos-18"},
    ]
    monkeypatch.setattr(environment, "cores", lambda: 128)
    counts = [list(change.values()) for change in advise.candidates(run, ["num_workers"], None, None)]
    assert counts == [[1], [2], [4], [8], [16]]
    assert MOST_WORKERS == 16


def test_what_gains_is_combined_unless_it_changes_the_scores() -> None:
    def trial(gain: float, **change: object) -> Trial:
        return Trial(overrides=change, gains=(gain,) * 3)

    one, two, low = trial(1.2, num_workers=1), trial(1.5, num_workers=2), trial(1.4, precision="bf16-mixed")
    large, slow = trial(1.9, batch_size=64), trial(0.5, log_every_n_steps=50)
    assert advise.combination([two, one, low, large, slow]) == {"num_workers": 2, "precision": "bf16-mixed"}
    assert advise.combination([one, two, large, trial(1.9, **{"data.augment.auto_augment": "none"})]) == {}


@FEW_WORKERS
def test_a_batch_that_does_not_fit_ends_its_own_trial_only() -> None:
    class Small(VisionTransformer):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 34:
                raise torch.OutOfMemoryError("no room")
            return super().forward(images)

    run = profiled_run()
    run.module.network.__class__ = Small
    changes: list[Overrides] = [{"batch_size": 64}, {"trainer.precision": "bf16-mixed"}]
    (failed, other), rates = advise.try_changes(run, changes, rounds=2, steps=1, warmup=1)
    assert (failed.verdict, failed.gains) == ("out of memory", ())
    assert len(other.gains) == len(rates) == 2


@FEW_WORKERS
def test_workers_gain_on_data_that_load_slowly() -> None:
    run = profiled_run(SlowData)
    timing = run.train({}, steps=4, warmup=1, stages=True)
    assert max(timing.parts, key=lambda name: timing.parts[name]) == "data_wait"
    (trial,), _ = advise.try_changes(run, [{"data.num_workers": 2}], rounds=1, steps=8, warmup=1)
    assert trial.gain > 1.1


@FEW_WORKERS
def test_files_are_written_at_the_size_that_is_trained_on(tmp_path: Path) -> None:
    assert advise.small_files(profiled_run().datamodule, tmp_path) is None, "digits are in memory"
    data = folder_data(tmp_path / "large", 60)
    split = advise.small_files(data, tmp_path)
    assert split is not None
    assert split.labels.tolist() == data.split("train").labels.tolist()
    for file in split.files or []:
        with Image.open(file) as image:
            assert min(image.size) == round(16 * 256 / 224)
    run = profiled_run()
    run.datamodule, run.smaller = data, split
    assert next(iter(run.data({"data": "shards", "data_dir": "large-18"}).train_dataloader())).images.shape == (
        4,
        3,
        16,
        16,
    )
    assert (
        run.data({"data": "shards", "data_dir": "large-18"}).split("train").files
        == split.files
        != run.data({}).split("train").files
    )
    assert advise.small_files(folder_data(tmp_path / "small", 16), tmp_path) is None, "they are small already"


@FEW_WORKERS
def test_few_of_many_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder_data(tmp_path / "large", 60)
    monkeypatch.setattr(advise, "SAMPLE", 7)
    split = advise.small_files(data, tmp_path)
    assert split is not None
    assert len(list(tmp_path.glob("*.jpg"))) == 7
    assert len(split) == len(data.split("train")) == 21


def test_the_command_that_makes_files_smaller_can_be_pasted(tmp_path: Path) -> None:
    data, root = folder_data(tmp_path / "photos", 40), tmp_path / "photos"
    line, target = advise.prepare_command(data)
    assert target == f"{root}-18"
    assert line == f"python src/prepare.py data=image_folder data_dir={root} size=18 out={root}-18"
    place = str(Path.cwd() / "my photos")
    data.load_source = partial(image_folder, data_dir=place, classes=["a", "b"], test_fraction=0.3)
    data.on_error = "skip"
    line, target = advise.prepare_command(data)
    assert advise.command_line({"data_dir": target}) == shlex.quote("data_dir='my photos-18'")
    register.register()
    with hydra.initialize_config_dir(str(compose.CONF), version_base="1.3"):
        config = compose.resolve_config(compose.compose("prepare", shlex.split(line)[2:]), compose.UNSET_RUN_DIR)
    assert not isinstance(config, str)
    assert [config[key] for key in ("data_dir", "out", "size")] == [place, "my photos-18", 18]
    source = config["data"]["source"]
    assert (source["classes"], source["test_fraction"], config["data"]["on_error"]) == (["a", "b"], 0.3, "skip")
