"""A damaged ledger is rebuilt from what the jobs themselves have written."""

from pathlib import Path

import pytest

from vitlab.runs.folder import write_config
from vitlab.sweeps import ledger
from vitlab.sweeps.rebuild import is_ledger, rebuild_ledger


def write_job(sweep: Path, name: str, overrides: str | bytes) -> None:
    write_config(sweep / name, {"objective": "val/loss"})
    (sweep / name / ".hydra").mkdir()
    content = overrides if isinstance(overrides, bytes) else f"{overrides}\n".encode()
    (sweep / name / ".hydra" / "overrides.yaml").write_bytes(content)


def test_a_job_keeps_its_identity_its_folder_and_its_settings(tmp_path: Path) -> None:
    config = {"seed": 0, "trainer": {"devices": 1}}
    ledger.write_sweep(tmp_path, command="c", varies=["seed", "trainer.devices"], objectives={"val/acc": "max"})
    entries = {}
    for seed in (0, 1):
        lines = [f"seed={seed}", f"trainer.devices={seed + 1}", "sweep=x", "logger=csv", "max_failures_per_job=3"]
        changed = {**config, "seed": seed, "trainer": {"devices": seed + 1}}
        name, entries[name] = ledger.ledger_entry(tmp_path, changed, lines)
        write_job(tmp_path, str(entries[name]["folder"]), str(lines))
    found = rebuild_ledger(tmp_path)
    assert found["jobs"] == entries
    assert found["varies"] == ["seed", "trainer.devices"]
    assert found["objectives"] == {"val/loss": "min"}
    assert is_ledger(found)


def test_a_damaged_job_stays_in_the_sweep(tmp_path: Path) -> None:
    write_job(tmp_path, "seed_0-aa", "[seed=0]")
    write_job(tmp_path, "seed_1-bb", "[seed=1]")
    write_job(tmp_path, "seed_2-cc", b"\xff")
    found = rebuild_ledger(tmp_path)
    assert found["varies"] == ["seed"]
    assert [entry["settings"] for entry in found["jobs"].values()] == [{"seed": "0"}, {"seed": "1"}, {}]


@pytest.mark.parametrize("head", [{}, [], 1, {"jobs": []}, {"jobs": {"a": {}}}, {"jobs": {"a": {"folder": "x"}}}])
def test_what_is_no_ledger(head: object) -> None:
    assert not is_ledger(head)
    assert is_ledger({"jobs": {}})
