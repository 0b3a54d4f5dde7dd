"""Files that nobody should trust: pickles written instruction by instruction, bombs, cut and foreign files. And one that PyTorch wrote."""

import copyreg
import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nest_jax import torch_files, torch_pickle
from nest_jax.errors import InputError

GOLDEN = Path(__file__).parent / "golden"


# ------------------------------------------------------------------------------------------------------ a small pickle assembler


def text(value: str) -> bytes:
    """BINUNICODE."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    """BININT, or LONG1 where it is larger."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(path: str) -> bytes:
    """GLOBAL."""
    module, _, function = path.rpartition(".")
    return f"c{module}\n{function}\n".encode()


def row(*parts: bytes) -> bytes:
    """MARK ... TUPLE."""
    return b"(" + b"".join(parts) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    """REDUCE."""
    return function + row(*arguments) + b"R"


def table(**items: bytes) -> bytes:
    """EMPTY_DICT, MARK ... SETITEMS."""
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def numbers(*values: int) -> bytes:
    return row(*(number(value) for value in values))


def storage(
    count: int = 4, key: str = "0", kind: bytes | None = None, view: bytes = b"", word: str = "storage"
) -> bytes:
    """BINPERSID."""
    return row(text(word), kind or name("torch.FloatStorage"), text(key), text("cpu"), number(count), view) + b"Q"


def tensor(
    size: bytes = numbers(4), stride: bytes = numbers(1), offset: bytes = number(0), storage: bytes = storage()
) -> bytes:
    ordered = call(name("collections.OrderedDict"))
    return call(name("torch._utils._rebuild_tensor_v2"), storage, offset, size, stride, b"\x89", ordered)


FOUR = np.array([1, 2, 3, 4], np.float32)


def zipped(body: bytes, members: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """PyTorch's archive around a pickle's instructions; the members are called net/..."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("net/data.pkl", b"\x80\x02" + body + b".")
        for member, data in ({"data/0": FOUR.tobytes()} | (members or {})).items():
            archive.writestr(f"net/{member}", data)
    return file.getvalue()


def legacy(
    body: bytes, keys: tuple[str, ...] = ("0",), counts: tuple[int, ...] = (4,), data: bytes = FOUR.tobytes()
) -> bytes:
    start = b"".join(
        pickle.dumps(value, 2) for value in (torch_files.MAGIC, torch_files.VERSION, {"little_endian": True})
    )
    raw = b"".join(struct.pack("<Q", count) + data for count in counts)
    return start + b"\x80\x02" + body + b"." + pickle.dumps(list(keys), 2) + raw


def safetensors(header: object, data: bytes = FOUR.tobytes()) -> bytes:
    head = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data


def entry(first: int = 0, last: int = 16, dtype: str = "F32", shape: tuple = (4,)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": (first, last)}


def saved(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --------------------------------------------------------------------------------------------------------- what is read


def test_a_file_that_pytorch_wrote():
    """torch.save of {"epoch", "model_state", "optimizer_state", "best_score": np.float64}, by PyTorch 2.13."""
    found = torch_files.read(GOLDEN / "saved_by_torch_2.13.pth")
    shapes = {key: value.shape for key, value in found.items()}
    layers = {"0.weight": (1, 2), "0.bias": (1,), "1.weight": (1,), "1.bias": (1,)}
    assert shapes == layers | {"1.running_mean": (1,), "1.running_var": (1,), "1.num_batches_tracked": ()}
    assert found["0.weight"].tolist() == [[1.5, -2.0]] and found["0.bias"] == 0.25 and found["1.running_mean"] == 3
    assert found["1.num_batches_tracked"] == 1 and found["1.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize("wrap", [zipped, legacy])
def test_handwritten_files_are_read(tmp_path, wrap):
    """So that those below are refused for what is wrong with them."""
    size = call(name("torch.Size"), numbers(2, 2))
    square = tensor(size, numbers(1, 2))
    parameter = call(name("torch._utils._rebuild_parameter"), tensor(), b"\x88", call(name("collections.OrderedDict")))
    dtype = call(name("numpy.dtype"), text("f8"), number(0), number(1)) + row(number(3), text("<")) + b"b"
    scalar = call(name("numpy.core.multiarray.scalar"), dtype, call(name("_codecs.encode"), text("x"), text("latin1")))
    metadata = table(_metadata=table(version=number(1)), items=number(3)) + b"b"  # OrderedDict's attributes are not set
    inner = call(name("collections.OrderedDict")) + b"(" + text("a") + square + text("b") + parameter + b"u" + metadata
    found = torch_files.read(saved(tmp_path / "net.pth", wrap(table(best=scalar, state_dict=inner, epoch=number(7)))))
    assert {key: value.tolist() for key, value in found.items()} == {"a": [[1, 3], [2, 4]], "b": [1, 2, 3, 4]}


def test_pickles_of_python_2_are_read(tmp_path):
    pair = b"](" + b"U\x01a" + tensor() + b"e"  # EMPTY_LIST, SHORT_BINSTRING, APPENDS
    body = call(name("collections.OrderedDict"), b"](" + pair + b"e")
    assert list(torch_files.read(saved(tmp_path / "net.pth", legacy(body)))) == ["a"]


def test_the_length_of_a_header_may_look_like_a_pickle(tmp_path):
    head = json.dumps({"a": entry()}).encode().ljust(0x80)
    content = struct.pack("<Q", 0x80) + head + FOUR.tobytes()
    assert torch_files.read(saved(tmp_path / "net.safetensors", content))["a"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
)
def test_safetensors_are_written_and_read(tmp_path, dtype):
    import jax.numpy as jnp

    arrays = {
        "a": np.arange(6).reshape(2, 3).T.astype(jnp.dtype(dtype)),
        "empty": np.zeros((0, 2)),
        "one": np.float32(3),
    }
    arrays["one"] = np.asarray(arrays["one"])
    path = tmp_path / "net.safetensors"
    torch_files.write_safetensors(path, arrays, {"format": "pt"})
    found = torch_files.read(path)
    assert list(found) == list(arrays) and (8 + struct.unpack("<Q", path.read_bytes()[:8])[0]) % 8 == 0
    for key, array in arrays.items():
        assert found[key].dtype == array.dtype and found[key].shape == array.shape
        np.testing.assert_array_equal(found[key], array)
    with pytest.raises(InputError, match=r"no/net.safetensors: cannot be written"):
        torch_files.write_safetensors(tmp_path / "no" / "net.safetensors", arrays, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.safetensors"]


# ------------------------------------------------------------------------------------------------- code that must not run


def command(trace: Path) -> str:
    return f"touch {trace}"


SYSTEM = name("posix.system")
LAZY = name("builtins.tuple") + name("builtins.map") + SYSTEM  # tuple(map(system, (command,))) calls while it is made
# Every way in which a pickle calls a function: (instructions, what the message names).
CALLS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "REDUCE": (lambda trace: SYSTEM + text(command(trace)) + b"\x85R", "'posix.system'"),
    "REDUCE of eval": (
        lambda trace: call(name("builtins.eval"), text(f"open({str(trace)!r}, 'w').close()")),
        "'builtins.eval'",
    ),
    "INST": (lambda trace: b"(" + text(command(trace)) + b"iposix\nsystem\n", "INST 'posix system'"),
    "OBJ": (lambda trace: b"(" + SYSTEM + text(command(trace)) + b"o", "'posix.system'"),
    "NEWOBJ": (lambda trace: LAZY + row(text(command(trace))) + b"\x86\x81\x85\x81", "'builtins.tuple'"),
    "NEWOBJ_EX": (lambda trace: LAZY + row(text(command(trace))) + b"\x86}\x92\x85}\x92", "'builtins.tuple'"),
    "STACK_GLOBAL": (
        lambda trace: b"\x8c\x05posix\x8c\x06system\x93" + text(command(trace)) + b"\x85R",
        "SHORT_BINUNICODE 'posix'",
    ),
    "EXT1": (lambda trace: b"\x82\xf0" + text(command(trace)) + b"\x85R", "EXT1 240"),
    "EXT2": (lambda trace: b"\x83" + struct.pack("<H", 0xF0F0) + text(command(trace)) + b"\x85R", "EXT2 61680"),
    "EXT4": (lambda trace: b"\x84" + struct.pack("<i", 0xF0F0F0) + text(command(trace)) + b"\x85R", "EXT4 15790320"),
    "BUILD": (
        # an instance's own __setstate__ is called by the next BUILD
        lambda trace: (
            call(name("collections.OrderedDict")) + table(__setstate__=SYSTEM) + b"b" + text(command(trace)) + b"b"
        ),
        "'posix.system'",
    ),
}
EXTENSIONS = {"EXT1": 0xF0, "EXT2": 0xF0F0, "EXT4": 0xF0F0F0}


@pytest.fixture
def extension(case):
    """The registry that EXT1, EXT2 and EXT4 look into; some program may have filled it."""
    if case in EXTENSIONS:
        copyreg.add_extension("posix", "system", EXTENSIONS[case])
    yield
    if case in EXTENSIONS:
        copyreg.remove_extension("posix", "system", EXTENSIONS[case])


@pytest.mark.parametrize("wrap", [zipped, legacy])
@pytest.mark.parametrize("case", CALLS)
def test_nothing_is_called(tmp_path, extension, case, wrap):
    body, named = CALLS[case]
    trace = tmp_path / "was_here"
    path = saved(tmp_path / "net.pth", wrap(body(trace)))
    with pytest.raises(InputError) as error:
        torch_files.read(path)
    assert named in str(error.value) and "refused" in str(error.value) and "nothing of it was run" in str(error.value)
    assert not trace.exists()
    pickle.loads(b"\x80\x04" + body(trace) + b".")
    assert trace.exists()  # the instructions would have worked


def test_our_own_functions_stay_as_they_are(tmp_path):
    """BUILD with (None, {...}) sets attributes: of a function that the pickle may name, in Python's unpickler."""
    for named in ("torch._utils._rebuild_tensor_v2", "collections.OrderedDict", "torch.FloatStorage", "numpy.dtype"):
        state = row(b"N", table(__defaults__=numbers(1), function=number(1), __name__=text("x"))) + b"b"
        path = saved(tmp_path / "net.pth", zipped(name(named) + state))
        with pytest.raises(InputError, match="a state for something that has none"):
            torch_files.read(path)
    assert torch_pickle._rebuild_tensor.__defaults__ is None


# --------------------------------------------------------------------------------------------------------- wrong and too large

REBUILD = name("torch._utils._rebuild_tensor_v2")
ORDERED = name("collections.OrderedDict")
DOUBLED = b")" + b"".join(b"q\x00h\x00\x86" for _ in range(80))  # ((((), ()), ((), ())), ...): 2 ** 80 leaves
DEEP = 5_000  # Python calls go 1000 deep
LONG_LIST = b"](" + b"N" * 10_000 + b"eq\x01"

# What makes a pickle wrong: (instructions, what the message says).
PICKLES: dict[str, tuple[bytes, str]] = {
    # persistent ids
    "PERSID of protocol 0": (b"Pstorage\n", "refused.*PERSID 'storage'"),
    "a persistent id that is text": (text("storage") + b"Q", "persistent id"),
    "a persistent id of two parts": (row(text("storage"), number(1)) + b"Q", "persistent id"),
    "a persistent id of another kind": (storage(word="module"), "persistent id"),
    "a storage of a type that is none": (storage(kind=text("float")), "persistent id"),
    "a storage of a function's type": (storage(kind=REBUILD), "persistent id"),
    "a storage of a negative count": (storage(-1), "persistent id"),
    "a storage that is a view": (storage(view=row(text("1"), number(0), number(4))), "a storage where none can be"),
    "a storage that is not there": (tensor(storage=storage(key="7")), "damaged"),
    "a storage outside the folder": (tensor(storage=storage(key="../../../etc/passwd")), "damaged"),
    "a storage of another length": (tensor(storage=storage(5)), "damaged"),
    "one storage, two types": (
        table(a=tensor(), b=tensor(storage=storage(4, kind=name("torch.IntStorage")))),
        "see one storage differently",
    ),
    # calls of what may be called, with what it is not made for
    "a tensor of nothing": (call(REBUILD), "damaged"),
    "a tensor of None": (call(REBUILD, b"N", number(0), numbers(4), numbers(1)), "not made of storage"),
    "a tensor of a tensor": (tensor(storage=tensor()), "not made of storage"),
    "a size that is text": (tensor(text("4")), "not made of storage"),
    "a size of text": (tensor(row(text("4"))), "impossible shape"),
    "a negative size": (tensor(numbers(-4)), "impossible shape"),
    "a negative stride": (tensor(stride=numbers(-1)), "impossible shape"),
    "a negative offset": (tensor(offset=number(-1)), "impossible shape"),
    "a size of True": (tensor(row(b"\x88")), "impossible shape"),
    "fewer strides than sizes": (tensor(numbers(2, 2)), "impossible shape"),
    "99 dimensions": (tensor(numbers(*[1] * 99), numbers(*[1] * 99)), "impossible shape"),
    "a parameter of a number": (call(name("torch._utils._rebuild_parameter"), number(1)), "not a tensor"),
    "a torch.Size of text": (call(name("torch.Size"), text("x" * 1000)), "something else than a tuple"),
    "a call of a storage type": (call(name("torch.FloatStorage"), number(4)), "no function"),
    "a call of text": (call(text("eval"), text("1")), "no function"),
    "arguments that are a list": (ORDERED + b"]R", "without its arguments"),
    "99 arguments": (call(ORDERED, *[b"N"] * 99), "without its arguments"),
    # other names
    "torch.load": (name("torch.load"), "refused.*'torch.load'"),
    "a name like an allowed one": (name("collections.OrderedDict.fromkeys"), "refused"),
    "a subclass of dict": (
        call(name("collections.defaultdict"), name("builtins.list")),
        "refused.*'collections.defaultdict'",
    ),
    "a terminal's escape in a name": (name("os.\x1b[2J"), r"refused.*'os.\\x1b\[2J'"),
    "a very long name": (name("os." + "x" * 10**6), r"refused: it asks for '.{100}'"),
    "a name that is not text": (b"c\xff\xfe\nx\n", "damaged"),
    # instructions in the wrong place
    "an unknown instruction": (b"\xff", "damaged"),
    "POP": (b"N0", "refused.*'?POP"),
    "DUP": (b"}2", "refused.*'?DUP"),
    "a frame of protocol 4": (b"\x95" + struct.pack("<Q", 2) + b"}.", "refused.*FRAME 2"),
    "a memo that was not filled": (b"h\x07", "damaged"),
    "MARK alone": (b"(", "damaged"),
    "TUPLE without MARK": (b"Nt", "damaged"),
    "TUPLE3 of one": (b"N\x87", "takes more than it has put down"),
    "SETITEM without a dict": (b"]" + text("a") + b"Ns", "without its list or dict"),
    "SETITEMS of three": (b"}(" + text("a") + b"NNu", "without its list or dict"),
    "APPENDS to a dict": (b"}(Ne", "without its list or dict"),
    "APPEND to a tensor": (tensor() + b"Na", "without its list or dict"),
    "BUILD of a tensor": (tensor() + b"}b", "a state for something that has none"),
    "nothing at all": (b"", "damaged"),
    # bombs
    "text of 4 GiB": (b"X" + struct.pack("<I", 2**32 - 1) + b"abc", "damaged"),
    "text of 2**62 bytes": (b"\x8d" + struct.pack("<Q", 2**62) + b"abc", "damaged"),
    "bytes of 2**40": (b"\x8e" + struct.pack("<Q", 2**40) + b"abc", "damaged"),
    "a bytearray of 2**40": (b"\x96" + struct.pack("<Q", 2**40) + b"abc", "damaged"),
    "an integer of 2 GiB": (b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc", "damaged"),
    "an integer of many digits": (b"L" + b"9" * 10_000 + b"L\n", "damaged"),
    "2**80 leaves": (DOUBLED, "no named tensors"),
    "2**80 leaves as a key": (b"}" + DOUBLED + b"Ns", "no named tensors"),
    "2**80 leaves as a size": (tensor(DOUBLED), "impossible shape"),
    "2**80 leaves as a storage": (DOUBLED + b"Q", "persistent id"),
    "2**80 leaves called": (DOUBLED + b")R", "no function"),
    "nested lists": (b"]" * DEEP + b"a" * (DEEP - 1), "no named tensors"),
    "nested tuples": (b")" + b"\x85" * DEEP, "no named tensors"),
    "nested dicts": (b"}" + (text("state_dict") + b"}") * DEEP + b"s" * DEEP, "no named tensors"),
    "a dict in itself": (b"}q\x00" + text("model") + b"h\x00s", "no named tensors"),
    "one list, a thousand dicts": (LONG_LIST + (ORDERED + b"h\x01\x85R") * 1000, "more than 20,000 pickle instr"),
    "very many marks": (b"(" * 20_001, "more than 20,000 pickle instr"),
    "10**12 numbers of one": (tensor(numbers(10**12), numbers(0)), "damaged|no named"),
    "10**12 numbers of one, by name": (table(a=tensor(numbers(10**12), numbers(0))), "times larger than the file"),
    "10**36 numbers": (table(a=tensor(numbers(*[10**12] * 3), numbers(0, 0, 0))), "times larger than the file"),
    "numbers behind the end": (table(a=tensor(offset=number(2))), "larger than its storage"),
    "an offset of 2**70": (table(a=tensor(offset=number(2**70))), "larger than its storage"),
    "a stride of 2**70": (table(a=tensor(numbers(2), numbers(2**70))), "larger than its storage"),
}


def refused(path: Path, content: bytes, message: str) -> None:
    """The file is answered with `message`, and with little memory."""
    saved(path, content)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message) as error:
            torch_files.read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value) and len(str(error.value)) < 600
    assert peak < 5e6 + 200 * len(content)


@pytest.mark.parametrize("case", PICKLES)
def test_wrong_pickles_are_refused(tmp_path, monkeypatch, case):
    monkeypatch.setattr(torch_pickle, "LIMIT", 20_000)
    body, message = PICKLES[case]
    refused(tmp_path / "net.pth", zipped(body), message)


def test_views_share_their_numbers_up_to_a_limit(tmp_path):
    data = np.zeros(20_000, np.float32)

    def file(count: int) -> bytes:
        views = {f"t{i}": tensor(numbers(20_000), storage=storage(20_000)) for i in range(count)}
        return zipped(table(**views), {"data/0": data.tobytes()})

    found = torch_files.read(saved(tmp_path / "net.pth", file(7)))
    assert len(found) == 7 and all(np.shares_memory(array, found["t0"]) for array in found.values())
    with pytest.raises(ValueError, match="read-only"):
        found["t0"][0] = 1
    refused(tmp_path / "net.pth", file(9), "times larger than the file")


def patched(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content and len(old) == len(new)
    return content.replace(old, new)


def overlapping() -> bytes:
    """An archive whose directory names the same bytes many times."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02}.")
        archive.writestr("net/data/0", bytes(100_000))
        first = archive.getinfo("net/data/0")
        for index in range(1, 20):
            other = zipfile.ZipInfo(f"net/data/{index}")
            for field in ("header_offset", "file_size", "compress_size", "CRC", "compress_type"):
                setattr(other, field, getattr(first, field))
            archive.filelist.append(other)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, weight=FOUR)
    return file.getvalue()


WHOLE = table(a=tensor())
HEADER = {"a": entry()}
# Whole files: (content, what the message says).
FILES: dict[str, tuple[bytes, str]] = {
    # archives
    "compressed members": (zipped(WHOLE, {"data/0": bytes(10**6)}, zipfile.ZIP_DEFLATED), "compressed members"),
    "a compressed pickle": (zipped(text("x" * 10**6), {}, zipfile.ZIP_BZIP2), "compressed members"),
    "members over each other": (overlapping(), "members that are larger than the file"),
    "a member's size of 4 GB": (
        patched(zipped(WHOLE), struct.pack("<II", 16, 16), struct.pack("<II", 4_000_000_000, 4_000_000_000)),
        "members that are larger than the file",
    ),
    "a flipped bit": (patched(zipped(WHOLE), FOUR.tobytes(), (-FOUR).tobytes()), "damaged.*CRC"),
    "big-endian numbers": (zipped(WHOLE, {"byteorder": b"big"}), "big-endian"),
    "two pickles": (zipped(WHOLE, {"more/data.pkl": b"\x80\x02}."}), "a zip archive, but not one that PyTorch wrote"),
    "NumPy's archive": (npz(), "a zip archive, but not one that PyTorch wrote"),
    "an archive's beginning": (zipped(WHOLE)[:60], "damaged"),
    # legacy files
    "a pickle": (pickle.dumps({"a": [1.0]}, 2), "a pickle, but not one that PyTorch wrote"),
    "a pickle of protocol 5": (pickle.dumps({"a": FOUR}), "a pickle, but not one that PyTorch wrote"),
    "another version": (
        patched(legacy(WHOLE), pickle.dumps(torch_files.VERSION, 2), pickle.dumps(torch_files.VERSION + 1, 2)),
        "version 1002 of the format",
    ),
    "legacy, big-endian": (patched(legacy(WHOLE), b"\x88s.", b"\x89s."), "big-endian"),
    "2**60 numbers": (legacy(WHOLE, counts=(2**60,)), "a storage of 1152921504606846976 numbers"),
    "2**60 numbers that its tensors want too": (
        legacy(table(a=tensor(storage=storage(2**60))), counts=(2**60,)),
        "damaged",
    ),
    "a key that no tensor has": (legacy(WHOLE, ("0", "1"), (4, 4)), "another list of storages"),
    "a tensor without a key": (legacy(WHOLE, (), ()), "another list of storages"),
    # safetensors
    "a header of 2**63 bytes": (struct.pack("<Q", 2**63) + b"{}", "a header of"),
    "a header longer than the file": (struct.pack("<Q", 1000) + b"{}", "a header of 1000 bytes"),
    "a header that is not JSON": (safetensors("{'a': 1}"), "damaged"),
    "a header that is not UTF-8": (struct.pack("<Q", 4) + b"{\xff\xff}", "damaged"),
    "nested JSON": (safetensors('{"a":' + "[" * 10**5 + "]" * 10**5 + "}"), "damaged"),
    "a number of many digits": (safetensors('{"a":' + "9" * 10**5 + "}"), "damaged"),
    "a name twice": (safetensors(f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}'), "there twice"),
    "an unknown type": (safetensors({"a": entry(dtype="F8_E4M3")}), "'F8_E4M3'.*F64, F32"),
    "a negative shape": (safetensors({"a": entry(shape=(-2, -2))}), "impossible shape"),
    "a shape of true": (safetensors({"a": entry(shape=(True, 4))}), "impossible shape"),
    "another shape": (safetensors({"a": entry(shape=(5,))}), "20 bytes of numbers expected, 16 found"),
    "a shape of 2**100": (safetensors({"a": entry(shape=(2**50, 2**50))}), "bytes of numbers expected"),
    "40 dimensions": (safetensors({"a": entry(shape=(1,) * 40)}), "impossible shape"),
    "offsets behind the end": (safetensors({"a": entry(0, 32, shape=(8,))}), "32 bytes of numbers expected, 16 found"),
    "offsets backwards": (safetensors({"a": entry(16, 0)}), "impossible offsets"),
    "a negative offset in a header": (safetensors({"a": entry(-16, 0)}), "impossible offsets"),
    "offsets that are not numbers": (
        safetensors({"a": {**entry(), "data_offsets": ["0", "16"]}}),
        "impossible offsets",
    ),
    "tensors over each other": (safetensors({"a": entry(), "b": entry()}), "a gap or an overlap"),
    "a gap": (safetensors({"a": entry(0, 4, shape=(1,)), "b": entry(8, 16, shape=(2,))}), "a gap or an overlap"),
    "numbers that belong to none": (safetensors({"a": entry(0, 8, shape=(2,))}), "8 bytes expected|bytes expected"),
    "an entry without a shape": (safetensors({"a": {"dtype": "F32", "data_offsets": [0, 16]}}), "damaged"),
    "an entry that is a list": (safetensors({"a": [1, 2]}), "damaged"),
    "only metadata": (safetensors({"__metadata__": {"a": "b"}}, b""), "no named tensors"),
    # other files
    "an empty file": (b"", "it is empty"),
    "one byte": (b"\x80", "damaged"),
    "a web page": (b"<!DOCTYPE html><title>404</title>", "web page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "a picture"),
    "an HDF5 file": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "a gzip archive": (b"\x1f\x8b\x08" + bytes(100), "gzip"),
    "a tar archive": (b"storages".ljust(257, b"\0") + b"ustar" + bytes(250), "not a PyTorch"),
    "a TensorFlow checkpoint": (b"\x00\x00\x0b\x12model/kernel" + bytes(100), "not a PyTorch"),
    "text": (b"weights go here\n", "not a PyTorch"),
    "a pickle of protocol 0": (b"cposix\nsystem\n(S'exit 1'\ntR.", "not a PyTorch"),
    "a state dict without tensors": (zipped(table(epoch=number(3))), "no named tensors"),
}


@pytest.mark.parametrize("case", FILES)
def test_wrong_files_are_refused(tmp_path, case):
    refused(tmp_path / "net.pth", *FILES[case])


def test_folders_and_missing_files_are_said_to_be(tmp_path):
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        torch_files.read(tmp_path)
    with pytest.raises(InputError, match=r"net.pth cannot be read: No such file"):
        torch_files.read(tmp_path / "net.pth")


@pytest.mark.parametrize(
    "whole", [zipped(WHOLE), legacy(WHOLE), safetensors(HEADER)], ids=["zip", "legacy", "safetensors"]
)
def test_a_file_cut_anywhere_is_refused(tmp_path, whole):
    assert list(torch_files.read(saved(tmp_path / "whole.pth", whole))) == ["a"]
    for length in range(len(whole)):
        path = saved(tmp_path / "short.pth", whole[:length])
        with pytest.raises(InputError, match=r"short.pth (is|was|holds)"):
            torch_files.read(path)


@pytest.mark.parametrize(
    "whole", [zipped(WHOLE), legacy(WHOLE), safetensors(HEADER)], ids=["zip", "legacy", "safetensors"]
)
def test_a_file_with_any_wrong_byte_gives_arrays_or_a_plain_error(tmp_path, whole):
    rng = np.random.default_rng(0)
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= int(rng.integers(1, 256))
        try:
            found = torch_files.read(saved(tmp_path / "changed.pth", bytes(changed)))
        except InputError:
            continue
        assert all(array.nbytes <= 16 * len(whole) for array in found.values())
