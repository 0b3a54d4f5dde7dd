"""Reading PyTorch's files (.pth, zip or legacy) and .safetensors into NumPy arrays, without PyTorch.

A PyTorch file is a pickle, and unpickling runs what the file says. Here only the functions that rebuild tensors are known; a file
that names anything else is refused, and nothing of it has run.
"""

from __future__ import annotations

import collections
import io
import json
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from nest_jax.errors import InputError

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
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
WRAPPERS = ("state_dict", "model_state", "model")


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict by name, in PyTorch's layout. A dict inside {"state_dict": ...} or {"model": ...} is taken out.

    Raises:
        InputError: the file is missing, truncated, of another kind, or names something that does not rebuild tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
            file.seek(0)
            if start[:4] == b"PK\x03\x04":
                found = _read_zip(file)
            elif start[8:] == b"{":
                found = _read_safetensors(file)
            elif start[:1] == b"\x80":
                found = _read_legacy(file)
            else:
                raise InputError(f"{path} is not a PyTorch (.pth) or .safetensors file")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except _RefusedError as error:
        raise InputError(
            f"{path} was refused: it asks to call {error}, which no file of weights needs; nothing of it was run"
        ) from error
    except InputError:
        raise
    # whatever a damaged pickle makes the unpickler trip over
    except Exception as error:
        raise InputError(f"{path} is damaged or cut short ({type(error).__name__}: {error}); get it again") from error
    for wrapper in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    arrays = {}
    if isinstance(found, dict):
        arrays = {str(key): value for key, value in found.items() if isinstance(value, np.ndarray)}
    if not arrays:
        raise InputError(f"{path} holds no named tensors; a state dict is needed")
    return arrays


class _RefusedError(Exception):
    """The name of a function that is not among those that rebuild tensors."""


class _Ignored:
    """Stands for what a checkpoint records beside its tensors (a NumPy scalar, say) and nobody reads."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Storage:
    """A flat array that legacy files fill in after the pickle; tensors are views that are made when it is full."""

    def __init__(self, dtype: Any, count: int) -> None:
        self.dtype, self.count, self.data = np.dtype(dtype), int(count), None

    def fill(self, raw: bytes) -> None:
        if len(raw) != self.count * self.dtype.itemsize:
            raise EOFError(f"{self.count * self.dtype.itemsize} bytes of numbers expected, {len(raw)} found")
        self.data = np.frombuffer(raw, self.dtype)


class _Tensor:
    """A tensor whose storage may still be empty."""

    def __init__(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.storage, self.offset, self.size, self.stride = storage, int(offset), tuple(size), tuple(stride)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a tensor with a state of its own")

    def array(self) -> np.ndarray:
        data, size, stride = self.storage.data, self.size, self.stride
        if data is None:
            raise EOFError("a tensor without numbers")
        if self.offset < 0 or len(size) != len(stride) or min((*size, *stride), default=0) < 0:
            raise ValueError("a tensor of impossible shape")
        last = self.offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= data.size:
            raise ValueError("a tensor larger than its storage")
        strides = [step * data.itemsize for step in stride]
        # as_strided checks nothing: the lines above do
        return np.lib.stride_tricks.as_strided(data[self.offset :], size, strides).copy()


def _rebuild_tensor(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    return tensor


ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": collections.OrderedDict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.Size": tuple,
    "numpy.dtype": _Ignored,
    "numpy.core.multiarray.scalar": _Ignored,
    "numpy._core.multiarray.scalar": _Ignored,
    "_codecs.encode": _Ignored,
}


class _Unpickler(pickle.Unpickler):
    """Knows the names in `ALLOWED` and PyTorch's storages, and refuses all others."""

    def __init__(self, file: Any, storage: Callable[[Any, str, int], _Storage] | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self._storage = storage

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = f"{module_name}.{global_name}"
        if name in ALLOWED:
            return ALLOWED[name]
        if module_name in ("torch", "torch.storage", "torch.cuda") and global_name in STORAGES:
            return _StorageType(STORAGES[global_name])
        raise _RefusedError(name)

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, count, *view = pid
        if kind != "storage" or self._storage is None or (view and view[0] is not None):
            raise pickle.UnpicklingError(f"a storage of unknown kind {kind!r}")
        return self._storage(storage_type.dtype, str(key), count)


class _StorageType:
    """PyTorch's storage classes, as far as a file needs them; a class of ours so that no file can call it."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype


def _arrays(found: Any) -> Any:
    """Tensors to arrays, in dicts at any depth."""
    if isinstance(found, _Tensor):
        return found.array()
    if isinstance(found, dict):
        return {key: _arrays(value) for key, value in found.items()}
    return found


def _read_zip(file: Any) -> Any:
    """PyTorch >= 1.6: an archive of NAME/data.pkl and one member per storage."""
    with zipfile.ZipFile(file) as archive:
        members = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == "data.pkl"]
        if len(members) != 1:
            raise pickle.UnpicklingError("a zip archive without data.pkl")
        folder = members[0][: -len("data.pkl")]
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise pickle.UnpicklingError("numbers in big-endian order")
        storages: dict[str, _Storage] = {}

        def storage(dtype: Any, key: str, count: int) -> _Storage:
            if key not in storages:
                storages[key] = _Storage(dtype, count)
                if archive.getinfo(f"{folder}data/{key}").file_size != count * storages[key].dtype.itemsize:
                    raise EOFError(f"storage {key} has another length than its tensor")
                storages[key].fill(archive.read(f"{folder}data/{key}"))
            return storages[key]

        return _arrays(_Unpickler(io.BytesIO(archive.read(members[0])), storage).load())


def _read_legacy(file: Any) -> Any:
    """PyTorch < 1.6: five pickles (magic number, version, system, the object, storage keys), then the numbers of each storage."""
    storages: dict[str, _Storage] = {}

    def storage(dtype: Any, key: str, count: int) -> _Storage:
        return storages.setdefault(key, _Storage(dtype, count))

    if (_Unpickler(file).load(), _Unpickler(file).load()) != (MAGIC, VERSION):
        raise InputError(f"{getattr(file, 'name', 'the file')} is a pickle, but not one that PyTorch wrote")
    _Unpickler(file).load()
    found = _Unpickler(file, storage).load()
    for key in _Unpickler(file).load():
        count = int.from_bytes(file.read(8), "little")
        if count != storages[key].count:
            raise EOFError(f"storage {key} has {count} numbers, its tensors need {storages[key].count}")
        storages[key].fill(file.read(count * storages[key].dtype.itemsize))
    return _arrays(found)


def _read_safetensors(file: Any) -> dict[str, np.ndarray]:
    """An 8-byte length, a JSON header, then the numbers."""
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    data, arrays = file.read(), {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        storage = _Storage(SAFETENSORS[entry["dtype"]], math.prod(entry["shape"]))
        storage.fill(data[first:last])
        assert storage.data is not None
        arrays[name] = storage.data.reshape(entry["shape"]).copy()
    return arrays
