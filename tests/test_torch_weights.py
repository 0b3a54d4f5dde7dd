"""The weights reader on files as PyTorch writes them, without PyTorch; and on files that nobody should trust."""

import collections
import io
import json
import pickle
import struct
import sys
import types
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from nest_jax import plugins, torch_files, torch_weights
from nest_jax.errors import InputError

STATE = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(4, 3, 2, 1),
    "bn.running_var": np.array([1.5, 2.5], np.float64),
    "bn.num_batches_tracked": np.array(7, np.int64),
    "half": np.array([1, -2, 0.5], np.float16),
}
STORAGE = {"float32": "FloatStorage", "float64": "DoubleStorage", "int64": "LongStorage", "float16": "HalfStorage"}


class Tensor:
    """Pickled as PyTorch pickles a tensor."""

    def __init__(self, array, stride=None, offset=0, size=None):
        self.array, self.offset, self.size = array, offset, array.shape if size is None else size
        self.stride = tuple(s // array.itemsize for s in array.strides) if stride is None else stride

    def __reduce__(self):
        function = sys.modules["torch._utils"]._rebuild_tensor_v2
        return function, (Storage(self.array), self.offset, self.size, self.stride, False, collections.OrderedDict())


class Storage:
    def __init__(self, array):
        self.array = array


class Pickler(pickle.Pickler):
    def __init__(self, file):
        super().__init__(file, 2)
        self.storages = {}

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        kind = getattr(sys.modules["torch"], STORAGE[str(obj.array.dtype)])
        key = str(len(self.storages))
        self.storages[key] = obj.array
        return ("storage", kind, key, "cpu", obj.array.size, *self.view)

    view: tuple = ()


@pytest.fixture(autouse=True)
def pretend_torch(monkeypatch):
    """Modules of PyTorch's names, so that pickle writes PyTorch's names; the reader must not need them."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch._utils = utils  # type: ignore[attr-defined]
    for name in STORAGE.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        raise AssertionError("never called")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def wrapped(state):
    return collections.OrderedDict((name, Tensor(value)) for name, value in state.items())


def zip_file(path, found):
    buffer = io.BytesIO()
    pickler = Pickler(buffer)
    pickler.dump(found)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", buffer.getvalue())
        archive.writestr("net/byteorder", "little")
        for key, array in pickler.storages.items():
            archive.writestr(f"net/data/{key}", array.tobytes())
    return path


def legacy_file(path, found):
    with path.open("wb") as file:
        for value in (torch_files.MAGIC, torch_files.VERSION, {"little_endian": True}):
            pickle.dump(value, file, 2)
        pickler = Pickler(file)
        pickler.view = (None,)
        pickler.dump(found)
        pickle.dump(list(pickler.storages), file, 2)
        for array in pickler.storages.values():
            file.write(struct.pack("<q", array.size) + array.tobytes())
    return path


def safetensors_file(path, state):
    names, header, data = {"float32": "F32", "float64": "F64", "int64": "I64", "float16": "F16"}, {}, b""
    for name, array in state.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": names[str(array.dtype)], "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


WRITERS = {
    "zip": lambda path, state: zip_file(path, wrapped(state)),
    "legacy": lambda path, state: legacy_file(path, {"epoch": 3, "state_dict": wrapped(state)}),
    "safetensors": safetensors_file,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_arrays_come_back(tmp_path, kind):
    found = torch_weights.read(WRITERS[kind](tmp_path / "net.pth.tar", STATE))
    assert list(found) == list(STATE)
    for name, array in STATE.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_strides_and_offsets_are_honoured(tmp_path):
    base = np.arange(12, dtype=np.float32)
    found = torch_weights.read(zip_file(tmp_path / "net.pth", {"t": Tensor(base, (1, 3), 2, (3, 3))}))
    np.testing.assert_array_equal(found["t"], [[2, 5, 8], [3, 6, 9], [4, 7, 10]])
    for stride, offset, size in (((4, 1), 1, (3, 4)), ((1,), -1, (2,)), ((-1,), 5, (2,)), ((1,), 0, (10**12,))):
        path = zip_file(tmp_path / "bad.pth", {"t": Tensor(base, stride, offset, size)})
        with pytest.raises(InputError, match="damaged"):
            torch_weights.read(path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("writer", [zip_file, legacy_file])
def test_code_in_a_pickle_is_refused_by_name_and_not_run(tmp_path, writer):
    trace = tmp_path / "was_here"
    path = writer(tmp_path / "net.pth", {"state_dict": wrapped(STATE), "extra": Malicious(trace)})
    with pytest.raises(InputError, match=r"(posix|nt)\.system.*nothing of it was run"):
        torch_weights.read(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Malicious(trace)))  # the file would have worked
    assert trace.exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "builtins.getattr", "torch.load", "collections.Counter", "torch.hub.load"]
)
def test_other_globals_are_refused(tmp_path, name):
    module, function = name.rsplit(".", 1)
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02c" + f"{module}\n{function}\n".encode() + b")R.")
    with pytest.raises(InputError, match=name):
        torch_weights.read(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_truncated_files_are_said_to_be(tmp_path, kind):
    whole = WRITERS[kind](tmp_path / "net.pth", STATE).read_bytes()
    for length in (10, len(whole) // 3, len(whole) - 5):
        path = tmp_path / "short.pth"
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="short.pth is damaged or cut short"):
            torch_weights.read(path)


def test_foreign_files_are_said_to_be(tmp_path):
    path = tmp_path / "net.pth"
    with pytest.raises(InputError, match="cannot be read"):
        torch_weights.read(path)
    for content in (b"", b"<html>not found</html>", b"\x1f\x8b\x08 a gzip file"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a PyTorch"):
            torch_weights.read(path)
    path.write_bytes(pickle.dumps({"a": 1}, 2) * 2)
    with pytest.raises(InputError, match="not one that PyTorch wrote"):
        torch_weights.read(path)
    zip_file(path, {"epoch": 3})
    with pytest.raises(InputError, match="no named tensors"):
        torch_weights.read(path)


def rename(path):
    return ".".join((*path[:-1], torch_weights.leaf_name(path[-1])))


TARGET = {
    "params": {
        "conv": {"kernel": jnp.zeros((2, 1, 3, 4))},
        "fc": {"kernel": jnp.zeros((2, 3))},
        "bn": {"scale": jnp.zeros(2)},
    },
    "batch_stats": {"bn": {"var": jnp.zeros(2)}},
}


def full_state():
    rng = np.random.default_rng(0)
    shapes = {"conv.weight": (4, 3, 2, 1), "fc.weight": (3, 2), "bn.weight": (2,), "bn.running_var": (2,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_to_tree_and_back():
    state = full_state()
    tree = torch_weights.to_tree(state, TARGET, rename)
    np.testing.assert_array_equal(tree["params"]["conv"]["kernel"][1, 0, 2, 3], state["conv.weight"][3, 2, 1, 0])
    np.testing.assert_array_equal(tree["params"]["fc"]["kernel"], state["fc.weight"].T)
    back = torch_weights.from_tree(tree, rename)
    assert set(back) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value)


def test_every_misfit_is_reported_at_once():
    state = full_state()
    del state["bn.weight"]
    state["conv.weight"] = np.zeros((5, 3, 2, 1), np.float32)
    state["fc.weight"] = np.zeros((3, 9), np.float32)
    state["surplus"] = state["bn.num_batches_tracked"] = np.zeros(1, np.float32)
    with pytest.raises(InputError) as error:
        torch_weights.to_tree(state, TARGET, rename, ignore=(r".*\.num_batches_tracked",), source="net.pth")
    message = str(error.value)
    assert message.startswith("net.pth does not fit") and "num_batches_tracked" not in message
    for part in (
        "missing (1): bn.weight",
        "not known to this network (1): surplus",
        "other shapes (2)",
        "[2, 1, 3, 5]",
        "fc.weight is [9, 3]",
    ):
        assert part in message


def test_published_resnet_files_load(tmp_path):
    """`module.` in front of the names, a classifier to drop, the dict wrapped: as in resnet101_iabn_sync.pth.tar."""
    resnet = plugins.load("backbones", "resnet50")
    params: dict = {"mod1_conv1": {"kernel": jnp.zeros((7, 7, 3, 2))}, "mod1_bn1": {"scale": jnp.zeros(2)}}
    params["mod2_block1"] = {"conv1": {"kernel": jnp.zeros((1, 1, 2, 2))}}
    stats = {"mod1_bn1": {"mean": jnp.ones(2)}}
    rng = np.random.default_rng(0)
    state = {
        "module.mod1.conv1.weight": rng.normal(size=(2, 3, 7, 7)).astype(np.float32),
        "module.mod1.bn1.weight": np.array([-1, 2], np.float32),
        "module.mod1.bn1.running_mean": np.array([3, 4], np.float32),
        "module.mod2.block1.convs.conv1.weight": rng.normal(size=(2, 2, 1, 1)).astype(np.float32),
        "module.fc.weight": np.zeros((10, 2), np.float32),
        "classifier.fc.bias": np.zeros(10, np.float32),
    }
    path = legacy_file(tmp_path / "mine.pth.tar", {"state_dict": wrapped(state)})
    loaded, loaded_stats = resnet.load_pretrained({"name": "resnet50", "pretrained": str(path)}, params, stats)
    np.testing.assert_array_equal(loaded["mod1_bn1"]["scale"], [-1, 2])  # negative scales stay as they are stored
    np.testing.assert_array_equal(loaded_stats["mod1_bn1"]["mean"], [3, 4])
    kernel = state["module.mod1.conv1.weight"]
    np.testing.assert_array_equal(loaded["mod1_conv1"]["kernel"], kernel.transpose(2, 3, 1, 0))
