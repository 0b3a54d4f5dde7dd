"""Files of weights without PyTorch: reads .pth (zip or legacy) and .safetensors into NumPy arrays, writes .safetensors.

The pickle inside a .pth is read by `torch_pickle`, which runs nothing. A file is read as a whole; arrays are views of its bytes.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from nest_jax import torch_pickle
from nest_jax.errors import InputError
from nest_jax.storage import plain_disk_errors
from nest_jax.torch_pickle import RefusedError, Storage, Tensor

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
MAX_HEADER = 100_000_000  # bytes; the format's own limit
EXPANSION = 8  # tensors may share numbers, but not be many times larger than their file
WRAPPERS = ("state_dict", "model_state", "model")
# What is often saved under the name of a file of weights.
FOREIGN = {
    b"version https://git-lfs": "a pointer of Git LFS; `git lfs pull` gets the file itself",
    b"<": "a web page or XML; the download went wrong",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"\x89PNG": "a picture",
    b"\x89HDF": "an HDF5 file",
}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict by name, in PyTorch's layout, read-only. A dict inside {"state_dict": ...} or {"model": ...} is taken out.

    Raises:
        InputError: the file is missing, truncated, of another kind, or names something that does not rebuild tensors.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    try:
        found = _decoded(path, data)
    except RefusedError as error:
        raise InputError(f"{path} was refused: it {error}; nothing of it was run") from error
    except InputError:
        raise
    # whatever a damaged file makes the readers trip over
    except Exception as error:
        raise InputError(f"{path} is damaged or cut short ({type(error).__name__}: {error}); get it again") from error
    if not found:
        raise InputError(f"{path} holds no named tensors; a state dict is needed")
    return found


def write_safetensors(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes arrays as they are, and text about them; the file appears whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    names = {np.dtype(dtype): name for name, dtype in SAFETENSORS.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8 bytes, as other readers like it
    with plain_disk_errors(path):
        try:
            with part.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for array in arrays.values():
                    file.write(array.tobytes())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _decoded(path: Path, data: bytes) -> dict[str, np.ndarray]:
    if data[:4] == b"PK\x03\x04":
        return _arrays(_read_zip(path, data), len(data))
    if (
        data[8:9] == b"{"
    ):  # before the next: the length of a header may begin like a pickle, and a legacy file has \xf9 here
        return _read_safetensors(data)
    if data[:1] == b"\x80":
        return _arrays(_read_legacy(path, data), len(data))
    what = next((f": it is {what}" for start, what in FOREIGN.items() if data.startswith(start)), "")
    raise InputError(f"{path} is not a PyTorch (.pth) or .safetensors file{what if data else ': it is empty'}")


def _arrays(found: Any, length: int) -> dict[str, np.ndarray]:
    """The tensors of the state dict in a file of `length` bytes."""
    for wrapper in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    tensors = (
        {name: value for name, value in found.items() if isinstance(value, Tensor)} if isinstance(found, dict) else {}
    )
    if sum(tensor.nbytes for tensor in tensors.values()) > EXPANSION * length:
        raise ValueError(f"tensors that are more than {EXPANSION} times larger than the file")
    return {name: tensor.array() for name, tensor in tensors.items()}


def _read_zip(path: Path, data: bytes) -> Any:
    """PyTorch >= 1.6: an archive of NAME/data.pkl and one member per storage, none of them compressed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        pickles = [member.filename for member in members if member.filename.rsplit("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise InputError(f"{path} is a zip archive, but not one that PyTorch wrote")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("compressed members, which PyTorch does not write")
        if sum(member.file_size for member in members) > len(data):
            raise ValueError("members that are larger than the file")
        folder = pickles[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("numbers in big-endian order")
        storages: dict[str, Storage] = {}

        def storage(dtype: Any, key: str, count: int) -> Storage:
            if key not in storages:
                storages[key] = Storage(dtype, count)
                storages[key].fill(archive.read(f"{folder}data/{key}"))
            return _same(storages[key], dtype, count)

        return torch_pickle.load(io.BytesIO(archive.read(pickles[0])), storage)


def _read_legacy(path: Path, data: bytes) -> Any:
    """PyTorch < 1.6: five pickles (magic number, version, system, the object, storage keys), then the numbers of each storage."""
    start = pickle.dumps(MAGIC, 2)
    if data[: len(start)] != start[: len(data)]:
        raise InputError(f"{path} is a pickle, but not one that PyTorch wrote")
    file, storages = io.BytesIO(data), {}

    def storage(dtype: Any, key: str, count: int) -> Storage:
        return _same(storages.setdefault(key, Storage(dtype, count)), dtype, count)

    torch_pickle.load(file)
    if (version := torch_pickle.load(file)) != VERSION:
        raise ValueError(
            f"version {version!r:.20} of the format, not {VERSION}" if type(version) is int else "no version"
        )
    system = torch_pickle.load(file)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise ValueError("numbers in big-endian order")
    found = torch_pickle.load(file, storage)
    keys = torch_pickle.load(file)
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise ValueError("another list of storages than its tensors need")
    start = file.tell()
    for key in keys:
        count, start = int.from_bytes(data[start : start + 8], "little"), start + 8
        if count != storages[key].count:
            raise EOFError(f"a storage of {count} numbers, its tensors need {storages[key].count}")
        end = start + count * storages[key].dtype.itemsize
        storages[key].fill(memoryview(data)[start:end])
        start = end
    return found


def _same(storage: Storage, dtype: Any, count: int) -> Storage:
    if (storage.dtype, storage.count) != (np.dtype(dtype), count):
        raise ValueError("two tensors that see one storage differently")
    return storage


def _read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """An 8-byte length, a JSON header, then the numbers of one tensor after the other."""
    start = 8 + int.from_bytes(data[:8], "little")
    if start > min(len(data), MAX_HEADER):
        raise EOFError(f"a header of {start - 8} bytes in a file of {len(data)}")
    header = json.loads(data[8:start].decode(), object_pairs_hook=_unique)
    header.pop("__metadata__", None)
    arrays, end = {}, start
    for name, entry in sorted(header.items(), key=_offsets):
        dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in SAFETENSORS:
            raise ValueError(f"numbers of type {torch_pickle.short(dtype)}; read are {', '.join(SAFETENSORS)}")
        if len(shape) > torch_pickle.MAX_DIMENSIONS or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("a tensor of impossible shape")
        if start + first != end:
            raise ValueError("a gap or an overlap between two tensors")
        end = start + last
        storage = Storage(SAFETENSORS[dtype], math.prod(shape))
        storage.fill(memoryview(data)[start + first : end])
        assert storage.data is not None
        arrays[name] = storage.data.reshape(shape)
    if end != len(data):
        raise EOFError(f"{end} bytes expected, {len(data)} found")
    return {name: arrays[name] for name in header}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name that is there twice")
    return dict(pairs)


def _offsets(item: tuple[str, Any]) -> tuple[int, int]:
    first, last = item[1]["data_offsets"]
    if not (type(first) is type(last) is int and 0 <= first <= last):
        raise ValueError("impossible offsets")
    return first, last
