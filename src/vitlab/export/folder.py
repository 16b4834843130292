"""Write an export's files, in a folder that appears only when it is complete; the format of vitlab's own names."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from vitlab.config import instantiate
from vitlab.export.checkpoint import ExportModel
from vitlab.storage.atomic import fsync

RECORD, CARD = "export.json", "README.md"


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(file: Path, state: dict[str, Tensor]) -> None:
    """Write a safetensors file."""
    from safetensors.torch import save_file

    file.touch()
    mode = file.stat().st_mode  # as the umask allows; save_file makes files that only their owner can read
    save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, file, metadata={"format": "pt"})
    file.chmod(mode)


def folder_problem(out: Path) -> str | None:
    """Why `out` can't be written; None if it is new or empty."""
    if out.is_symlink():
        return f"out={out} is a link; name the folder that it leads to, {out.resolve()}, or another one"
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    return f"out={out} exists already, and nothing is overwritten; remove it, or name another folder"


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` when the block ends, and is removed when the block fails.

    Raises `OSError` if `out` is neither new nor empty by then.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.new-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            fsync(path)
        temporary.replace(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync(out.parent)


def write_safetensors(trained: ExportModel, folder: Path, *, fold: bool) -> None:
    """Write model.safetensors, and config.json with the key `vitlab` as in a checkpoint."""
    write_tensors(folder / "model.safetensors", dict(trained.network.state_dict()))
    model = {"_target_": trained.weights.config["model"]["_target_"], **trained.arguments}
    data = {"classes": list(trained.classes)}
    config = {"model": model, "classifier": {"loss": trained.loss}}
    identity = {"config": config, "data": data, "preprocessing": trained.preprocessing}
    write_json(folder / "config.json", {"vitlab": identity})


def load_safetensors(folder: Path, trained: ExportModel) -> Callable[[Tensor], Tensor]:
    """Build the network from the folder alone."""
    from safetensors.torch import load_file

    node = json.loads((folder / "config.json").read_text())["vitlab"]["config"]["model"]
    network = instantiate.build_object(node)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    loaded: Callable[[Tensor], Tensor] = network.eval()
    return loaded
