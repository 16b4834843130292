"""The mutation run changes what it says, and its tests notice."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mutations
from vitlab.training import schedules


def test_each_kind_of_change_is_made_once() -> None:
    source = """
TABLE = (1, 2)
def double(x: int = 3) -> bool:
    "1"
    log.info("%d", 1)
    x += 1
    if not x < 2 and x: raise ValueError(f"{x + 1}")
    return x * 2 == 4 if x else True
"""
    kinds = sorted(change for _, change, _ in mutations.sites(ast.parse(source)))
    assert kinds == sorted(
        ["one more"] * 5  # 3, 1, 2, 2, 4
        + ["left out", "not left out", "and for or", "another operator", "the other branch", "the other truth value"]
        + ["another comparison"] * 2
    )


def test_a_mutant_computes_something_else() -> None:
    lines = Path(schedules.__file__).read_text().splitlines()
    place = next(number for number, line in enumerate(lines, 1) if "cooldown_steps < total_steps" in line)
    mutants = mutations.mutants("training/schedules.py")
    mutant = next(m for m in mutants if (m.change, m.line) == ("another comparison", place))
    values: dict[str, Any] = {"__name__": "vitlab.training.schedules"}
    exec(mutations.mutated(mutant), values)
    with pytest.raises(ValueError, match=r"schedule\.warmup_steps=10"):
        schedules.count_warmup(10, 10)
    assert values["count_warmup"](10, 10) == 10


def test_every_module_of_the_packages_has_mutants_and_tests() -> None:
    files = mutations.modules(list(mutations.PACKAGES))
    assert "models/vit.py" in files
    assert sum(len(mutations.mutants(file)) for file in files) > 1000


@pytest.mark.long
def test_a_run_keeps_its_results_and_resumes_from_them(tmp_path: Path) -> None:
    command = [sys.executable, mutations.__file__, "models/layers", "count=3", "seed=4", f"out={tmp_path / 'results'}"]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    results = (tmp_path / "results").read_text()
    killed = results.count("killed")
    assert f"seed=4: {killed} of {killed} killed, {3 - killed} equivalent" in first.stdout
    (tmp_path / "results").write_text(results.replace("killed", "SURVIVED"))
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert f"seed=4: 0 of {killed} killed" in again.stdout
    assert "models/layers.py" not in again.stdout.split("killed")[0], "none is tested again"
