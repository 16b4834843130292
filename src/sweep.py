"""Show, cancel or report a sweep that `python src/train.py -m ...` started, from any terminal.

    python src/sweep.py status sweep=digits-lr-seed-3fa29c1b     its jobs, their states and scores
    python src/sweep.py report sweep=digits-lr-seed-3fa29c1b     SWEEP/report/: a page and two tables
    python src/sweep.py cancel sweep=digits-lr-seed-3fa29c1b     its jobs save and end, and no others start
    python src/sweep.py dashboard sweep=digits-lr-seed-3fa29c1b  at wandb: scores by setting, curves, pictures
    python src/sweep.py dashboard run=runs/NAME/STAMP            at wandb: losses, accuracies, rates, throughput

`sweep` is a name below runs/sweeps, or a folder. A dashboard is saved as a view of the wandb project if you are logged
in; `dashboard.json` in the sweep's or run's folder is the same view as a file.
"""

from collections import Counter
from pathlib import Path
from typing import Literal

from vitlab.cli.command import command
from vitlab.config.schema import Node
from vitlab.sweeps import checks
from vitlab.sweeps.ledger import Job, Sweep
from vitlab.sweeps.progress import shorten
from vitlab.sweeps.report import table


@command("sweep", check=checks.sweep_action_problems)
def main(*, action: Literal["status", "report", "cancel", "dashboard"], sweep: str | None, run: str | None) -> Node:
    """Act on a sweep or a run.

    Args:
        action: What to do; the word alone will do, without `action=`.
        sweep: Name of a sweep below runs/sweeps, or its folder.
        run: Folder of one run, for `dashboard` instead of a sweep.
    """
    from vitlab.sweeps import ledger
    from vitlab.sweeps.report.page import write_report

    if action == "dashboard":
        save_dashboard(None if sweep is None else ledger.read_sweep(Path(sweep)), run)
        return {}
    assert sweep is not None
    state = ledger.read_sweep(Path(sweep))
    if action == "status":
        print(format_table(state))
    elif action == "report":
        print(write_report(state, state.folder / "report"))
    else:
        running = ledger.cancel_sweep(state)
        print(f"{state.name} is cancelled: {running} running job{'s' * (running != 1)} will save and end, none starts;")
        print(f"to continue it, run: {state.command}")
    return {}


def save_dashboard(sweep: Sweep | None, run: str | None) -> None:
    """Write the dashboard of a sweep or of a run to a file, and save it at wandb."""
    from vitlab.runs import wandb
    from vitlab.sweeps.report import wandb_dashboard

    folder = sweep.folder if sweep else Path(run or "").absolute()
    project = wandb_dashboard.wandb_project(folder)
    of_run = wandb_dashboard.run_dashboard
    dashboard = wandb_dashboard.sweep_dashboard(sweep, project) if sweep else of_run(folder, project)
    wandb_dashboard.write_specification(dashboard, folder / wandb_dashboard.FILE)
    if wandb.is_logged_in():
        print(f"saved: {wandb_dashboard.save_dashboard(dashboard)}")
    else:
        print("You are not logged in, so nothing was saved at wandb; `wandb login`, then run this again.")
    print(f"specification: {folder / wandb_dashboard.FILE}")


def format_table(sweep: Sweep) -> str:
    """Format the sweep's jobs as a table, below the count of each state and above the best score of each objective."""
    counts = Counter(job.status for job in sweep.jobs)
    count = f"{len(sweep.jobs)} job{'s' * (len(sweep.jobs) != 1)}"
    parts = [count, *(f"{number} {status}" for status, number in counts.items())]
    if (unplanned := sweep.total - len(sweep.jobs)) > 0:
        parts.append(f"{unplanned} more not planned yet")
    lines = [f"{sweep.name}: {', '.join(parts)}"]
    keys = list(dict.fromkeys(key for job in sweep.jobs for key in job.choices))
    rows = [["status", *keys, *sweep.objectives, "starts", "seconds", "error"]]
    rows += [table_row(job, keys, list(sweep.objectives)) for job in sweep.jobs]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for objective in sweep.objectives:
        if (best := table.best_job(sweep, objective=objective)) is not None:
            lines.append(f"best {objective}={best.results[objective]:.6g}: {best.folder}")
    return "\n".join(lines)


def table_row(job: Job, keys: list[str], objectives: list[str]) -> list[str]:
    numbers = table.finite_numbers(job)
    scores = [f"{numbers[name]:.6g}" if name in numbers else "" for name in objectives]
    error = str(job.results.get("error", "")) if job.status in ("crashed", "unreadable") else ""
    error = shorten("ended by trainer.max_time" if job.status == "stopped" else error)
    seconds = f"{numbers['seconds']:.0f}" if "seconds" in numbers else ""
    return [job.status, *(job.choices.get(key, "") for key in keys), *scores, str(job.attempts), seconds, error]


if __name__ == "__main__":
    main()
