"""Lines of a command line: what they vary, what they set, and how a path stands in one."""

from pathlib import Path

from vitlab.config.overrides import as_single_run, fixed_settings, hydra_quote, parse_overrides, swept_keys


def test_what_varies_is_read_off_the_command_line_and_the_sweepers_parameters() -> None:
    overrides = ["seed=0,1", "optimizer.lr=interval(1e-4,1e-2)", "model.depth=range(1,3)", "batch_size=32"]
    assert swept_keys(overrides) == ["seed", "optimizer.lr", "model.depth"]
    assert swept_keys(["seed=0,1"], {"model/size": "tiny,small", "seed": "3"}) == ["model/size", "seed"]


def test_settings_are_what_is_given_a_single_value() -> None:
    overrides = ["optimizer.lr=1e-3", "++seed=2", "~callbacks.progress", "name='a b'", "sweep=x", "model=a,b"]
    assert fixed_settings(overrides) == {
        "optimizer.lr": "0.001",
        "seed": "2",
        "callbacks.progress": "~",
        "name": "'a b'",
    }


def test_a_job_alone_is_no_sweep_also_where_its_experiment_is_one() -> None:
    assert as_single_run(["sweep=a", "seed=1"]) == ["seed=1"]
    assert as_single_run(["sweep=a", "experiment=b", "seed=1"]) == [
        *("experiment=b", "seed=1", "hydra.mode=RUN", "sweep=null")
    ]


def test_a_quoted_path_is_read_as_it_is() -> None:
    path = Path("it's a, b={c}")
    (override,) = parse_overrides([f"data_dir={hydra_quote(path)}"])
    assert override.value() == str(path)
