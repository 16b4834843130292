"""Silence loggers and warnings of libraries for a while."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def muted_logs(*loggers: str) -> Iterator[None]:
    """Without warnings, and without what these loggers say below an error."""
    talkers = [logging.getLogger(name) for name in loggers]
    levels = [talker.level for talker in talkers]
    for talker in talkers:
        talker.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for talker, level in zip(talkers, levels, strict=True):
            talker.setLevel(level)
