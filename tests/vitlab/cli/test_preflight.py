"""The command line: every mistake on it is told before anything starts, and what is right goes on to Hydra."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import evaluate
import train
from conftest import Configure
from vitlab.cli import preflight as cli_preflight
from vitlab.cli.preflight import __file__
from vitlab.config import allowlist
from vitlab.jobs import compose, resume
from vitlab.runs.folder import OVERRIDES, RESULTS, write_config
from vitlab.sweeps import ledger

Preflight = Callable[..., list[str]]


@pytest.fixture
def preflight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Preflight:
    """Arguments -> those for Hydra, from an empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return lambda *argv: cli_preflight.preflight(train.main, list(argv))


@pytest.fixture
def refused(preflight: Preflight, capsys: pytest.CaptureFixture[str]) -> Preflight:
    """Arguments that are refused with status 2 -> the problems told."""

    def problems(*argv: str) -> list[str]:
        with pytest.raises(SystemExit) as stopped:
            preflight(*argv)
        assert stopped.value.code == 2
        told = capsys.readouterr()
        head, *lines = told.err.strip().split("\n  - ")
        count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
        assert head == f"train: {count} in the configuration; nothing was started."
        assert told.out == ""
        assert list(Path.cwd().iterdir()) == [], "a check leaves nothing behind"
        return lines

    return problems


# ------------------------------------------------------------------------------------------- what is let through


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["model=vit_b16", "trainer.devices=4", "trainer.accelerator=cpu"],
        ["model=vit_s16", "model/patch=p32"],
        ["optimizer.lr=3e-4", "image_size=384", "model/patch=p16"],
        ["+trainer.limit_test_batches=2", "++seed=3"],
        ["~callbacks.progress"],
        ["hydra.run.dir=elsewhere"],
        ["logger=[csv,tensorboard]"],
        ["experiment=digits"],
    ],
    ids=" ".join,
)
def test_a_right_command_line_goes_on_as_it_is(preflight: Preflight, argv: list[str]) -> None:
    assert preflight(*argv) == argv


def test_settings_that_exist_but_stand_in_no_file_are_added(preflight: Preflight) -> None:
    argv = ["trainer.limit_val_batches=2", "trainer.max_epochs=9", "model.num_classes=10", "optimizer.amsgrad=true"]
    assert preflight(*argv) == [f"++{argv[0]}", argv[1], f"++{argv[2]}", f"++{argv[3]}"]


def test_settings_of_the_option_that_is_chosen_are_not_added_again(preflight: Preflight) -> None:
    argv = ["schedule=reciprocal_sqrt", "schedule.timescale=100", "model=timm", "model.model_name=resnet18"]
    assert preflight(*argv) == argv


# ------------------------------------------------------------------------------------------------ what is refused

TYPOS = {
    "sede=7": "sede=7: there is no such setting; did you mean 'seed' or 'sweep'?",
    "model.dmi=3": "model.dmi=3: there is no such setting; did you mean 'dim'?",
    "data.num_worker=2": "data.num_worker=2: there is no such setting; did you mean 'num_workers'?",
    "data.augment.flpi=true": "data.augment.flpi=true: there is no such setting; did you mean 'flip'?",
    "optimizer.lrr=1": "optimizer.lrr=1: there is no such setting; did you mean 'lr'?",
    "schedule.warmup=3": "schedule.warmup=3: there is no such setting; use schedule.warmup_steps=3 (optimizer steps)",
    "trainer.max_epoch=2": "trainer.max_epoch=2: there is no such setting; did you mean 'max_epochs' or 'min_epochs'?",
    "logger.wandb.projekt=a": "logger.wandb.projekt=a: there is no such setting; did you mean 'project'?",
    "callbacks.best.monitr=a": "callbacks.best.monitr=a: there is no such setting; did you mean 'monitor'?",
    "classifier.los=1": "classifier.los=1: there is no such setting; did you mean 'loss'?",
    "modle=vit_b16": "modle=vit_b16: there is no such setting; did you mean 'model' or 'compile'?",
}
WRONG_TYPES = {
    "seed=abc": "seed=abc is not an int",
    "compile=1": "compile=1 is not true or false",
    "model.dim=abc": "model.dim=abc is not an int",
    "data.drop_last=0": "data.drop_last=0 is not true or false",
    "data.augment.scale=[1.0]": "data.augment.scale=[1.0] is not a list of 2 (a number, a number)",
    "optimizer.lr=fast": "optimizer.lr=fast is not a number or Tensor",
    "schedule.warmup_steps=1.5": "schedule.warmup_steps=1.5 is not an int or null",
    "trainer.max_epochs=ten": "trainer.max_epochs=ten is not an int or null",
    "logger.wandb.mode=onlin": "logger.wandb.mode=onlin is not one of 'auto', 'online', 'offline', 'disabled'; "
    "did you mean 'online' or 'offline'?",
    "callbacks.best.mode=3": "callbacks.best.mode=3 is not a string",
    "classifier.label_smoothing=true": "classifier.label_smoothing=true is not a number",
}


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_a_typo_in_any_group_is_told_with_what_was_perhaps_meant_however_it_is_given(
    refused: Preflight, prefix: str
) -> None:
    assert sorted(refused(*(prefix + typo for typo in TYPOS))) == sorted(TYPOS.values())


@pytest.mark.parametrize("prefix", ["", "++"])
def test_a_wrong_type_in_any_group_is_told_with_what_is_wanted(refused: Preflight, prefix: str) -> None:
    assert sorted(refused(*(prefix + wrong for wrong in WRONG_TYPES))) == sorted(WRONG_TYPES.values())


def test_misspelt_options_of_groups_are_told_together_with_other_mistakes(refused: Preflight) -> None:
    lines = refused("model=vit_b61", "model/size=tinny", "logger=[wandb,cvs]", "data=xyzzy", "seed=a", "++model.dmi=3")
    beginnings = [
        "model=vit_b61: there is no such option; did you mean 'vit_b16' or",
        "model/size=tinny: there is no such option; did you mean 'tiny'? (of base, huge, large, mini, small, tiny)",
        "logger=cvs: there is no such option; did you mean 'csv'? (of csv, tensorboard, wandb)",
        "data=xyzzy: there is no such option (of cifar10, cifar100, digits, fake, fashion_mnist, huggingface",
        "seed=a is not an int",
        "model.dmi=3: there is no such setting; did you mean 'dim'?",
    ]
    assert len(lines) == len(beginnings)
    assert all(line.startswith(beginning) for line, beginning in zip(lines, beginnings, strict=True))
    assert "signature" not in " ".join(lines), "what the program itself puts into a group is no choice"


def test_a_misspelt_experiment_is_told(refused: Preflight) -> None:
    (line,) = refused("experiment=fashoin_mnist")
    assert line.startswith("experiment=fashoin_mnist: there is no such option; did you mean 'fashion_mnist'")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("seed", "seed can't be read; a setting has a value: seed=VALUE"),
        ("seed=0,1", "add --multirun to your command line"),
        ("optimizer.lr=interval(1e-4,1e-3)", "requires --multirun"),
        ("~modle.dim", "Could not delete from config. 'modle.dim' does not exist."),
        ("model.dim=${oops}", "Interpolation key 'oops' not found"),
        ("logger=null", "Config group override must be a string or a list. Got NoneType"),
        ("hydra.sweep.dirr=x", "Key 'dirr' not in 'SweepDir'"),
        ("run_dir=x", "run_dir=x can't be set: the program sets it; use hydra.run.dir=x"),
        ("~callbacks", "callbacks is not set, and has no default"),
        ("model.patch_size=3", "image_size=8 is not a multiple of patch_size=3; the nearest are 6 and 9"),
    ],
)
def test_what_cant_even_be_composed_is_told_the_same_way(refused: Preflight, argument: str, words: str) -> None:
    (line,) = refused(argument)
    assert words in line


def test_mistakes_in_a_users_own_file_are_told(refused: Preflight, preflight: Preflight, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "model"
    folder.mkdir(parents=True)
    head = "defaults:\n  - vit\n  - size: tiny\n  - patch: p2\n  - _self_\n"
    (folder / "wrong.yaml").write_text(head + "num_registes: 4\npos_embed: sincos\n")
    (folder / "right.yaml").write_text(head + "num_registers: 4\n")
    option = f"--config-dir={tmp_path / 'mine'}"
    assert sorted(refused(option, "model=wrong", "optimizer.lrr=3")) == [
        "model.num_registes=4: there is no such setting; did you mean 'num_registers' or 'num_classes'?",
        "model.pos_embed=sincos is not one of 'learned', 'sincos2d', 'none'; did you mean 'sincos2d'?",
        "optimizer.lrr=3: there is no such setting; did you mean 'lr'?",
    ]
    assert preflight(option, "model=right", "model.num_registers=2") == [option, "model=right", "model.num_registers=2"]
    search = f"hydra.searchpath=[file://{tmp_path / 'mine'}]"
    assert preflight(search, "model=right") == [search, "model=right"]
    assert preflight("-m", search, "model=right,vit_mini")[2:] == [search, "model=right,vit_mini"]
    (line,) = refused(search, "model=rihgt")
    assert "did you mean 'right'" in line


def test_mistakes_in_a_model_of_a_users_own_are_told(
    refused: Preflight, preflight: Preflight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n\n\n"
        "def linear(*, num_classes: int, in_channels: int, image_size: int, hidden: int = 3) -> nn.Module: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(allowlist, "ALLOWED", ("my_networks",))
    (tmp_path / "mine" / "model").mkdir(parents=True)
    text = "_target_: my_networks.linear\nimage_size: ${image_size}\n"
    (tmp_path / "mine" / "model" / "linear.yaml").write_text(text)
    option = f"--config-dir={tmp_path / 'mine'}"
    assert preflight(option, "model=linear", "model.hidden=5") == [option, "model=linear", "++model.hidden=5"]
    assert refused(option, "model=linear", "model.hiden=5") == [
        "model.hiden=5: there is no such setting; did you mean 'hidden'?"
    ]


def test_the_other_command_is_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli_preflight.preflight(evaluate.main, ["split=tset", "trainer.devices=0"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "evaluate: 3 problems in the configuration; nothing was started.\n"
        "  - split=tset is not one of 'train', 'val', 'test'; did you mean 'test'?\n"
        "  - neither run nor model.weights is set; run=FOLDER evaluates a run, model.weights=SOURCE other weights\n"
        "  - trainer.devices=0 is not a number of devices; use 1 or more, or -1 for all\n"
    )
    (tmp_path / "checkpoints").mkdir()
    for line, remedy in ((f"run={tmp_path}", "it has no config.yaml"), (f"run={tmp_path}", "has no best.ckpt")):
        with pytest.raises(SystemExit):
            cli_preflight.preflight(evaluate.main, [line])
        assert remedy in capsys.readouterr().err
        (tmp_path / "config.yaml").write_text("seed: 0")
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    argv = [f"run={tmp_path}", "split=val"]
    assert cli_preflight.preflight(evaluate.main, argv) == argv


def test_a_run_folder_that_cant_be_written_to_is_told(refused: Preflight) -> None:
    for argv in (["hydra.run.dir=/dev/null/x"], ["-m", "hydra.sweep.dir=/dev/null/x"]):
        name = argv[-1].partition("=")[0]
        assert refused(*argv) == [f"{name}=/dev/null/x can't be written to (Not a directory); name another folder"]


# ---------------------------------------------------------------------------------------------------------- sweeps


def test_every_value_of_a_grid_is_checked_and_told_once(refused: Preflight) -> None:
    assert refused("-m", "seed=0,1,x", "model.pool=cls,avg,max", "batch_size=64,0", "trainer.max_epoch=2,3") == [
        "trainer.max_epoch=2: there is no such setting; did you mean 'max_epochs' or 'min_epochs'?",
        "seed=x is not an int",
        "model.pool=max is not one of 'cls', 'avg', 'none'",
        "batch_size=0 must be at least 1",
        "trainer.max_epoch=3: there is no such setting; did you mean 'max_epochs' or 'min_epochs'?",
    ]


def test_every_option_of_a_grid_is_checked(refused: Preflight) -> None:
    (size,) = refused("-m", "model/size=tiny,smal", "seed=0,1")
    assert size.startswith("model/size=smal: there is no such option; did you mean 'small'?")
    (momentum,) = refused("-m", "optimizer=sgd,adamw", "optimizer.momentum=0.8")
    assert momentum == "optimizer.momentum=0.8: there is no such setting"
    (image_size,) = refused("-m", "model=vit_mini,vit_b16", "image_size=8,101", "model/patch=p2")
    assert image_size == "image_size=101 is not a multiple of patch_size=2; the nearest are 100 and 102"


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("seed=range(-1,2)", "seed=-1 must be at least 0 and below 4294967296"),
        ("seed=choice(0,a)", "seed=a is not an int"),
        ("model/size=glob(*)", "model.dim=1280 is not a multiple"),
    ],
)
def test_every_way_to_write_a_grid_is_checked(refused: Preflight, argument: str, line: str) -> None:
    further = ["model.heads=12"] if "glob" in argument else []
    lines = refused("-m", argument, *further)
    assert any(found.startswith(line) for found in lines)


def test_what_a_search_samples_is_let_through_and_the_rest_is_checked(refused: Preflight, preflight: Preflight) -> None:
    space = ["optimizer.lr=interval(1e-4,1e-2)", "model.depth=range(1,4)", "seed=0,1"]
    search = ["-m", "hydra/sweeper=optuna", *space]
    assert preflight(*search)[2:] == search[1:]
    assert refused(*search, "model.dmi=3") == ["model.dmi=3: there is no such setting; did you mean 'dim'?"]
    (line,) = refused("-m", *space)
    assert line.startswith("optimizer.lr has infinitely many values: a grid needs choice(...) or range")


def test_sweeping_over_a_setting_that_stands_in_no_file_adds_it(preflight: Preflight) -> None:
    assert preflight("-m", "trainer.limit_val_batches=1,2")[2:] == ["++trainer.limit_val_batches=1,2"]


def test_a_sweep_is_named_so_that_the_same_command_finds_it_again(preflight: Preflight) -> None:
    multirun, name, *line = preflight("-m", "model/size=tiny,small", "seed=0,1")
    assert (multirun, line) == ("-m", ["model/size=tiny,small", "seed=0,1"])
    assert name.startswith("sweep=digits-size-seed-")
    assert preflight("-m", "seed=5,6", "model/size=mini,base", "logger=csv")[1] == name, "more values, logged elsewhere"
    assert preflight("-m", "model/size=tiny,small", "seed=0,1", "batch_size=32")[1] != name
    assert preflight("-m", "seed=0,1", "sweep=mine") == ["-m", "seed=0,1", "sweep=mine"]
    assert preflight("-m", "seed=0,1", "hydra.sweep.dir=a/jobs")[1] == "sweep=jobs"
    by_file = preflight("hydra.mode=MULTIRUN", "+hydra.sweeper.params={seed:'0,1'}")
    assert by_file[0].startswith("sweep=digits-seed-"), "what varies, and that it does, may stand in a file"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["sweep=mine"], "sweep=mine names a sweep, and this is one run; add -m, or leave it out"),
        (["-m", "sweep=a/b"], "sweep=a/b must be a plain folder name below runs/sweeps: "),
        (["-m", "sweep=.."], "sweep=.. must be a plain folder name below runs/sweeps: "),
        (["-m", "max_failures_per_job=-1"], "max_failures_per_job=-1 must be at least 0"),
        (["-m", "hydra.sweep.subdir=x"], "hydra.sweep.subdir can't be set: a sweep finds its jobs again"),
        (["-m", "resume=a"], "resume=a: no run folder"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_what_is_wrong_with_a_sweep_is_told(refused: Preflight, argv: list[str], line: str) -> None:
    (found,) = refused(*argv)
    assert found.startswith(line)


def test_a_cluster_does_not_resume_a_cancelled_sweep_and_a_user_does(
    preflight: Preflight, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ledger.SWEEPS / "mine"
    ledger.write_sweep(folder, command="", varies=[], objectives={})
    ledger.cancel_sweep(ledger.read_sweep(folder))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(SystemExit):
        preflight("-m", "sweep=mine")
    assert "sweep=mine was cancelled" in capsys.readouterr().err
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert preflight("-m", "sweep=mine")


def test_processes_started_by_others_want_one_folder_and_one_of_them_describes_it(
    refused: Preflight, preflight: Preflight, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert refused("trainer.devices=2")[0].startswith("hydra.run.dir is not set")
    monkeypatch.setenv("RANK", "0")
    assert preflight("hydra.run.dir=here") == ["hydra.run.dir=here"]
    assert refused("-m", "seed=0,1", "hydra.run.dir=here")[0].startswith("-m starts several runs, and torchrun or srun")
    monkeypatch.setenv("RANK", "1")
    assert preflight("hydra.run.dir=here") == ["hydra.run.dir=here", "hydra.output_subdir=null"]


# ---------------------------------------------------------------------------------------------------------- resume


@pytest.fixture
def make_run(configure: Configure, preflight: Preflight) -> Callable[..., Path]:
    """A run as one that was stopped leaves it, below `runs/` of the working directory."""

    def make(stamp: str, *overrides: str, status: str = "crashed", checkpoint: bool = True, age: int = 0) -> Path:
        config = configure(*overrides)
        run_dir = Path("runs", config["name"], stamp).resolve()
        write_config(run_dir, {**config, "run_dir": str(run_dir)})
        (run_dir / ".hydra").mkdir()
        (run_dir / OVERRIDES).write_text(yaml.safe_dump(list(overrides)))
        (run_dir / RESULTS).write_text(f'{{"status": "{status}"}}')
        if checkpoint:
            (run_dir / "checkpoints").mkdir()
            (run_dir / resume.LAST).touch()
            os.utime(run_dir / resume.LAST, (1_000_000 - age, 1_000_000 - age))
        return run_dir

    return make


def folder(arguments: list[str]) -> list[Path]:
    found = [a.removeprefix("hydra.run.dir=").strip("'") for a in arguments if a.startswith("hydra.run.dir=")]
    return [Path(path).resolve() for path in found]


def test_resume_auto_goes_on_in_the_newest_unfinished_run_of_this_configuration(
    preflight: Preflight, make_run: Callable[..., Path]
) -> None:
    make_run("older", "optimizer.lr=1e-4", age=50)
    wanted = make_run("newer", "optimizer.lr=1e-4", age=40)
    make_run("finished", "optimizer.lr=1e-4", status="finished", age=30)
    make_run("never-saved", "optimizer.lr=1e-4", checkpoint=False)
    make_run("another", "optimizer.lr=1e-3", age=10)
    found = preflight("optimizer.lr=1e-4", "resume=auto")
    assert folder(found) == [wanted]
    assert found[1:] == ["optimizer.lr=1e-4", "resume=auto"]


def test_a_requeued_job_goes_on_whatever_its_command_line_says(
    preflight: Preflight, make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = make_run("stopped", "optimizer.lr=1e-4", status="preempted")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    found = preflight("optimizer.lr=1e-4")
    assert folder(found) == [wanted]
    assert "resume=auto" in found


def test_resume_auto_overlooks_what_does_not_change_the_training(
    preflight: Preflight, make_run: Callable[..., Path]
) -> None:
    wanted = make_run("stopped", "logger=csv")
    assert folder(preflight("resume=auto", "callbacks.progress=null")) == [wanted]
    assert folder(preflight("resume=auto", "seed=1")) == []


def test_resume_auto_finds_a_run_that_began_before_experiments_named_their_runs(
    preflight: Preflight, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert folder(preflight("experiment=digits", "resume=auto")) == []
    assert (
        "starts a new run; in runs/digits and runs/digits-vit_64x4_p2-8px: there is no run" in capsys.readouterr().err
    )
    former = make_run("former", "experiment=digits", "name=digits-vit_64x4_p2-8px")
    assert former.parent.name == "digits-vit_64x4_p2-8px"
    assert folder(preflight("experiment=digits", "resume=auto")) == [former]
    assert folder(preflight("experiment=digits", "resume=auto", "name=mine")) == []
    newer = make_run("newer", "experiment=digits", age=-50)
    assert newer.parent.name == "digits"
    assert folder(preflight("experiment=digits", "resume=auto")) == [newer]


def test_resume_auto_starts_anew_where_there_is_nothing_to_go_on_from(preflight: Preflight) -> None:
    assert preflight("resume=auto") == ["resume=auto"]


def test_resume_auto_leaves_a_folder_that_is_given_alone(preflight: Preflight, make_run: Callable[..., Path]) -> None:
    given = f"hydra.run.dir={make_run('stopped').parent}/another"
    assert preflight("resume=auto", given) == ["resume=auto", given]


@pytest.mark.parametrize("target", ["", "checkpoints", resume.LAST])
def test_resuming_a_run_takes_up_its_settings_and_its_folder(
    preflight: Preflight, make_run: Callable[..., Path], target: str
) -> None:
    stopped = make_run("it's stopped", "model.depth=2", "optimizer=sgd", "seed=3")
    escaped = str(stopped / target).replace("'", "\\'")
    found = preflight(f"resume='{escaped}'", "seed=4", "trainer.max_epochs=200")
    quoted_dir = str(stopped).replace("'", "\\'")
    assert found == [
        "model.depth=2",
        "optimizer=sgd",
        f"hydra.run.dir='{quoted_dir}'",
        f"resume='{escaped}'",
        "seed=4",
        "trainer.max_epochs=200",
    ]


def test_a_run_that_was_resumed_is_not_resumed_from_where_it_was_then(
    preflight: Preflight, make_run: Callable[..., Path]
) -> None:
    stopped = make_run("stopped", "resume=auto", "seed=3")
    assert preflight(f"resume={stopped}") == ["seed=3", f"hydra.run.dir='{stopped}'", f"resume={stopped}"]


def test_resuming_what_is_no_run_is_refused(refused: Preflight) -> None:
    assert refused("resume=no/such/run", "seed=a") == [
        "resume=no/such/run: no run folder, nor a checkpoint in one; use resume=auto or a path",
        "seed=a is not an int",
    ]


def test_settings_of_a_resumed_run_are_checked_with_the_new_ones(
    preflight: Preflight, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = make_run("stopped", "schedule.warmup_steps=100")
    with pytest.raises(SystemExit):
        preflight(f"resume={stopped}", "trainer.max_steps=80")
    assert "schedule.warmup_steps=100 leaves nothing of the 80 steps" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- the pipeline


def test_each_step_is_a_function_of_at_most_25_lines() -> None:
    tree = ast.parse(Path(__file__).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert {"parse", "syntax_problems", "config_problems", "plan"} <= {function.name for function in functions}
    lines = {function.name: (function.end_lineno or 0) - function.lineno + 1 for function in functions}
    assert {name: count for name, count in lines.items() if count > 25} == {}


def test_mistakes_of_every_kind_are_told_without_importing_what_trains(tmp_path: Path) -> None:
    mistakes = ["optimizr.lr=1", "model/size=tinny", "data.val_fraction=2", "trainer.strategy=dpd"]
    mistakes += ["optimizer.lr=fast", "data.augment.scale=[2,1]", "objective=f1", "model.dmi=3", "batch_size=-1"]
    program = f"""
import json, sys
import train
from vitlab.cli import preflight, register
register.register()
try:
    preflight.preflight(train.main, {mistakes!r})
except SystemExit:
    print(json.dumps([*sys.modules]))
"""
    environment = {**os.environ, "PYTHONPATH": str(compose.CONF.parent / "src")}
    line = [sys.executable, "-c", program]
    ended = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert len(ended.stderr.splitlines()) == 1 + len(mistakes)
    assert not set(json.loads(ended.stdout)) & {"torch", "lightning", "timm", "numpy", "wandb", "optuna", "filelock"}
