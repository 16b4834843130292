"""A configuration or a checkpoint from anywhere can ask for what experiments are made of, and run nothing else."""

import ast
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf

import evaluate
import train
from conftest import Configure
from vitlab.cli import arguments, checks, preflight
from vitlab.config import allowlist, instantiate, paths
from vitlab.config.schema import Node
from vitlab.jobs import compose
from vitlab.runs import folder
from vitlab.storage import safe_load
from vitlab.training import build

SOURCES = sorted((compose.CONF.parent / "src").rglob("*.py"))
CALLBACK = "lightning.pytorch.callbacks.EarlyStopping"


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """A module `trap` that leaves a file when it is imported -> whether it was."""
    (tmp_path / "trap.py").write_text(
        f"import os, pathlib\npathlib.Path({str(tmp_path)!r}, 'sprung').touch()\n\n\nclass Trap: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "trap", raising=False)
    return lambda: (tmp_path / "sprung").exists()


# ---------------------------------------------------------------------------------------------------- what is offered


@pytest.mark.parametrize(
    "target",
    [
        "vitlab.models.vit.VisionTransformer",
        "vitlab.models.timm_model.timm_model",
        "vitlab.data.sets.digits.digits",
        "vitlab.training.schedules.warmup_cosine",
        "vitlab.training.monitor.Monitor",
        "vitlab.runs.wandb.wandb_logger",
        "vitlab.sweeps.search.pruning.Pruning",
        "hydra_plugins.vitlab.optuna.OptunaSweeper",
        "optuna.samplers.TPESampler",
        "optuna.pruners.MedianPruner",
        "torch.nn.Linear",
        "torch.optim.AdamW",
        "torch.optim.Muon",
        "torch.optim.lr_scheduler.OneCycleLR",
        "torch.optim.swa_utils.get_ema_multi_avg_fn",
        "torchvision.transforms.v2.RandomCrop",
        "timm.optim.Lion",
        "timm.models.vision_transformer.VisionTransformer",
        "torchmetrics.Accuracy",
        "torchmetrics.classification.MulticlassF1Score",
        "lightning.Trainer",
        CALLBACK,
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.profilers.SimpleProfiler",
        "lightning.pytorch.strategies.DDPStrategy",
        "lightning.pytorch.plugins.environments.SLURMEnvironment",
        "hydra.experimental.callbacks.LogJobReturnCallback",
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        *allowlist.LAUNCHERS,
    ],
)
def test_what_experiments_are_made_of_may_be_called(target: str) -> None:
    assert allowlist.refusal(target) is None


def test_every_file_of_ours_passes(configure: Configure) -> None:
    files = [*compose.CONF.rglob("*.yaml"), *paths.EXPERIMENTS.glob("*.yaml")]
    targets = {
        str(value["_target_"])
        for file in files
        for _, value in allowlist._values(yaml.safe_load(file.read_text()), "")
        if isinstance(value, dict) and "_target_" in value
    }
    assert len(targets) > 20
    assert {target: reason for target in targets if (reason := allowlist.refusal(target))} == {}


REFUSED = [
    # other packages
    *("os.system", "posix.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "runpy.run_path"),
    *("pickle.loads", "importlib.import_module", "shutil.rmtree", "sklearn.svm.SVC", "pytorch_lightning.Trainer"),
    # what offered packages have next to parts of experiments
    *("torch.load", "torch.save", "torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.serialization.load"),
    *("torch.utils.cpp_extension.load", "torch.utils.cpp_extension.load_inline", "torch.package.PackageImporter"),
    *("torch.distributed.run.main", "torch.multiprocessing.spawn", "torch.jit.load", "torch.compile"),
    *("torch.utils.data.DataLoader", "torch.ops.load_library", "torch.classes.load_library"),
    *("hydra.utils.call", "hydra.utils.instantiate", "hydra.utils.get_method", "hydra.utils.get_class", "hydra.main"),
    *("hydra._internal.utils._locate", "hydra._internal.instantiate._instantiate2.instantiate", "hydra.compose"),
    *("timm.models.load_checkpoint", "timm.create_model", "timm.models.create_model"),
    *("lightning.pytorch.cli.LightningCLI", "lightning.pytorch.seed_everything", "lightning.fabric.Fabric"),
    *("torch.nn.utils.clip_grad_norm_", "torch.nn.functional.relu", "torchvision.datasets.DatasetFolder"),
    *(
        "vitlab.distributed.launch.run_ranks",
        "vitlab.storage.atomic.atomic_write",
        "vitlab.config.schema.resolve",
        "vitlab.runs.wandb.log_image",
    ),
    *("optuna.storages.RDBStorage", "optuna.create_study", "vitlab.sweeps.search.optimize.optimize"),
    *("torchmetrics.functional.accuracy", "torchmetrics.multimodal.CLIPScore", "torchmetrics.text.BERTScore"),
    # other modules, reached through offered ones
    *("torch.os.system", "torch.nn.modules.module.torch.load", "torch.optim.lr_scheduler.math.exp"),
    *("vitlab.data.source.Path.unlink", "vitlab.training.schedules.math.exp", "torch.nn.init.torch.hub.load"),
    *("lightning.pytorch.trainer.trainer.os.system", "lightning.pytorch.callbacks.model_checkpoint.shutil.rmtree"),
    *("lightning.fabric.strategies.launchers.subprocess_script.subprocess.Popen", "torch.optim.optimizer.torch.load"),
    # names that offered modules merely import
    *("vitlab.data.source.dataclass", "vitlab.data.source.Path", "torch.optim.lr_scheduler.partial"),
    *("lightning.pytorch.callbacks.model_checkpoint.Path", "torchvision.models.get_weight"),
    # parts of classes, private parts, no paths
    *("torch.nn.Module.__init__", "torch.nn.Module.load_state_dict", "lightning.LightningModule.load_from_checkpoint"),
    *("lightning.pytorch.LightningModule.load_from_checkpoint", "torch.nn.Module.__class__", "torch.nn.Linear.mro"),
    *("lightning.pytorch.callbacks.Callback.__subclasses__", "torch.nn.modules._functions.torch.load"),
    *("vitlab.data.sets.digits.digits.__globals__", "torch.nn.__builtins__.eval", "torch.nn.__loader__.exec_module"),
    *("", "torch", "torch.nn", ".", "torch..load", "torch.nn.Linear()", "${a}", "torch/nn.Linear", "torch.nn. Linear"),
]


@pytest.mark.parametrize("target", REFUSED)
def test_everything_else_is_refused(target: str) -> None:
    assert allowlist.refusal(target)


def test_what_is_missing_is_reported_with_the_closest_and_nothing_is_imported() -> None:
    before = set(sys.modules)
    for target, words in (
        ("torch.optim.AdmW", "torch.optim has no 'AdmW'; did you mean 'AdamW'"),
        ("vitlab.modles.vit.VisionTransformer", "vitlab has no 'modles'; did you mean 'models'"),
        ("vitlab.models.vitt.VisionTransformer", "vitlab.models has no 'vitt'; did you mean 'vit'"),
    ):
        (line,) = allowlist.problems({"model": {"_target_": target}})
        assert line.startswith(f"model._target_={target} can't be imported: {words}") or "no parts of" in line
    assert set(sys.modules) == before


def test_an_alias_is_judged_by_its_definition(home: Path) -> None:
    assert allowlist.refusal("timm.layers.SqueezeExcite") is None, "SqueezeExcite = SEModule"
    (home / "mine.py").write_text("from os import *\n")
    assert allowlist.refusal("mine.system")
    assert allowlist.refusal("mine.__loader__")
    assert allowlist.refusal("own.made_at_run_time") is None


def test_nothing_of_a_refused_target_is_imported(trap: Callable[[], bool]) -> None:
    for target in ("trap.Trap", "trap.os.system", "torch.nn.trap.Trap", "vitlab.trap.Trap"):
        allowlist.problems({"model": {"_target_": target}})
    before = set(sys.modules)
    assert allowlist.refusal("torch.utils.mkldnn.MkldnnLinear")
    assert allowlist.refusal("torch.distributed.launcher.api.launch_agent")
    assert set(sys.modules) == before
    assert not trap()


@pytest.mark.parametrize(
    ("node", "path"),
    [
        ({"model": {"_target_": "os.system"}}, "model"),
        ({"model": {"_target_": "torch.nn.Linear", "x": {"y": [1, [{"z": {"_target_": "os.system"}}]]}}}, None),
        ({"optimizer": {"_target_": "os.system", "_partial_": True}}, "optimizer"),
        ({"a": {"_target_": CALLBACK, "_args_": [{"_target_": "os.system"}]}}, "a._args_.0"),
        ({"a": {"_target_": CALLBACK, "_recursive_": False, "b": {"_target_": "os.system"}}}, "a.b"),
        ([{"_target_": "os.system"}], "0"),
    ],
)
def test_a_target_is_found_at_any_depth(node: Any, path: str | None) -> None:
    (line,) = allowlist.problems(node)
    assert line.startswith(f"{path or 'model.x.y.1.0.z'}._target_=os.system is refused: ")
    assert line.endswith("if you trust it, and who wrote this configuration, start with VITLAB_ALLOW=os.system")


def test_targets_that_are_no_strings_and_endless_nesting_are_refused() -> None:
    assert allowlist.problems({"a": {"_target_": ["os.system"]}}) == [
        "a._target_=['os.system'] is not a dotted path to a callable"
    ]
    deep: Node = {"_target_": "os.system"}
    for _ in range(100):
        deep = {"a": deep}
    assert "levels deep" in allowlist.problems(deep)[0]


def test_parts_that_are_shared_many_times_over_are_refused_at_once(tmp_path: Path) -> None:
    shared: Node = {"a": 1}
    for _ in range(40):
        shared = {"a": shared, "b": shared}
    (line,) = allowlist.problems({"model": shared})
    assert line == "the configuration has more than 100,000 values, as parts of it are repeated"
    torch.save({"vitlab": {"config": {"model": shared}}}, tmp_path / "best.ckpt")
    with pytest.raises(allowlist.NotTrusted, match="its configuration has more than 100,000 values"):
        safe_load.load_checkpoint(tmp_path / "best.ckpt")


def test_an_interpolation_that_only_the_second_resolving_sees_is_refused(trap: Callable[[], bool]) -> None:
    """`instantiate` resolves what it gets: a string of a resolved configuration could still become a node."""
    text = "${oc.create:'{_target_: trap.Trap}'}"
    node = {"_target_": "torch.nn.Linear", "in_features": text}
    assert "an interpolation remains after resolving" in allowlist.problems({"model": node})[0]
    with pytest.raises(allowlist.NotTrusted, match="in_features"):
        instantiate.build_object(node)
    assert not trap()


# --------------------------------------------------------------------------------------------- what the user allows


def test_the_user_may_allow_a_package_or_one_target(
    trap: Callable[[], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowlist, "ALLOWED", ("trap",))
    assert allowlist.refusal("trap.Trap") is None
    assert not trap(), "its source says what it is"
    assert allowlist.refusal("trap.os.system"), "what the package imports isn't its own"
    assert allowlist.refusal("trapped.Trap")
    monkeypatch.setattr(allowlist, "ALLOWED", ("torch.hub.load",))
    assert allowlist.refusal("torch.hub.load") is None
    assert allowlist.refusal("torch.hub.help")
    monkeypatch.setattr(allowlist, "ALLOWED", ("trap.Trap",))
    assert allowlist.refusal("trap.Trap") is None


def test_what_the_user_has_allowed_is_imported_once_nothing_else_is_wrong(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_another.py").write_text("import the_other_that_is_not_installed\n\n\nclass Thing: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(allowlist, "ALLOWED", ("needs_another",))
    node = "++callbacks.thing={_target_: needs_another.Thing}"
    (line,) = checks.problems(train.main, configure(node))
    assert line == (
        "callbacks.thing._target_=needs_another.Thing can't be imported: "
        "No module named 'the_other_that_is_not_installed'"
    )
    (line,) = checks.problems(train.main, configure(node, "seed=a"))
    assert line == "seed=a is not an int"


# ------------------------------------------------------------------------------------------------- the user's own code


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module, a package and folders, last on the search path as a command has it."""
    home = tmp_path / "home"
    for name in ("mine.py", "own/__init__.py", "own/deep/part.py", "runs/his/code.py", "torch.py", "json.py"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"import os\n\n\nclass Thing:\n    file = {name!r}\n")
    monkeypatch.setattr(allowlist, "WORKING_DIR", home.resolve())
    monkeypatch.setattr(sys, "path", [*sys.path, str(home)])
    return home


def test_modules_and_packages_of_the_working_directory_need_no_permission(home: Path) -> None:
    assert allowlist.refusal("mine.Thing") is None
    assert allowlist.refusal("own.Thing") is None
    assert allowlist.refusal("own.deep.part.Thing") is None
    assert "mine" not in sys.modules, "its source says what it is"


@pytest.mark.parametrize("target", ["mine.os.system", "own.os.system", "runs.his.code.Thing", "his.code.Thing"])
def test_what_own_code_imports_and_folders_of_the_working_directory_are_refused(home: Path, target: str) -> None:
    assert allowlist.refusal(target)


def test_a_file_of_the_working_directory_hides_no_library(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch.Thing", "json.Thing", "json.JSONDecoder", "vitlab.config.schema.resolve"):
        assert allowlist.refusal(name)
    monkeypatch.setattr(allowlist, "WORKING_DIR", Path(allowlist.__file__).parents[2])
    assert allowlist.refusal("vitlab.config.schema.resolve"), "nor is vitlab the user's where it is developed"


def test_another_folder_on_the_search_path_is_not_the_working_directory(home: Path, trap: Callable[[], bool]) -> None:
    reason = allowlist.refusal("trap.Trap")
    assert reason
    assert reason.endswith("and modules in the working directory")
    assert not trap()


@pytest.fixture
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowlist, "ALLOWED", ())
    monkeypatch.setenv(allowlist.VARIABLE, "")


@pytest.mark.usefixtures("unnamed")
@pytest.mark.parametrize(
    "override",
    [
        "model._target_=trap.Trap",
        "+callbacks.x={_target_: trap.Trap, a: 1}",
        "model={a: 1, '_target_': 'trap.deep.Trap'}",
        "model._target_=torch.nn.Linear, trap.Trap",
    ],
)
def test_a_package_that_the_command_line_names_is_trusted_also_in_child_processes(
    override: str, trap: Callable[[], bool]
) -> None:
    assert allowlist.refusal("trap.Trap")
    allowlist.trust_named_packages([override, "name=other.Thing"], None)
    assert allowlist.refusal("trap.Trap") is None
    assert os.environ[allowlist.VARIABLE] == "trap"
    assert not trap()


@pytest.mark.usefixtures("unnamed")
def test_a_package_that_a_group_of_the_config_dir_names_is_trusted_and_none_of_a_run_folder(tmp_path: Path) -> None:
    for file, package in (("model/a.yaml", "one"), ("b.yaml", "two"), ("runs/his/config.yaml", "three")):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(f"model:\n  _target_: {package}.Net\n")
    allowlist.trust_named_packages([], str(tmp_path))
    assert sorted(allowlist.ALLOWED) == ["one", "two"]


@pytest.mark.usefixtures("unnamed")
@pytest.mark.parametrize("target", ["os.system", "torch.hub.load", "builtins.eval", "vitlab.config.schema.resolve"])
def test_naming_the_standard_library_or_an_offered_package_allows_nothing_more(target: str) -> None:
    allowlist.trust_named_packages([f"model._target_={target}"], None)
    assert allowlist.ALLOWED == ()
    assert allowlist.refusal(target)


@pytest.mark.usefixtures("unnamed")
def test_a_resumed_run_and_an_evaluated_one_name_nothing(tmp_path: Path, trap: Callable[[], bool]) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/overrides.yaml").write_text("[model._target_=trap.Trap]\n")
    folder.write_config(tmp_path, {"model": {"_target_": "trap.Trap"}})
    allowlist.trust_named_packages([f"resume={tmp_path}", f"run={tmp_path}"], None)
    assert allowlist.refusal("trap.Trap")
    assert not trap()


# ------------------------------------------------------------------------------------- configurations, as they come


def test_a_refused_target_is_the_only_problem_and_nothing_is_imported(
    configure: Configure, trap: Callable[[], bool]
) -> None:
    lines = checks.problems(train.main, configure("++sede=7", "model._target_=trap.Trap"))
    assert [line.split(" is refused")[0] for line in lines] == ["model._target_=trap.Trap"]
    assert not trap()


HYDRA_ATTACKS = [
    "+hydra.callbacks.x={_target_: trap.Trap}",
    "+hydra.callbacks.x={_target_: hydra.experimental.callbacks.LogJobReturnCallback, a: [{_target_: trap.Trap}]}",
    "+hydra.callbacks.x='${oc.create:{_target_:trap.Trap}}'",
    "+hydra.callbacks.x={_target_: '${oc.select:name}'}",
    "+hydra.callbacks.x=${model}",
    "+hydra.callbacks.x={_target_: torch.nn.Linear, a: '\\${b}'}",
    "+hydra.callbacks=${model}",
    "hydra.launcher._target_=trap.Trap",
    f"hydra.launcher={{_target_: {allowlist.LAUNCHERS[-1].replace('.Local', '.Slurm')}}}",
    "hydra.launcher={_target_: hydra_plugins.vitlab.launchers.JobsLauncher}",
    "+hydra.sweeper.params={_target_: trap.Trap}",
    "+hydra.job.env_set={_target_: trap.Trap}",
    "+hydra.job.env_set.VITLAB_ALLOW=trap",
    "+hydra.job_logging.handlers.x={'()': trap.Trap}",
    "+hydra.job_logging.handlers.x={class: trap.Trap}",
    "+hydra.job_logging.formatters.x={class: trap.Trap}",
    "+hydra.hydra_logging.handlers.x={class: logging.StreamHandler, stream: 'ext://trap.Trap'}",
    "+hydra.hydra_logging.handlers.x=${model}",
    "+hydra.job_logging.handlers.x={class: logging.FileHandler, filename: /tmp/start.sh}",
    "hydra.sweeper={_target_: hydra_plugins.vitlab.optuna.OptunaSweeper, storage: 'postgresql://there/x'}",
]


@pytest.mark.parametrize("attack", HYDRA_ATTACKS)
def test_what_hydra_makes_itself_is_checked_first(
    attack: str,
    trap: Callable[[], bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key, _, value = attack.lstrip("+").partition("=")
    file = tmp_path / "mine" / "experiment" / "attack.yaml"
    file.parent.mkdir(parents=True)
    node: Any = {}
    OmegaConf.update(cfg := OmegaConf.create(node), key, yaml.safe_load(value), force_add=True)
    file.write_text("# @package _global_\n" + OmegaConf.to_yaml(cfg))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        preflight.preflight(train.main, [f"--config-dir={tmp_path / 'mine'}", "experiment=attack"])
    assert stopped.value.code == 2
    assert re.search(r"- hydra\.[\w.()]+(=| can't be set| is refused)", printed := capsys.readouterr().err), printed
    assert not trap()


def test_no_override_lets_a_configuration_allow_itself_something(
    trap: Callable[[], bool], capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["-m"]):
        argv = [*more, "+hydra.job.env_set.VITLAB_ALLOW=trap", "model._target_=trap.Trap"]
        with pytest.raises(SystemExit):
            preflight.preflight(train.main, argv)
        assert "hydra.job.env_set.VITLAB_ALLOW can't be set here" in capsys.readouterr().err
    assert not trap()


@pytest.mark.parametrize("target", allowlist.LAUNCHERS)
def test_a_launcher_may_be_called_and_runs_no_line_of_shell_from_a_file(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = {"_target_": target, "setup": ["touch trap"]}
    (problem,) = allowlist.hydra_problems({"launcher": launcher})
    assert problem.startswith("hydra.launcher.setup=['touch trap'] is refused: a shell would run it; if you trust it")
    assert allowlist.hydra_problems({"launcher": {**launcher, "setup": None}}) == []
    monkeypatch.setattr(allowlist, "ALLOWED", (target,))
    assert allowlist.hydra_problems({"launcher": launcher}) == []


def test_hydra_s_own_parts_pass() -> None:
    with compose.initialize_hydra(arguments.parse_arguments([])[0]):
        for overrides in ([], ["hydra/job_logging=default"], ["hydra/hydra_logging=hydra_debug"]):
            try:
                cfg = compose.compose("train", overrides)
            except HydraException:
                cfg = compose.compose("train", [f"override {o}" for o in overrides])
            assert allowlist.hydra_problems(OmegaConf.to_container(cfg.hydra)) == []


def test_another_primary_configuration_is_checked_too_and_no_pickle_is_rerun(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trap: Callable[[], bool]
) -> None:
    (tmp_path / "other.yaml").write_text("defaults: [train, _self_]\nhydra: {callbacks: {x: {_target_: trap.Trap}}}\n")
    for argv, words in (
        ([f"--config-dir={tmp_path}", "--config-name=other"], "hydra.callbacks.x._target_=trap.Trap is refused"),
        ([f"--experimental-rerun={tmp_path / 'config.pickle'}"], "reads a pickle"),
    ):
        with pytest.raises(SystemExit):
            preflight.preflight(train.main, argv)
        assert words in capsys.readouterr().err
        assert not trap()


def test_another_primary_configuration_makes_hydra_import_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trap: Callable[[], bool]
) -> None:
    (tmp_path / "other.yaml").write_text("defaults: [train, _self_]\nhydra: {searchpath: ['pkg://trap']}\n")
    with pytest.raises(SystemExit):
        preflight.preflight(train.main, [f"--config-dir={tmp_path}", "--config-name=other"])
    assert "hydra.searchpath.0 is refused: Hydra would import that package" in capsys.readouterr().err
    assert not trap()


@pytest.mark.parametrize("asked", [["--cfg", "job"], ["--help"], ["--info", "config"], ["-m", "--cfg", "job"]])
def test_showing_a_configuration_imports_nothing_either(
    asked: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    trap: Callable[[], bool],
) -> None:
    (tmp_path / "other.yaml").write_text("defaults: [train, _self_]\nhydra: {searchpath: ['pkg://trap']}\n")
    monkeypatch.setattr(sys, "argv", ["train.py", *asked, f"--config-dir={tmp_path}", "--config-name=other"])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 2
    assert "hydra.searchpath.0 is refused: Hydra would import that package" in capsys.readouterr().err
    assert not trap()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hydra.searchpath=[pkg://trap]", "a run's own sets nothing of hydra"),
        (
            "+logger.x={_target_: lightning.pytorch.loggers.WandbLogger, settings: {base_url: 'http://x'}}",
            "is refused: ",
        ),
        ("model._target_=trap.Trap", "is refused: "),
    ],
)
def test_a_run_of_somebody_else_is_resumed_without_its_servers_and_modules(
    line: str, words: str, tmp_path: Path, trap: Callable[[], bool], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/overrides.yaml").write_text(yaml.safe_dump([line]))
    folder.write_config(tmp_path, {})
    with pytest.raises(SystemExit) as stopped:
        preflight.preflight(train.main, [f"resume={tmp_path}"])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
    assert not trap()


def test_a_run_folder_of_somebody_else_is_read_not_run(
    tmp_path: Path, trap: Callable[[], bool], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    folder.write_config(tmp_path, {"data": {"_target_": "trap.Trap"}, "trainer": {"precision": "32-true"}})
    with pytest.raises(SystemExit):
        preflight.preflight(evaluate.main, [f"run={tmp_path}"])
    assert f"run={tmp_path}: data._target_=trap.Trap is refused" in capsys.readouterr().err
    with pytest.raises(allowlist.NotTrusted):  # nor where it is changed after the check
        build.build_data(folder.read_config(tmp_path)["data"])
    assert not trap()


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    [
        *("../../x", "a/../../x", "/etc/x", "", ".", "..", "a/..", "a//b", "a/", "./a", "a/.hidden", "a\\..\\b"),
        *(" ", "a/ ", "a\0b", "a\nb", "a\x1b[2Jb", "\u202etxt", "x" * 256, "é" * 128, "/".join("abcdefghi")),
    ],
    ids=repr,
)
def test_a_name_stays_a_folder_below_runs(name: str, configure: Configure) -> None:
    config = configure()
    config["name"] = name
    (line,) = checks.problems(train.main, config)
    assert line.startswith("name=")
    assert "\n" not in line
    assert "\0" not in line


@pytest.mark.parametrize("name", ["mine", "a/b/c", "with space", "ünïcode", "x" * 255, "v1.2", "-x", "a..b"])
def test_a_plain_name_is_free(name: str, configure: Configure) -> None:
    config = configure()
    config["name"] = name
    assert checks.problems(train.main, config) == []


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "../data/digits", "digits/../digits", "''", "digits.yaml"])
def test_an_experiment_is_one_of_those_there_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        preflight.preflight(train.main, [f"experiment={name}"])
    assert "experiment=" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- sources


UNSAFE_MODULES = {"pickle": {"load", "loads", "Unpickler"}, "joblib": {"load"}, "dill": {"load", "loads"}}
UNSAFE_MODULES |= {"yaml": {"load", "load_all", "unsafe_load", "full_load"}, "marshal": {"load", "loads"}}
UNSAFE_MODULES |= {"shelve": {"open"}, "builtins": {"eval", "exec"}, "runpy": {"run_path", "run_module"}}
NEED_WEIGHTS_ONLY = {"load", "fit", "validate", "test", "predict", "load_from_checkpoint", "load_state_dict_from_url"}


def unsafe(tree: ast.AST) -> list[str]:
    """Calls that could run what they load."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        holder = (
            function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
        )
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in UNSAFE_MODULES.get(holder, ()) or (
            isinstance(function, ast.Name) and name in ("eval", "exec", "__import__")
        ):
            found.append(ast.unparse(node))
        loads = (
            holder == "torch" or name in ("load_from_checkpoint", "load_state_dict_from_url") or "ckpt_path" in given
        )
        if name in NEED_WEIGHTS_ONLY and loads and given.get("weights_only") != "True":
            found.append(ast.unparse(node))
        if given.get("allow_pickle", "False") != "False":
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.stem)
def test_no_source_loads_what_could_run(file: Path) -> None:
    expected = ["runpy.run_path(sys.argv[0], run_name='__main__')"] if file.stem == "main" else []  # vitlab's programs
    assert unsafe(ast.parse(file.read_text())) == expected


@pytest.mark.parametrize(
    "line",
    [
        *("torch.load(f)", "torch.load(f, weights_only=False)", "pickle.load(f)", "yaml.load(f)", "eval(x)"),
        *("np.load(f, allow_pickle=True)", "Classifier.load_from_checkpoint(f)", "run.fit(m, ckpt_path=f)"),
    ],
)
def test_the_search_for_unsafe_loads_finds_them(line: str) -> None:
    assert unsafe(ast.parse(line)) == [line]
