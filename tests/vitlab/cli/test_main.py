"""The command `vitlab` in the source tree; tests/test_wheel.py trains with it."""

import signal
import subprocess
import sys

import pytest

import vitlab.cli.main
from conftest import SRC
from vitlab.config import paths


def vitlab_prints(*arguments: str, status: int = 0) -> str:
    line = [sys.executable, "-X", "importtime", "-c", "from vitlab.cli.main import main; main()", *arguments]
    done = subprocess.run(line, cwd=SRC, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert "torch" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_it_lists_every_program_without_importing_torch(arguments: list[str]) -> None:
    listed = [line.split(maxsplit=1) for line in vitlab_prints(*arguments).splitlines() if line.startswith("  ")]
    assert {program.stem for program in SRC.glob("*.py")} <= {words[0] for words in listed}
    assert ["train", "Train a Vision Transformer, keep its best checkpoint, and test that once."] in listed


def test_its_version_is_vitlabs() -> None:
    assert f"vitlab {paths.version()}\n" in vitlab_prints("--version")


def test_an_unknown_program_is_refused_with_the_nearest() -> None:
    assert "there is no program 'trian'; did you mean 'train'?" in vitlab_prints("trian", status=2)


def test_it_runs_the_program_as_its_file_does(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vitlab", "train", "--version"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    vitlab.cli.main.main()
    assert signal.signal(signal.SIGINT, former) == signal.SIG_DFL, "Ctrl-C ends it without a traceback"
    assert sys.path[0] == str(paths.PROGRAMS), "programs may import each other"
    assert sys.argv == [str(SRC / "train.py"), "--version"]
    assert capfd.readouterr().out == f"vitlab {paths.version()}\n", "not Hydra's"
