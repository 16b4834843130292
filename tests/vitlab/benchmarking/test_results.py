"""Every measurement is a line of the CSV; the table has ratios and goals; the picture is one."""

import csv
import io
from dataclasses import replace
from pathlib import Path

from benchmark_cases import measured
from vitlab.benchmarking import results
from vitlab.benchmarking.timing import Case, Goal

ROWS = [measured("vitlab", 0.5, 0.25, MB=3), measured("timm", 0.75, 0.75), measured("limit", 0.1, peer=False)]
CASES = [
    Case(part="networks", name="small", unit="images", measured=ROWS, goals=[Goal(least=1.0), Goal(least=3.0)]),
    Case(part="start", name="--help", unit="starts", measured=ROWS[:1]),
]

STARTS = [
    Case(
        part="start",
        name="train.py",
        unit="starts",
        lasting=True,
        measured=[measured("vitlab", 10.0), measured("imports", 8.0)],
        goals=[Goal(least=1 / 1.3)],
    )
]


def test_the_csv_has_each_round_with_the_contenders_figures() -> None:
    lines = list(csv.DictReader(io.StringIO(results.table_of_rounds(CASES, title="a machine"))))
    assert len(lines) == 2 + 2 + 1 + 2
    assert [(row["contender"], row["round"], row["seconds"], row["MB"]) for row in lines[:3]] == [
        ("vitlab", "0", "0.5", "3"),
        ("vitlab", "1", "0.25", "3"),
        ("timm", "0", "0.75", ""),
    ]
    assert [row["ratio"] for row in lines] == ["1.0", "1.0", "2.0", "2.0", str(0.1 / 0.375), "1.0", "1.0"]
    assert {row["machine"] for row in lines} == {"a machine"}


def test_the_table_tells_ratios_to_peers_and_which_goals_were_reached() -> None:
    table = results.markdown(CASES, title="a machine")
    assert table.startswith("# a machine\n")
    assert "| small | timm | 1.333 images | 0.75 | 0% | 2 | 2.00 x |  |" in table
    assert "| small | vitlab | 2.667 images | 0.375 | 33% | 2 |  | 3 |" in table
    assert "| small | limit | 10 images | 0.1 | 0% | 1 | 0.27 x |  |" in table
    assert "| small | vitlab at least 1 x timm | 2.00 x timm | reached |" in table
    assert "| small | vitlab at least 3 x timm | 2.00 x timm | **missed** |" in table


def test_of_a_start_seconds_are_told() -> None:
    table = results.markdown(STARTS, title="a machine")
    assert "| case | contender | seconds | spread | rounds | vitlab is |" in table
    assert "| train.py | imports | 8 | 0% | 1 | 0.80 x |" in table
    assert (
        "| train.py | vitlab takes at most 1.3 x as long as imports | takes 1.25 x as long as imports | reached"
        in table
    )


def test_the_limits_seconds_are_of_as_many_items_as_the_others() -> None:
    limit = replace(measured("limit", 0.5, peer=False), items=20.0)
    ours = replace(measured("vitlab", 1.0), items=10.0)
    table = results.markdown([Case(part="networks", name="a", unit="images", measured=[ours, limit])], title="")
    assert "| a | limit | 40 images | 0.25 | 0% | 1 |" in table


def test_the_three_files_are_written_and_written_again(tmp_path: Path) -> None:
    for cases in (CASES[:1], [*CASES, *STARTS]):
        results.write(cases, tmp_path, title="a machine")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["benchmark.csv", "benchmark.md", "benchmark.png"]
    assert "## start" in (tmp_path / "benchmark.md").read_text()
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
