"""Muted loggers and warnings of libraries come back afterwards."""

import logging
import warnings

import pytest

from vitlab.runs.muted_logs import muted_logs


def test_warnings_and_messages_wait_outside(caplog: pytest.LogCaptureFixture) -> None:
    talker = logging.getLogger("a.library")
    talker.setLevel(logging.INFO)
    with muted_logs("a.library"):
        warnings.warn("would be an error in these tests", stacklevel=1)
        talker.info("loaded")
        talker.error("broken")
    assert [record.message for record in caplog.records] == ["broken"]
    assert talker.level == logging.INFO
    with pytest.warns(UserWarning, match="reported"):
        warnings.warn("reported", stacklevel=1)


def test_an_error_comes_through_and_levels_are_set_back() -> None:
    with pytest.raises(ValueError, match="broken"), muted_logs("another.library"):
        raise ValueError("broken")
    assert logging.getLogger("another.library").level == logging.NOTSET


def test_below_another_level_warnings_are_shown(caplog: pytest.LogCaptureFixture) -> None:
    with muted_logs("a.library", level=logging.WARNING):
        logging.getLogger("a.library").info("not shown")
        logging.getLogger("a.library").warning("shown")
        with pytest.warns(UserWarning, match="shown"):
            warnings.warn("shown", stacklevel=1)
    assert [record.message for record in caplog.records] == ["shown"]
