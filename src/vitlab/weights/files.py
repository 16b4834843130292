"""Weight files: safetensors, torch's format, NumPy's .npz and indices of shards, recognized by their content.

Values are read on demand, tensor by tensor, so the file is never in memory together with the model. Nothing in a file
is executed: torch's files are read with `weights_only=True`, .npz without pickles.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitlab.config import allowlist
from vitlab.config.printable import format_names
from vitlab.storage import safe_load

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first bytes of torch's files before 1.6
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}  # safetensors' names
DEEPEST = 2  # levels of nested mappings to search: {"teacher": {"backbone.norm.bias": ...}}


class UnreadableWeights(ValueError):
    """A file that is damaged or holds no weights."""


class StoredTensor(NamedTuple):
    """A tensor in a file; `read` loads its values."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]


class FileContent(NamedTuple):
    """The mappings of tensors in a file by their path in it ("" for the top level), and its other entries."""

    parts: dict[str, dict[str, StoredTensor]]
    plain: Mapping[str, Any]


def read_weights(file: Path) -> FileContent:
    """Names and shapes of a file's tensors. Raises `UnreadableWeights`, or `NotTrusted` if reading would run code."""
    with file.open("rb") as stream:
        start = stream.read(len(LEGACY))
    if start.startswith(b"PK"):
        return read_zip(file)
    if start == LEGACY:
        return read_torch(file, mmap=False)
    if start[8:9] == b"{":
        return FileContent({"": read_safetensors(file)}, {})
    if start[:1] == b"{" and file.stat().st_size < 2**26:
        return FileContent({"": read_shards(file)}, {})
    if start[:1] == b"\x80":
        raise allowlist.NotTrusted(f"{file} is refused: it is a bare pickle, which could run code; use safetensors")
    empty = " (it is empty)" if not start else ""
    raise UnreadableWeights(
        f"{file} is not a file of weights{empty}: not safetensors, torch's format, .npz or an index of shards"
    )


@contextmanager
def explain_damage(file: Path, *errors: type[Exception], member: str = "") -> Iterator[None]:
    """Raise `UnreadableWeights` with the file's name for these errors."""
    try:
        yield
    except (allowlist.NotTrusted, MemoryError):
        raise
    except errors as error:
        where, reason = f" at {member}" if member else "", (str(error) or type(error).__name__).splitlines()[0]
        raise UnreadableWeights(f"{file} is damaged{where} ({reason}); download or copy it again") from error


def read_zip(file: Path) -> FileContent:
    """The content of a zip archive: torch's or NumPy's."""
    with explain_damage(file, zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if any(name.endswith("data.pkl") for name in names):
        return read_torch(file, mmap=True)
    if any(name.endswith(".npy") for name in names):
        return FileContent({"": read_npz(file)}, {})
    raise UnreadableWeights(f"{file} is a zip archive of neither torch nor NumPy; unpack it, and name a file in it")


def read_torch(file: Path, *, mmap: bool) -> FileContent:
    if mmap and (problem := safe_load.corruption(file)):
        raise UnreadableWeights(f"{file} is damaged ({problem}); download or copy it again")
    remedy = "save its weights alone, torch.save(model.state_dict(), ...), where it can be trusted"
    with explain_damage(file, Exception), safe_load.explain_unsafe_pickle(file, remedy):  # damage raises any error
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    parts = state_dicts(content)
    if not parts:
        raise UnreadableWeights(f"{file} holds no named tensors; save a state_dict, or a mapping that contains one")
    return FileContent(parts, {str(k): value for k, value in content.items() if not isinstance(value, Tensor)})


def state_dicts(value: Any, name: str = "", depth: int = 0) -> dict[str, dict[str, StoredTensor]]:
    """All mappings with tensors in them, by their path."""
    if not isinstance(value, Mapping):
        return {}
    tensors = {str(key): memory_tensor(inner) for key, inner in value.items() if isinstance(inner, Tensor)}
    parts = {name: tensors} if tensors else {}
    for key, inner in value.items() if depth < DEEPEST else ():
        parts |= state_dicts(inner, f"{name}.{key}" if name else str(key), depth + 1)
    return parts


def memory_tensor(tensor: Tensor) -> StoredTensor:
    return StoredTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), lambda: tensor)


def read_safetensors(file: Path) -> dict[str, StoredTensor]:
    import safetensors

    with explain_damage(file, safetensors.SafetensorError):
        archive: Any = safetensors.safe_open(file, framework="pt")

    def stored_tensor(name: str) -> StoredTensor:
        part = archive.get_slice(name)
        dtype = str(part.get_dtype())
        return StoredTensor(tuple(part.get_shape()), DTYPES.get(dtype, dtype), lambda: archive.get_tensor(name))

    return {name: stored_tensor(name) for name in archive.keys()}  # noqa: SIM118 (not a mapping)


def read_npz(file: Path) -> dict[str, StoredTensor]:
    """The arrays of an .npz file; two bytes without a type are JAX's bfloat16."""
    damage = (ValueError, zipfile.BadZipFile, EOFError)
    formats = np.lib.format

    def load(name: str) -> Tensor:
        with explain_damage(file, *damage, member=name), zipfile.ZipFile(file) as archive, archive.open(name) as member:
            array = formats.read_array(member, allow_pickle=False)
        if array.dtype == np.dtype("V2"):
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    def stored_tensor(archive: zipfile.ZipFile, name: str) -> StoredTensor:
        with explain_damage(file, *damage, member=name), archive.open(name) as member:
            old = formats.read_magic(member) == (1, 0)
            read_header = formats.read_array_header_1_0 if old else formats.read_array_header_2_0
            shape, _, dtype = read_header(member)
        if dtype.hasobject:
            raise allowlist.NotTrusted(f"{file} is refused: {name} holds Python objects, which could run code")
        return StoredTensor(shape, "bfloat16" if dtype == np.dtype("V2") else str(dtype), lambda: load(name))

    with zipfile.ZipFile(file) as archive:
        return {name.removesuffix(".npy"): stored_tensor(archive, name) for name in archive.namelist()}


def read_shards(index: Path) -> dict[str, StoredTensor]:
    """The tensors of all files in Hugging Face's index, which are in the same folder."""
    with explain_damage(index, json.JSONDecodeError, UnicodeDecodeError):
        names = json.loads(index.read_text()).get("weight_map")
    if not isinstance(names, dict):
        raise UnreadableWeights(f"{index} is not an index of shards: it has no weight_map")
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(set(names.values())):
        if Path(name).name != name:
            raise allowlist.NotTrusted(f"{index} is refused: it names {name}, which is not in its folder")
        if not (index.parent / name).is_file():
            raise UnreadableWeights(f"{index} names {name}, which is missing")
        for part in read_weights(index.parent / name).parts.values():
            tensors |= part
    if missing := [name for name in names if name not in tensors]:
        raise UnreadableWeights(f"{index} names tensors that are not in its shards: {format_names(missing)}")
    return tensors
