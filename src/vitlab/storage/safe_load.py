"""Load pickled files without running code."""

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitlab.config.allowlist import NotTrusted


@contextmanager
def explain_unsafe_pickle(
    file: Path | str | None, remedy: str = "use a checkpoint that vitlab saved"
) -> Iterator[None]:
    """Around what loads a checkpoint with `weights_only=True`: its refusal in one line, and what to do instead.

    torch's own names the switch that would run the file's code.
    """
    try:
        yield
    except (pickle.UnpicklingError, RuntimeError) as error:
        if "weights_only" not in str(error):
            raise
        name = re.search(r"(?:GLOBAL|global) (\S+)", str(error))
        what = f" ({name[1]})" if name else ""
        raise NotTrusted(
            f"{file} is refused: it holds more than weights and plain data{what}, and loading that could run code; "
            f"{remedy}"
        ) from error
