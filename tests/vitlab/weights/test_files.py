"""Files are recognized by their content, damage is reported, and nothing in a file is executed."""

import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitlab.config import allowlist
from vitlab.weights import files
from vitlab.weights.files import StoredTensor, UnreadableWeights, read_weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([0.5, -2.0])}


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def write_shards(file: Path) -> None:
    names = {}
    for number, (name, value) in enumerate(STATE.items()):
        names[name] = f"part-{number}.safetensors"
        save_file({name: value}, file.with_name(names[name]))
    file.write_text(json.dumps({"metadata": {}, "weight_map": names}))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "safetensors": lambda file: save_file(STATE, file),
    "torch": lambda file: torch.save(STATE, file),
    "torch before 1.6": lambda file: torch.save(STATE, file, _use_new_zipfile_serialization=False),
    "npz": lambda file: file.write_bytes(npz({k: v.numpy() for k, v in STATE.items()})),
    "shards": write_shards,
}


def npz(arrays: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def numbers(part: dict[str, StoredTensor]) -> dict[str, Tensor]:
    return {name: stored.read() for name, stored in part.items()}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_is_known_by_its_content_whatever_its_name(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](file := tmp_path / "weights.dat")
    (part,) = read_weights(file).parts.values()
    assert {name: (stored.shape, stored.dtype) for name, stored in part.items()} == {
        "a.weight": ((2, 3), "float32"),
        "a.bias": ((2,), "float32"),
    }
    assert all(torch.equal(value, STATE[name]) for name, value in numbers(part).items())


def test_networks_in_mappings_are_read_with_the_other_entries(tmp_path: Path) -> None:
    torch.save(
        {"epoch": 3, "teacher": STATE, "deep": {"er": STATE}, "optimizer": {"state": {0: STATE}}}, tmp_path / "x"
    )
    content = read_weights(tmp_path / "x")
    assert set(content.parts) == {"teacher", "deep.er"}
    assert content.plain["epoch"] == 3
    torch.save(STATE | {"epoch": 3}, tmp_path / "y")
    assert read_weights(tmp_path / "y").plain == {"epoch": 3}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_was_cut_short_is_named(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](file := tmp_path / "weights")
    complete = file.read_bytes()
    for length in (len(complete) // 2, len(complete) - 5):
        file.write_bytes(complete[:length])
        with pytest.raises(UnreadableWeights, match=r"weights .*(damaged|can't be read)"):
            numbers(next(iter(read_weights(file).parts.values())))


@pytest.mark.parametrize("kind", ["torch", "npz"])
def test_a_changed_byte_is_noticed(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](file := tmp_path / "weights")
    complete = file.read_bytes()
    place = complete.index(STATE["a.weight"].numpy().tobytes()) + 5
    file.write_bytes(complete[:place] + bytes([complete[place] ^ 1]) + complete[place + 1 :])
    with pytest.raises(UnreadableWeights, match="damaged"):
        numbers(next(iter(read_weights(file).parts.values())))


@pytest.mark.parametrize(
    ("error", "member", "message"),
    [
        (ValueError("no\nmore"), "", r"^x is damaged \(no\); download or copy it again$"),
        (EOFError(), "a.npy", r"^x is damaged at a\.npy \(EOFError\); download"),
    ],
)
def test_damage_has_a_place_and_a_reason_of_one_line(error: Exception, member: str, message: str) -> None:
    with pytest.raises(UnreadableWeights, match=message), files.explain_damage(Path("x"), Exception, member=member):
        raise error


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of mapped files")
def test_a_torch_file_is_mapped_into_memory_not_read(tmp_path: Path) -> None:
    WRITERS["torch"](file := tmp_path / "weights")
    content = read_weights(file)
    assert str(file) in Path("/proc/self/maps").read_text()
    assert torch.equal(content.parts[""]["a.bias"].read(), STATE["a.bias"])


def test_a_file_that_is_exchanged_after_it_was_opened_runs_no_code(tmp_path: Path) -> None:
    exploded, file = tmp_path / "exploded", tmp_path / "weights"
    file.write_bytes(npz({"x": np.zeros(2)}))
    stored = read_weights(file).parts[""]["x"]
    objects: Any = np.array([Bomb(exploded)], dtype=object)
    file.write_bytes(npz({"x": objects}))
    with pytest.raises(UnreadableWeights, match="Object arrays cannot be loaded"):
        stored.read()
    assert not exploded.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare", "npz"])
def test_a_file_that_would_run_code_is_refused_and_does_not(kind: str, tmp_path: Path) -> None:
    exploded, file = tmp_path / "exploded", tmp_path / "weights.pth"
    if kind in ("zip", "legacy"):
        torch.save({**STATE, "x": Bomb(exploded)}, file, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "bare":
        file.write_bytes(pickle.dumps({"x": Bomb(exploded)}))
    else:
        arrays: dict[str, Any] = {"a": np.zeros(2), "x": np.array([Bomb(exploded)], dtype=object)}
        file.write_bytes(npz(arrays))
    with pytest.raises(allowlist.NotTrusted, match="is refused"):
        read_weights(file)
    assert not exploded.exists()


def test_an_index_reads_no_file_elsewhere(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "secret")
    (tmp_path / "in").mkdir()
    (index := tmp_path / "in" / "i.json").write_text(json.dumps({"weight_map": {"a.weight": "../secret"}}))
    with pytest.raises(allowlist.NotTrusted, match=r"names \.\./secret, which is not in its folder"):
        read_weights(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"hello, world", "is not a file of weights"),
        (b"{}", "has no weight_map"),
        (b'{"weight_map": {"a.weight": "gone"}}', "names gone, which is missing"),
        (b'{"weight_map": {"b": "there"}}', "names tensors that are not in its shards: b"),
    ],
)
def test_other_files_are_refused_with_a_reason(content: bytes, message: str, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "there")
    (file := tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UnreadableWeights, match=message):
        read_weights(file)


def test_a_file_of_64_mebibytes_is_no_index_and_is_not_read(tmp_path: Path) -> None:
    with (file := tmp_path / "x").open("wb") as stream:
        stream.write(b'{"a": 1}')
        stream.truncate(2**26)
    with pytest.raises(UnreadableWeights, match="is not a file of weights"):
        read_weights(file)


def test_a_zip_of_something_else_and_a_torch_file_without_tensors_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UnreadableWeights, match="of neither torch nor NumPy"):
        read_weights(tmp_path / "x")
    torch.save({"epoch": 1}, tmp_path / "y")
    with pytest.raises(UnreadableWeights, match="holds no named tensors"):
        read_weights(tmp_path / "y")


def test_bfloat16_of_jax_is_read(tmp_path: Path) -> None:
    value = torch.tensor([1.5, -2.25]).to(torch.bfloat16)
    raw = value.view(torch.int16).numpy().view(np.dtype("V2"))
    (tmp_path / "x").write_bytes(npz({"w": raw}))
    stored = read_weights(tmp_path / "x").parts[""]["w"]
    assert stored.dtype == "bfloat16"
    assert torch.equal(stored.read(), value)


def test_values_are_read_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["npz"](tmp_path / "x")
    part = read_weights(tmp_path / "x").parts[""]
    (tmp_path / "x").unlink()
    assert part["a.bias"].shape == (2,)
    with pytest.raises(FileNotFoundError):
        part["a.bias"].read()
    assert files.DEEPEST == 2
