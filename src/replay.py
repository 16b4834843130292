"""Repeat a captured step, and report where its first number that isn't finite comes from.

    python src/replay.py capture=runs/NAME/STAMP/captures/step-000012

No data set is needed, and the run's folder may be gone. `CAPTURE/replay/rankN/` gets `results.json` and a picture of
every module's largest output. Where everything is finite this time, the status is 1.
"""

from pathlib import Path
from typing import Literal

from vitlab.cli.command import command
from vitlab.config.schema import Node
from vitlab.diagnostics import checks


@command("replay", check=checks.replay_problems)
def main(
    *,
    capture: str,
    rank: int,
    accelerator: Literal["auto", "cpu", "gpu", "mps"],
    run_dir: str,
) -> Node:
    """Repeat a step.

    Args:
        capture: Folder of the capture, written when a loss or gradient wasn't finite.
        rank: Rank whose part of the step is repeated.
        accelerator: Device to compute on. That of the training repeats its numbers; others come close.
        run_dir: Folder of the results. Set by the program.
    """
    from vitlab.diagnostics import replay
    from vitlab.runs import plots

    found = replay.replay_capture(Path(capture), rank=rank, accelerator=accelerator)
    picture = Path(run_dir) / "outputs.png"
    names, largest, first = found.magnitudes()
    plots.plot_magnitudes(names, largest, picture, first=first, title=found.title)
    found.tell(picture)
    return found.results()


if __name__ == "__main__":
    main()
