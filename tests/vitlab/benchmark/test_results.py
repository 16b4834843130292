"""Each contender is a row with all its rounds in the CSV; the tables have ratios and goals; each part has a picture."""

import csv
from pathlib import Path

from vitlab.benchmark import results
from vitlab.benchmark.case import Case, with_exponents
from vitlab.diagnostics.timing import Measurement

OURS = Measurement(name="vitlab", seconds=(0.5, 0.25), figures={"peak MB": 3})
TIMM = Measurement(name="timm", seconds=(0.75, 0.75))
LIMIT = Measurement(name="limit", seconds=(0.5,), items=2000.0, peer=False)
NETWORKS = [Case(part="networks", name="small", measured=[OURS, TIMM, LIMIT])]
START = [Case(part="start", name="first step", unit=None, measured=[OURS])]
WIDTHS = {n: [Measurement(name="timm", seconds=(float(n),))] for n in (1, 2)}
SCALING = [
    Case(part="scaling", name=f"width {n}", unit=None, axis="width", size=n, measured=m) for n, m in WIDTHS.items()
]
SCALING = with_exponents(SCALING, [1.5])


def test_the_files_have_all_that_was_measured_and_are_written_again(tmp_path: Path) -> None:
    for cases in (NETWORKS, NETWORKS + START, NETWORKS + START + SCALING):
        results.write(cases, tmp_path, title="a machine")
    with (tmp_path / "benchmark.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["contender"] for row in rows] == ["vitlab", "timm", "limit", "vitlab", "timm", "timm"]
    assert {row["machine"] for row in rows} == {"a machine"}
    assert [row["seconds of each round"] for row in rows[:2]] == ["0.5 0.25", "0.75 0.75"]
    assert [row["vitlab is"] for row in rows[:2]] == ["1.0", "2.0"]
    tables = (tmp_path / "benchmark.md").read_text()
    assert tables.startswith("# a machine\n")
    assert "| case | contender | images a second | seconds | spread % | rounds | vitlab is | peak MB |" in tables
    assert "| small | vitlab | 2.667 | 0.375 | 33.33 | 2 | 1 | 3 |" in tables
    assert "| small | limit | 4,000 | 0.00025 | 0 | 1 | 0.0006667 |  |" in tables, "seconds of as many items"
    assert "| case | contender | seconds | spread % | rounds | vitlab is | peak MB |" in tables
    assert "| width 2 | timm | 2 | 0 | 1 | 1 | 1.5 |" in tables
    assert "- networks, small: seconds 0.50 x timm (goal: at most 1)\n" in tables
    for part in ("networks", "start", "scaling"):
        assert (tmp_path / f"{part}.png").read_bytes().startswith(b"\x89PNG")
