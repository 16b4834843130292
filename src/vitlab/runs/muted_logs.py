"""Mute loggers and warnings of libraries."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def muted_logs(*loggers: str, level: int = logging.ERROR) -> Iterator[None]:
    """Mute these loggers below `level` within the block; if that is above WARNING, Python's warnings too."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(level)
    try:
        with warnings.catch_warnings():
            if level > logging.WARNING:
                warnings.simplefilter("ignore")
            yield
    finally:
        for name, former in levels.items():
            logging.getLogger(name).setLevel(former)
