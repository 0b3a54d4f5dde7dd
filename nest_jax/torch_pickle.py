"""The part of pickle that PyTorch's state dicts are written in, read without Python's unpickler.

Unpickling runs what the file says. This reader knows the instructions that PyTorch's own files consist of and the few names that
rebuild tensors; anything else is refused before it has an effect. What it makes is plain: dicts, lists, tuples, numbers, text and
`Tensor`. No module is imported, no object gets attributes, and the work and the memory grow with the length of the file only.
(PyTorch's `weights_only` reader works in this way too.)
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

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
LIMIT = 2_000_000  # instructions; one of ResNet-101 with its optimiser has tens of thousands
MAX_DIMENSIONS = 32
MAX_ARGUMENTS = 16
# Instructions that push their argument, and those that push a constant.
ARGUMENTS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "BINSTRING", "SHORT_BINSTRING")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class RefusedError(Exception):
    """What a file asks for and no file of weights needs."""


class Storage:
    """A flat array; legacy files give its numbers after the pickle."""

    def __init__(self, dtype: Any, count: int) -> None:
        self.dtype, self.count, self.data = np.dtype(dtype), count, None

    def fill(self, raw: bytes | memoryview) -> None:
        """Takes the bytes as its numbers, without copying them."""
        if len(raw) != self.count * self.dtype.itemsize:
            raise EOFError(f"{self.count * self.dtype.itemsize} bytes of numbers expected, {len(raw)} found")
        self.data = np.frombuffer(raw, self.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage that may still be empty."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """What the array would take as a copy of its own."""
        return math.prod(self.size) * self.storage.dtype.itemsize

    def array(self) -> np.ndarray:
        """The view as a read-only array; no number is copied."""
        data = self.storage.data
        if data is None:
            raise EOFError("a tensor without numbers")
        last = self.offset + sum((count - 1) * step for count, step in zip(self.size, self.stride, strict=True))
        if math.prod(self.size) and last >= data.size:
            raise ValueError("a tensor larger than its storage")
        if not math.prod(self.size):
            return np.zeros(self.size, data.dtype)
        # as_strided checks nothing: the lines above do
        strides = [step * data.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(data[self.offset :], self.size, strides, writeable=False)


@dataclasses.dataclass(frozen=True, eq=False)
class _Name:
    """A name that a file may mention: a function of ours in the place of PyTorch's, or a type of numbers."""

    function: Callable[..., Any] | None = None
    dtype: Any = None


class _Ignored:
    """Stands for what a checkpoint records beside its tensors (a NumPy scalar, say) and nobody reads."""


IGNORED = _Ignored()


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not (isinstance(storage, Storage) and type(size) is type(stride) is tuple):
        raise pickle.UnpicklingError("a tensor that is not made of storage, offset, size and stride")
    if not len(size) == len(stride) <= MAX_DIMENSIONS or not all(
        type(number) is int and number >= 0 for number in (offset, *size, *stride)
    ):
        raise pickle.UnpicklingError("a tensor of impossible shape")
    return Tensor(storage, offset, size, stride)


def _rebuild_parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise pickle.UnpicklingError("a parameter that is not a tensor")
    return tensor


def _ordered_dict(pairs: Any = ()) -> dict:
    """Python 3 writes `OrderedDict()` and sets the items after; Python 2 gave a list of [key, value]."""
    made: dict[str, Any] = {}
    for pair in pairs if type(pairs) is list else ():
        key, value = pair if type(pair) in (list, tuple) else (None, None)
        _set(made, key, value)
    return made


def _size(values: Any = ()) -> tuple:
    if type(values) is not tuple:
        raise pickle.UnpicklingError("a torch.Size of something else than a tuple")
    return values


def _ignored(*_: Any) -> _Ignored:
    return IGNORED


NAMES = {
    "collections.OrderedDict": _Name(_ordered_dict),
    "torch._utils._rebuild_tensor": _Name(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Name(_rebuild_tensor),
    "torch._utils._rebuild_parameter": _Name(_rebuild_parameter),
    "torch.Size": _Name(_size),
    **{
        f"numpy.{name}": _Name(_ignored)
        for name in (
            "dtype",
            "ndarray",
            *(f"{core}.multiarray.{f}" for core in ("core", "_core") for f in ("scalar", "_reconstruct")),
        )
    },
    "_codecs.encode": _Name(_ignored),
    **{
        f"{module}.{name}": _Name(dtype=dtype)
        for name, dtype in STORAGES.items()
        for module in ("torch", "torch.storage", "torch.cuda")
    },
}


def load(file: io.BytesIO, storage: Callable[[Any, str, int], Storage] | None = None) -> Any:
    """The object of the pickle that begins here; the file then stands behind it.

    Args:
        file: of bytes in memory.
        storage: the storage of a (dtype, key, count); without it the pickle may hold no tensors.

    Raises:
        RefusedError: it names a function or uses an instruction that is not in this module; the message says which.
        Exception: of any kind, where the pickle is damaged.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stacks below the open MARKs
    memo: dict[int, Any] = {}
    left = LIMIT
    for opcode, argument, position in pickletools.genops(file):
        name = opcode.name
        left -= 1
        if left < 0:
            raise RefusedError(f"has more than {LIMIT:,} pickle instructions")
        if name in ARGUMENTS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])  # type: ignore[index]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]  # type: ignore[index]
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            outer.append(stack)
            stack = []
        elif name in TUPLES:
            stack.append(tuple(_popped(stack, TUPLES[name])))
        elif name == "TUPLE":
            items, stack = stack, outer.pop()
            stack.append(tuple(items))
        elif name in ("APPEND", "SETITEM"):
            items = _popped(stack, 1 if name == "APPEND" else 2)
            _extend(stack[-1], items, name)
        elif name in ("APPENDS", "SETITEMS"):
            items, stack = stack, outer.pop()
            _extend(stack[-1], items, name)
        elif name == "GLOBAL":
            stack.append(_named(str(argument).replace(" ", ".", 1)))
        elif name == "REDUCE":
            arguments = stack.pop()
            # a list may be given to many functions: what they make of it counts like instructions
            left -= sum(len(value) for value in arguments if type(value) is list) if type(arguments) is tuple else 0
            stack.append(_call(stack.pop(), arguments))
        elif name == "BINPERSID":
            stack.append(_stored(stack.pop(), storage))
        elif name == "BUILD":
            stack.pop()  # a state dict's `_metadata`, an array's numbers: nobody reads them
            if type(stack[-1]) is not dict and stack[-1] is not IGNORED:
                raise pickle.UnpicklingError("a state for something that has none")
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            said = "" if argument is None else f" {short(argument)}"
            raise RefusedError(
                f"uses the pickle instruction {name}{said} (byte {position}), which PyTorch never writes"
            )
    raise EOFError("a pickle without its end")


def _popped(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise pickle.UnpicklingError("a pickle that takes more than it has put down")
    items = stack[-count:]
    del stack[-count:]
    return items


def _named(name: str) -> _Name:
    if name not in NAMES:
        raise RefusedError(f"asks for {short(name)}, which no file of weights needs")
    return NAMES[name]


def short(text: object) -> str:
    """A name out of a file, fit for a terminal."""
    return repr(text[:100] if isinstance(text, str | bytes | bytearray) else text)


def _call(function: Any, arguments: Any) -> Any:
    if function is IGNORED:
        return IGNORED
    if not (isinstance(function, _Name) and function.function):
        raise pickle.UnpicklingError("a call of something that is no function")
    if type(arguments) is not tuple or len(arguments) > MAX_ARGUMENTS:
        raise pickle.UnpicklingError("a call without its arguments")
    return function.function(*arguments)


def _extend(target: Any, items: list[Any], name: str) -> None:
    if name.startswith("APPEND") and type(target) is list:
        target.extend(items)
    elif name.startswith("SETITEM") and type(target) is dict and len(items) % 2 == 0:
        for key, value in zip(items[::2], items[1::2], strict=True):
            _set(target, key, value)
    else:
        raise pickle.UnpicklingError(f"{name} without its list or dict")


def _set(target: dict, key: Any, value: Any) -> None:
    # Tensors have names. Other keys (an optimiser's numbers) are not read; a nested tuple could take years to hash.
    if type(key) is str:
        target[key] = value


def _stored(pid: Any, storage: Callable[[Any, str, int], Storage] | None) -> Storage:
    """PyTorch's persistent id: ("storage", type, key, device, count) and, in legacy files, the view, which is None."""
    if not (type(pid) is tuple and len(pid) in (5, 6) and type(pid[2]) is str and type(pid[4]) is int):
        raise pickle.UnpicklingError("a persistent id that is not a storage's")
    kind, storage_type, key, _, count, *view = pid
    if kind != "storage" or not isinstance(storage_type, _Name) or storage_type.dtype is None or count < 0:
        raise pickle.UnpicklingError("a persistent id that is not a storage's")
    if storage is None or any(part is not None for part in view):
        raise pickle.UnpicklingError("a storage where none can be")
    return storage(storage_type.dtype, key, count)
