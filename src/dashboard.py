"""A wandb dashboard of a sweep or of a run, as code.

    python src/dashboard.py sweep=digits-lr-seed-3fa29c1b    settings, scores by setting, curves with bands, pictures
    python src/dashboard.py run=runs/NAME/STAMP              losses, accuracies, rates, gradient norm, throughput

Where you are logged in, it is saved as a view of the project, and its address is told. Where you aren't, it is only
written to a file, `dashboard.json` beside the runs, which says what the view would be.
"""

from pathlib import Path

from vitlab.command import command
from vitlab.schema import Node

FILE = "dashboard.json"


@command("dashboard")
def main(*, sweep: str | None, run: str | None) -> Node:
    from vitlab import ledger, panels, runs, tracking

    if sweep is not None:
        found = ledger.read_sweep(ledger.find_sweep(sweep))
        folder = found.folder
        place = panels.tracked_in([job.config for job in found.jobs if job.config])
        dashboard = panels.sweep_dashboard(found, place)
    else:
        assert run is not None  # or it would have been refused
        folder = Path(run).absolute()
        config = runs.read_config(folder)
        place = panels.tracked_in([config])
        dashboard = panels.run_dashboard(folder, config, place)
    panels.write_specification(dashboard, folder / FILE)
    if tracking.logged_in():
        print(f"saved: {panels.save(dashboard)}")
    else:
        print("You are not logged in, so nothing was saved at wandb; `wandb login`, then run this again.")
    print(f"specification: {folder / FILE}")
    return {}


if __name__ == "__main__":
    main()
