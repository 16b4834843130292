"""Signatures that are read from source are those that importing gives, and reading them imports nothing."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vitlab.config import bounds, schema, signatures
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.jobs.compose import CONF
from vitlab.models.vit import VisionTransformer
from vitlab.training.classifier import Classifier

LIBRARIES = [
    *("lightning.Trainer", "torch.optim.AdamW", "torch.optim.SGD", "timm.optim.Lion", "timm.optim.Muon"),
    *("lightning.pytorch.callbacks.RichProgressBar", "lightning.pytorch.callbacks.EarlyStopping"),
    *("lightning.pytorch.loggers.TensorBoardLogger", "lightning.pytorch.profilers.SimpleProfiler"),
    *("optuna.pruners.HyperbandPruner", "torch.nn.Linear"),
    *(
        "vitlab.training.monitor.Monitor",
        "vitlab.runs.wandb.wandb_logger",
        "vitlab.training.checkpoints.LastCheckpoint",
    ),
    *("hydra_plugins.vitlab.launchers.SlurmLauncher", "vitlab.weights.load.load_network"),
    *("hydra_plugins.vitlab.optuna.OptunaSweeper", "vitlab.evaluation.probes.Linear"),
]


@pytest.mark.parametrize("target", LIBRARIES)
def test_a_signature_of_a_library_is_read_as_importing_gives_it(target: str) -> None:
    read, imported = signatures.parameters(target), schema.parameters(schema.resolve(target))
    assert read is not None

    def in_words(parameters: dict[str, inspect.Parameter]) -> dict[str, Any]:
        named = {n: p for n, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
        return {
            name: (bounds.format_type(p.annotation), p.default is inspect.Parameter.empty) for name, p in named.items()
        }

    assert in_words(read) == in_words(imported)
    assert any(p.kind is inspect.Parameter.VAR_KEYWORD for p in read.values()) == any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in imported.values()
    )


def test_reading_imports_nothing() -> None:
    program = "import json, sys\nfrom vitlab.config import signatures\n"
    program += f"assert all(signatures.parameters(target) for target in {LIBRARIES[:3]!r})\n"
    program += "print(json.dumps([*sys.modules]))"
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent / "src")}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert not set(json.loads(ended.stdout)) & {"torch", "lightning", "timm", "optuna", "hydra"}


SOURCE = """
import collections, functools, os
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Generic, Literal, Optional, TypeVar
from annotated_types import Ge

T = TypeVar("T")
Size = Annotated[int, Ge(1)]

class Base:
    def __init__(self, size: Size = 3, *rest: int, **others: "Optional[str]") -> None: ...

class Derived(Base):
    pass

class Nothing(Generic[T]):
    pass

Other = Size
Loop = Pool
Pool = Loop

@dataclass
class Record:
    size: int

@dataclass(kw_only=True)
class More(Record):
    kind: ClassVar[str] = "more"
    rate: float = 0.5
    names: list = field(default_factory=list)

@dataclass
class Own:
    size: int

    def __init__(self, length: int) -> None: ...

def strange(
    *,
    alias: Other | None = None,
    loop: Loop = 0,
    number: 3 = 0,
    text: "not a type" = 0,
    union: 3 | None = 0,
    call: max(3, 4) = 0,
    literal: Literal[max] = 0,
    missing: os.gone.Name = 0,
    bound: Annotated[int, Ge(max)] = 0,
    parameters: int[str] = 0,
    module: collections.nothing.Name = 0,
) -> None: ...

class Made:
    def __new__(cls, size: int) -> "Made": ...

partial = functools.partial(Base)
"""


@pytest.fixture
def sourced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "sourced.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "sourced"


def test_a_class_is_called_as_the_first_base_that_says_how(sourced: str) -> None:
    for name in ("Base", "Derived"):
        known = signatures.parameters(f"{sourced}.{name}")
        assert known is not None
        assert list(known) == ["size", "others"], "*rest can't be named in a file"
        assert bounds.bound_problem(0, known["size"].annotation) == "must be at least 1"
        assert bounds.format_type(known["size"].annotation) == "an int"
    assert signatures.parameters(f"{sourced}.Nothing") == {}


def test_the_fields_of_a_dataclass_are_its_parameters(sourced: str) -> None:
    known = signatures.parameters(f"{sourced}.More") or {}
    assert [name for name, p in known.items() if p.default is inspect.Parameter.empty] == ["size"]
    assert list(known) == ["size", "rate", "names"]
    assert list(signatures.parameters(f"{sourced}.Own") or {}) == ["length"]


def test_an_annotation_that_is_no_type_accepts_any_value_and_an_alias_of_an_alias_is_followed(sourced: str) -> None:
    known = signatures.parameters(f"{sourced}.strange") or {}
    assert len(known) == 11
    for name, parameter in known.items():
        assert schema.value_problem("text", parameter.annotation) is None or name in ("alias", "bound"), name
        assert bounds.format_type(parameter.annotation, bounds=True)
    assert schema.value_problem(0, known["alias"].annotation) == "must be at least 1"
    assert schema.value_problem("x", known["alias"].annotation) == "is not an int or null"


@pytest.mark.parametrize("name", ["Made", "partial", "Gone"])
def test_what_source_does_not_tell_is_left_to_importing(sourced: str, name: str) -> None:
    assert signatures.parameters(f"{sourced}.{name}") is None
    assert "sourced" not in sys.modules


@pytest.mark.parametrize("class_", [VisionTransformer, DataModule, Augment, Classifier])
def test_defaults_read_from_source_are_those_of_the_signature(class_: type) -> None:
    signature = inspect.signature(class_).parameters.items()
    expected = {name: p.default for name, p in signature if p.default is not inspect.Parameter.empty}
    defaults = signatures.defaults(f"{class_.__module__}.{class_.__qualname__}")
    assert defaults.pop("_target_") == f"{class_.__module__}.{class_.__qualname__}"
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in defaults.items()} == expected
    assert len(expected) >= 4


def test_defaults_of_a_name_that_is_not_there_are_refused() -> None:
    with pytest.raises(LookupError, match=r"vitlab.models.vit.VisionTransformr is not defined in a source file"):
        signatures.defaults("vitlab.models.vit.VisionTransformr")
