"""A plan is readable: its numbers, several in a table, and a picture that has each distinct curve."""

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from vitlab.diagnostics.plan_report import FILE, draw_plan, plan_lines, plan_table


def plan(**others: Any) -> Any:
    groups = [{"name": "decay", "learning_rate": 0.1, "weight_decay": 0.05}]
    groups += [{"name": f"layer{n}", "learning_rate": 0.1 / n, "weight_decay": 0.0} for n in (1, 2, 3)]
    return {
        "name": "tiny",
        "overrides": ["data=fake"],
        "parameters": 1234567,
        "flops_per_image": 12.5e9,
        "batch_size": 8,
        "images_per_device": 4,
        "steps_per_epoch": 5,
        "steps": 10,
        "images_seen": 80,
        "hours": 0.25,
        "hours_from": "h100, MFU 0.4 assumed",
        "memory_gb": 4.0,
        "memory": {"weights": 10**9, "activations": 2 * 10**9, "total": 3 * 10**9},
        "memory_by_activations": {"stored": 3 * 10**9, "recomputed": 2 * 10**9},
        "groups": groups,
        "advice": ["fits"],
        **others,
    }


def test_the_numbers_are_lines_with_units() -> None:
    lines = [line.split(maxsplit=1) for line in plan_lines(plan())]
    assert ["parameters", "1,234,567"] in lines
    assert ["memory", "weights 1.000 GB, activations 2.000 GB, total 3.000 GB"] in lines
    assert ["hours", "0.25"] in lines
    assert lines[-1] == ["-", "fits"]


def test_a_table_is_named_by_what_differs(tmp_path: Path) -> None:
    for number, size in enumerate([*"abcdefghij", "k"]):
        (tmp_path / str(number)).mkdir()
        found = plan(overrides=["data=fake", f"model={size}"], hours=None if number else 0.25)
        (tmp_path / str(number) / FILE).write_text(json.dumps(found))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in plan_table(tmp_path)]
    assert [row[0] for row in rows] == ["plan", "---", *(f"model={size}" for size in "abcdefghijk")], "10 after 9"
    assert rows[2] == ["model=a", "1,234,567", "12.5", "10", "80", "3.00", "2.00", "0.25"]
    assert rows[3][-1] == ""


@pytest.mark.parametrize("groups", [4, 1])
def test_the_picture_has_a_curve_for_each_distinct_rate(groups: int, tmp_path: Path) -> None:
    found = plan()
    found["groups"] = found["groups"][:groups]
    curves = [[[step, group["learning_rate"] * step / 9] for step in range(10)] for group in found["groups"]]
    draw_plan(found, curves, tmp_path / "plan.png")
    pixels = matplotlib.image.imread(tmp_path / "plan.png")
    colors = {tuple(pixel) for pixel in pixels[::2, ::2].reshape(-1, 4).round(1).tolist()}
    strong = [color for color in colors if max(color[:3]) - min(color[:3]) > 0.5]
    assert bool(len(strong) > 2) == (groups == 4), "decay and layer1 share a curve"
