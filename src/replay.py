"""Replay a captured step, and find the first value that isn't finite.

    python src/replay.py capture=runs/NAME/STAMP/captures/step-000012

Neither the data set nor the run folder is needed. `CAPTURE/replay/rankN/results.json` has the range of each module's
output. The exit status is 1 if all values are finite.
"""

from pathlib import Path
from typing import Literal

from vitlab.cli.command import command
from vitlab.config.bounds import NonNegativeInt
from vitlab.config.schema import Node
from vitlab.diagnostics import checks


@command("replay", check=checks.replay_problems)
def main(
    *, capture: str, rank: NonNegativeInt, accelerator: Literal["auto", "cpu", "gpu", "mps"], run_dir: str
) -> Node:
    """Repeat a step.

    Args:
        capture: Folder of the capture, written when a loss or gradient wasn't finite.
        rank: Rank whose part of the step is repeated.
        accelerator: Device to compute on. That of the training repeats its numbers; others come close.
        run_dir: Folder of the results. Set by the program.
    """
    from vitlab.diagnostics import replay

    result = replay.replay_capture(Path(capture), rank=rank, accelerator=accelerator)
    result.log_report()
    return result.results()


if __name__ == "__main__":
    main()
