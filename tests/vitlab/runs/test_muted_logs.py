"""What other libraries tell their authors isn't told, and is again afterwards."""

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
    with pytest.warns(UserWarning, match="told"):
        warnings.warn("told", stacklevel=1)


def test_an_error_comes_through_and_levels_are_set_back() -> None:
    with pytest.raises(ValueError, match="broken"), muted_logs("another.library"):
        raise ValueError("broken")
    assert logging.getLogger("another.library").level == logging.NOTSET
