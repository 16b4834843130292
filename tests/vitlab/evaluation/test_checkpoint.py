"""A run's weights are those of its checkpoint, named if it is missing, damaged or not to be trusted."""

import sys

import pytest
import torch

from conftest import Exportable
from vitlab.config import allowlist
from vitlab.evaluation.checkpoint import load_weights


def test_a_checkpoint_without_averages_has_no_parts(exportable: Exportable) -> None:
    run = exportable().weights.run
    assert load_weights(run, "best", None).chosen is None
    with pytest.raises(ValueError, match=r"part=ema: .*best.ckpt has only one set of weights"):
        load_weights(run, "best", "ema")


def test_a_missing_and_a_damaged_checkpoint_are_named(exportable: Exportable) -> None:
    file = exportable().weights.file
    with pytest.raises(FileNotFoundError, match=r"checkpoint=last: .* has no last.ckpt"):
        load_weights(file.parents[1], "last", None)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(OSError, match="is damaged"):
        load_weights(file.parents[1], "best", None)


def test_a_checkpoint_names_nothing_that_may_not_be_called(exportable: Exportable) -> None:
    weights = exportable().weights
    content = torch.load(weights.file, weights_only=True)
    content["vitlab"]["config"]["model"] = {"_target_": "antigravity.webbrowser.open"}
    torch.save(content, weights.file)
    with pytest.raises(allowlist.NotTrusted, match=r"model._target_=antigravity.webbrowser.open is refused"):
        load_weights(weights.run, "best", None)
    assert "antigravity" not in sys.modules


def test_a_checkpoint_that_does_not_describe_its_data_is_refused(exportable: Exportable) -> None:
    file = exportable().weights.file
    content = torch.load(file, weights_only=True)
    del content["vitlab"]["preprocessing"]
    torch.save(content, file)
    with pytest.raises(ValueError, match="has no configuration, classes and preprocessing of vitlab"):
        load_weights(file.parents[1], "best", None)
