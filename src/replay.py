"""Makes a captured step again, and says where its first number comes from that isn't finite.

    python src/replay.py capture=runs/NAME/STAMP/captures/step-000012

No data set is needed, and the run's folder may be gone. `CAPTURE/replay/rankN/` gets `results.json` and a picture of
every module's largest output. Where everything is finite this time, the status is 1.
"""

from pathlib import Path
from typing import Literal

from vitlab import program_checks
from vitlab.cli.command import command
from vitlab.config.schema import Node


@command("replay", check=program_checks.replay_problems)
def main(
    *,
    capture: str,
    rank: int,
    accelerator: Literal["auto", "cpu", "gpu", "mps"],
    run_dir: str,
) -> Node:
    from vitlab import figures, replaying

    found = replaying.replay(Path(capture), rank=rank, accelerator=accelerator)
    picture = Path(run_dir) / "outputs.png"
    names, largest, first = found.magnitudes()
    figures.magnitudes(names, largest, picture, first=first, title=found.title)
    found.tell(picture)
    return found.results()


if __name__ == "__main__":
    main()
