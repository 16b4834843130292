"""Check the settings of `sweep.py`."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from vitlab.config.view import ConfigView
from vitlab.runs.folder import read_config
from vitlab.sweeps import ledger


def sweep_action_problems(read: ConfigView) -> Iterator[str]:
    action, sweep, run = read("action", str), read("sweep", str), read("run", str)
    if action is None or {"sweep", "run"} & read.bad:
        return

    takes = f"{action} takes sweep=NAME" + " or run=FOLDER" * (action == "dashboard")
    if action != "dashboard" and (sweep is None or run is not None):
        yield f"{'sweep is not set' if run is None else f'run={run} is for dashboard'}; {takes}"
    elif (sweep is None) == (run is None):
        yield f"{'neither sweep nor run is' if sweep is None else 'sweep and run are both'} set; {takes}"
    elif action == "dashboard" and importlib.util.find_spec("wandb_workspaces") is None:
        yield "wandb-workspaces, which makes dashboards, is not installed: pip install -e '.[dashboard]'"
    else:
        try:
            folder = ledger.find_sweep(sweep) if sweep else Path(run or "")
            if run:
                read_config(folder)
            if action == "dashboard":
                from vitlab.sweeps.report import wandb_dashboard

                wandb_dashboard.wandb_project(folder)
        except (ledger.NoSweep, FileNotFoundError) as error:
            yield str(error)
        except ValueError as error:
            yield f"{f'run={run}' if run else f'sweep={sweep}'}: {error}"
