"""Files of weights: safetensors, torch's, NumPy's .npz and lists of shards, told apart by what they hold.

`read` looks at names and shapes; a tensor's numbers are read when they are asked for, one tensor at a time, so that a
file is never in memory as a whole beside the model. Nothing in a file is executed: torch's files are read with
`weights_only=True`, .npz without pickles.
"""

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitlab.config import allowlist
from vitlab.storage import safe_load

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch's files began before 1.6
KINDS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}  # as safetensors calls them
DEEPEST = 2  # levels of mappings in which weights are looked for: {"teacher": {"backbone.norm.bias": ...}}


class UnreadableWeights(ValueError):
    """A file of weights that is damaged, or none."""


class StoredTensor(NamedTuple):
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]


class FileContent(NamedTuple):
    """What a file holds: mappings of tensors by where they lie in it ("" for the whole), and plain data beside them."""

    parts: dict[str, dict[str, StoredTensor]]
    plain: Mapping[str, Any]


def read_weights(file: Path) -> FileContent:
    """What a file of weights holds.

    Raises:
        CannotRead: it is damaged, or nothing that holds weights.
        allowlist.NotTrusted: it holds what only running code could read.
    """
    with file.open("rb") as stream:
        start = stream.read(len(LEGACY))
    if start.startswith(b"PK"):
        return is_zip(file)
    if start == LEGACY:
        return read_torch(file, mmap=False)
    if start[8:9] == b"{":
        return FileContent({"": read_safetensors(file)}, {})
    if start[:1] == b"{" and file.stat().st_size < 2**26:
        return FileContent({"": read_sharded(file)}, {})
    if start[:1] == b"\x80":
        raise allowlist.NotTrusted(
            f"{file} is refused: it is a bare pickle, and loading that could run code; use safetensors"
        )
    empty = " (it is empty)" if not start else ""
    raise UnreadableWeights(
        f"{file} is no file of weights{empty}: not safetensors, nor torch's, nor .npz, nor a list of shards"
    )


def is_zip(file: Path) -> FileContent:
    """A zip archive: torch's, or NumPy's."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise UnreadableWeights(f"{file} is damaged or was cut short ({error}); get it again") from error
    if any(name.endswith("data.pkl") for name in names):
        return read_torch(file, mmap=True)
    if any(name.endswith(".npy") for name in names):
        return FileContent({"": read_npz(file)}, {})
    raise UnreadableWeights(
        f"{file} is a zip archive that neither torch nor NumPy wrote; unpack it, and name the file in it"
    )


def read_torch(file: Path, *, mmap: bool) -> FileContent:
    """What torch saved, by `weights_only=True` alone."""
    if mmap and (problem := safe_load.corruption(file)):
        raise UnreadableWeights(f"{file} is damaged ({problem}); get it again")
    remedy = "save its weights alone, torch.save(model.state_dict(), ...), where it can be trusted"
    try:
        with safe_load.explain_unsafe_pickle(file, remedy):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except (allowlist.NotTrusted, MemoryError):
        raise
    except Exception as error:  # broken bytes end in many ways
        raise UnreadableWeights(
            f"{file} is damaged ({(str(error) or type(error).__name__).splitlines()[0]}); get it again"
        ) from error
    parts: dict[str, dict[str, StoredTensor]] = {}
    plain: dict[str, Any] = {}

    def look(name: str, value: Any, depth: int) -> None:
        if not isinstance(value, Mapping):
            return
        tensors = {key: memory_tensor(inner) for key, inner in value.items() if isinstance(inner, Tensor)}
        if tensors:
            parts[name] = {str(key): tensor for key, tensor in tensors.items()}
        for key, inner in value.items():
            if depth < DEEPEST:
                look(f"{name}.{key}" if name else str(key), inner, depth + 1)

    look("", content, 0)
    if isinstance(content, Mapping):
        plain = {str(key): value for key, value in content.items() if not isinstance(value, Tensor)}
    if not parts:
        raise UnreadableWeights(
            f"{file} holds no tensors by name: a state_dict, or a mapping with one in it, is wanted"
        )
    return FileContent(parts, plain)


def memory_tensor(tensor: Tensor) -> StoredTensor:
    """A tensor that torch has, or has mapped from the file."""
    return StoredTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), lambda: tensor)


def read_safetensors(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, not read yet."""
    import safetensors

    try:
        opened: Any = safetensors.safe_open(file, framework="pt")
    except safetensors.SafetensorError as error:
        raise UnreadableWeights(f"{file} is damaged or was cut short ({error}); get it again") from error

    def stored(name: str) -> StoredTensor:
        part = opened.get_slice(name)
        kind = str(part.get_dtype())
        return StoredTensor(tuple(part.get_shape()), KINDS.get(kind, kind), lambda: opened.get_tensor(name))

    return {name: stored(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)


def read_npz(file: Path) -> dict[str, StoredTensor]:
    """The arrays of an .npz file, not read yet; Google's bfloat16 (two bytes without a type) among them."""

    def load(name: str) -> Tensor:
        try:
            with zipfile.ZipFile(file) as archive, archive.open(name) as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
        except (ValueError, zipfile.BadZipFile, EOFError) as error:
            raise UnreadableWeights(f"{file} is damaged at {name} ({error}); get it again") from error
        if array.dtype == np.dtype("V2"):
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    found = {}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            try:
                shape, dtype = read_npz_header(archive, name)
            except (ValueError, zipfile.BadZipFile, EOFError) as error:
                raise UnreadableWeights(f"{file} is damaged at {name} ({error}); get it again") from error
            if dtype.hasobject:
                raise allowlist.NotTrusted(
                    f"{file} is refused: {name} holds Python objects, and reading them could run code"
                )
            key = name.removesuffix(".npy")
            kind = "bfloat16" if dtype == np.dtype("V2") else str(dtype)
            found[key] = StoredTensor(shape, kind, lambda name=name: load(name))  # type: ignore[misc]
    return found


def read_npz_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array in an .npz file."""
    formats = np.lib.format
    with archive.open(name) as member:
        version = formats.read_magic(member)
        read_header = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
        shape, _, dtype = read_header(member)
    return shape, dtype


def read_sharded(index: Path) -> dict[str, StoredTensor]:
    """The tensors of all files that an index (Hugging Face's) names, beside which they lie."""
    try:
        names = json.loads(index.read_text()).get("weight_map")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UnreadableWeights(f"{index} is damaged ({error}); get it again") from error
    if not isinstance(names, dict):
        raise UnreadableWeights(f"{index} is no list of shards: it has no weight_map")
    found: dict[str, StoredTensor] = {}
    for name in sorted(set(names.values())):
        if Path(name).name != name:
            raise allowlist.NotTrusted(f"{index} is refused: it names {name}, which doesn't lie beside it")
        if not (index.parent / name).is_file():
            raise UnreadableWeights(f"{index} names {name}, and that is not there")
        for part in read_weights(index.parent / name).parts.values():
            found |= part
    if missing := [name for name in names if name not in found]:
        raise UnreadableWeights(f"{index} names tensors that its shards don't hold: {', '.join(missing[:5])}")
    return found
