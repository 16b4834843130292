"""Compare runs: settings, curves, scores with intervals, paired tests, classes, and images on which they disagree.

    python src/compare.py run=[runs/A/STAMP,runs/B/STAMP]
    python src/compare.py folder=runs/sweeps/NAME newest=4

The page and its tables as CSV are written to `runs/compare/STAMP`.
"""

from pathlib import Path

from sweep import format_table
from vitlab.cli.command import command
from vitlab.config.bounds import PositiveInt
from vitlab.config.schema import Node
from vitlab.sweeps import checks


@command("compare", check=checks.comparison_problems)
def main(
    *, run: tuple[str, ...] | None, folder: str | None, newest: PositiveInt, evaluation: str, run_dir: str
) -> Node:
    """Compare runs.

    Args:
        run: Folders of the runs, as in `run=[A,B]`; the others are tested against the first.
        folder: A folder with runs, instead.
        newest: How many of the folder's runs, the newest ones.
        evaluation: Which evaluation of each run, a folder below RUN/evaluation.
        run_dir: Folder of the page and the tables. Set by the program; choose another with `hydra.run.dir`.
    """
    from vitlab.sweeps.report.comparison import write_comparison

    runs = checks.runs_to_compare(run, folder, newest)
    print(format_table(write_comparison(runs, evaluation, out := Path(run_dir))), out / "index.html", sep="\n")
    return {"runs": [str(path) for path in runs]}


if __name__ == "__main__":
    main()
