"""Saved names are read by their names today, and an old name on the command line gets the new one."""

from collections.abc import Callable

import pytest

from vitlab.config.definitions import find
from vitlab.config.renamed import REMOVED, SETTINGS, TARGETS, current_config, current_override, current_target


@pytest.mark.parametrize(
    "target", [target for target in TARGETS.values() if target[target.rindex(".") + 1 :] != "fake"]
)
def test_each_new_target_exists(target: str) -> None:
    __import__(target) if target.rpartition(".")[2][0].islower() and find(target) is None else find(target)


def test_targets_and_settings_are_renamed_at_any_depth_and_removed_ones_left_out() -> None:
    saved = {
        "restarts": 1,
        "on_out_of_memory": "stop",
        "model": {"_target_": "vitlab.vit.VisionTransformer", "registers": 4},
        "callbacks": {"nonfinite": {"_target_": "vitlab.nonfinite.NonFinite", "limit": 3}},
    }
    assert current_config(saved) == {
        "max_restarts": 1,
        "model": {"_target_": "vitlab.models.vit.VisionTransformer", "num_registers": 4},
        "callbacks": {"nonfinite": {"_target_": "vitlab.training.nonfinite.NonFinite", "max_skipped_steps": 3}},
    }
    assert current_target("vitlab.optim.warmup_cosine") == "vitlab.training.schedules.warmup_cosine"
    assert current_target("torch.optim.AdamW") == "torch.optim.AdamW"


@pytest.mark.parametrize(
    ("saved", "current"),
    [
        ("model.registers=4", "model.num_registers=4"),
        ("++model.position=none", "++model.pos_embed=none"),
        ("on_out_of_memory=accumulate", None),
        ("data.source._target_=vitlab.data.sources.cifar10", "data.source._target_=vitlab.data.sets.cifar.cifar10"),
        ("model=vit_b16", "model=vit_b16"),
    ],
)
def test_overrides_are_renamed(saved: str, current: str | None) -> None:
    assert current_override(saved) == current


@pytest.mark.parametrize("old", [*SETTINGS, *REMOVED])
def test_an_old_name_on_the_command_line_gets_the_new_one(old: str, found: Callable[..., list[str]]) -> None:
    (line,) = found(*(["callbacks=ema"] if ".ema." in old else []), f"++{old}=1")
    assert (f"the setting was renamed to {SETTINGS[old]}" if old in SETTINGS else "the setting was removed") in line
