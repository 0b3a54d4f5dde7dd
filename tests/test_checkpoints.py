import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath

from nest_jax import checkpoints, digests, rundir
from nest_jax.errors import CorruptCheckpoint, InputError


def small_tree():
    return {
        "params": {"kernel": jnp.arange(6.0).reshape(2, 3) / 7, "bias": jnp.array([1.5, -0.0], jnp.bfloat16)},
        "count": jnp.int32(-3),
    }


def files(directory):
    return {path.relative_to(directory): path for path in sorted(directory.rglob("*")) if path.is_file()}


def bits(array):
    array = np.asarray(array)
    return array.dtype, array.shape, array.tobytes()


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert bits(one) == bits(other)


# Round trips


def test_every_kind_of_array_comes_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    tree = {
        "float32": jnp.asarray(rng.normal(size=(5, 7)), jnp.float32),
        "bfloat16": jnp.asarray(rng.normal(size=(300,)), jnp.bfloat16),
        "specials": np.array([np.nan, -np.inf, -0.0, 1e-45], np.float32),
        "int32": jnp.array([-(2**31), 2**31 - 1], jnp.int32),
        "int64": np.array([2**62], np.int64),
        "uint8": np.arange(256, dtype=np.uint8),
        "bool": np.array([True, False, True]),
        "key": jax.random.key_data(jax.random.key(2**31 + 5)),
        "scalar": np.float64(np.pi),
        "nothing": np.zeros((0, 3), np.float32),
        "nested": {"deep": {"er": jnp.int32(1)}},
    }
    checkpoints.save(tmp_path / "one", tree, {})
    restored, _ = checkpoints.restore(tmp_path / "one")
    assert_same(jax.tree.map(np.asarray, tree), restored)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored))


def test_metadata_is_plain_json_and_readable_alone(tmp_path, monkeypatch):
    given = {"task": np.int64(3), "names": ("a", "b"), "values": np.array([0.5, np.nan]), "nested": {"x": None}}
    checkpoints.save(tmp_path / "one", small_tree(), given)
    monkeypatch.setattr(ocp, "PyTreeCheckpointer", None)  # no array is read
    expected = {"task": 3, "names": ["a", "b"], "values": [0.5, None], "nested": {"x": None}, "format_version": 1}
    assert checkpoints.metadata(tmp_path / "one") == expected
    assert checkpoints.shapes(tmp_path / "one") == {
        "count": ("int32", ()),
        "params/bias": ("bfloat16", (2,)),
        "params/kernel": ("float32", (2, 3)),
    }


def test_readable_without_this_package(tmp_path):
    checkpoints.save(tmp_path / "one", small_tree(), {})
    restored = ocp.PyTreeCheckpointer().restore(tmp_path / "one" / "arrays")
    assert isinstance(restored["params"]["kernel"], np.ndarray)
    np.testing.assert_array_equal(restored["params"]["kernel"], small_tree()["params"]["kernel"])


def test_optimiser_state_comes_back_into_its_own_types(tmp_path):
    params = {"body": {"w": jnp.linspace(-1, 1, 12).reshape(3, 4)}, "head": {"b": jnp.ones((2,))}}
    optimiser = optax.chain(
        optax.masked(optax.add_decayed_weights(0.1), {"body": True, "head": False}),
        optax.sgd(optax.linear_schedule(0.1, 0.0, 10), momentum=0.9, nesterov=True),
    )
    state = optimiser.init(params)
    gradients = jax.tree.map(lambda x: x * 0.3 + 1, params)
    for _ in range(3):
        updates, state = optimiser.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    checkpoints.save(tmp_path / "one", {"params": params, "opt": state}, {})

    abstract = jax.eval_shape(lambda: {"params": params, "opt": state})
    restored, _ = checkpoints.restore(tmp_path / "one", abstract)
    assert_same({"params": params, "opt": state}, restored)
    following = optimiser.update(gradients, restored["opt"], restored["params"])
    assert_same(optimiser.update(gradients, state, params), following)

    plain, _ = checkpoints.restore(tmp_path / "one")
    trace = jax.tree.leaves(state[1])[0]  # type: ignore[index]
    np.testing.assert_array_equal(plain["opt"]["1"]["0"]["trace"]["body"]["w"], trace)


def test_target_says_where_arrays_go_and_they_can_be_donated(tmp_path):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    tree = {"placed": jnp.ones((64, 64)), "host": jnp.zeros((3,)), "like": jnp.int32(4)}
    checkpoints.save(tmp_path / "one", tree, {})
    target = {
        "placed": jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=sharding),
        "host": np.zeros((3,), np.float32),
        "like": jax.device_put(jnp.int32(0), sharding),
    }
    restored, _ = checkpoints.restore(tmp_path / "one", target)
    assert restored["placed"].sharding == sharding == restored["like"].sharding
    assert type(restored["host"]) is np.ndarray
    doubled = jax.jit(lambda x: x * 2, donate_argnums=0)(restored["placed"])
    assert restored["placed"].is_deleted()
    np.testing.assert_array_equal(doubled, 2)
    again, _ = checkpoints.restore(tmp_path / "one")
    np.testing.assert_array_equal(again["placed"], 1)


def test_target_that_does_not_fit_is_told_in_full(tmp_path):
    checkpoints.save(
        tmp_path / "one", {"a": jnp.ones((2, 3)), "b": jnp.ones(()), "c": jnp.int32(1), "d": jnp.ones(1)}, {}
    )
    with pytest.raises(InputError) as caught:
        checkpoints.restore(
            tmp_path / "one", {"a": jnp.ones((3, 2)), "n": {"x": jnp.ones(())}, "c": 1.5, "d": jnp.ones(1)}
        )
    assert str(caught.value).splitlines()[1:] == [
        "  a: float32[2, 3] in the checkpoint, float32[3, 2] expected",
        "  b: in the checkpoint, not expected",
        "  c: int32[] in the checkpoint, float64[] expected",
        "  n/x: not in the checkpoint",
    ]


@pytest.mark.parametrize(
    "tree",
    [{"a.b": 1}, {"a/b": 1}, {"": 1}, {1: 1, "1": 2}, {"key": jax.random.key(0)}],
    ids=["dot", "slash", "empty", "twice", "key"],
)
def test_trees_that_could_not_come_back_are_refused(tmp_path, tree):
    with pytest.raises((ValueError, TypeError)):
        checkpoints.save(tmp_path / "one", tree, {})
    assert not (tmp_path / "one").exists()


# Damage


def test_a_flipped_byte_in_any_file_is_noticed(tmp_path):
    directory = tmp_path / "one"
    checkpoints.save(directory, small_tree(), {"task": 1})
    names = files(directory)
    assert len(names) > 5
    for name, path in names.items():
        whole = path.read_bytes()
        for position in {0, len(whole) // 2, len(whole) - 1}:
            for flip in (0x01, 0x20):
                damaged = bytearray(whole)
                damaged[position] ^= flip
                path.write_bytes(damaged)
                with pytest.raises(CorruptCheckpoint) as caught:
                    checkpoints.restore(directory)
                if path.name != "digests.json":
                    assert str(path) in str(caught.value), name
        path.write_bytes(whole)
    checkpoints.restore(directory)


def test_missing_and_cut_off_files_are_noticed(tmp_path):
    directory = tmp_path / "one"
    checkpoints.save(directory, small_tree(), {})
    for path in files(directory).values():
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(CorruptCheckpoint):
            checkpoints.restore(directory)
        path.unlink()
        with pytest.raises(CorruptCheckpoint, match=path.name):
            checkpoints.restore(directory)
        path.write_bytes(whole)


def test_no_checkpoint_and_newer_format(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="there is none"):
        checkpoints.restore(tmp_path / "one")
    monkeypatch.setattr(checkpoints, "FORMAT_VERSION", 2)
    checkpoints.save(tmp_path / "one", small_tree(), {})
    monkeypatch.setattr(checkpoints, "FORMAT_VERSION", 1)
    for read in (checkpoints.restore, checkpoints.metadata):
        with pytest.raises(InputError, match="format 2") as caught:
            read(tmp_path / "one")
        assert not isinstance(caught.value, CorruptCheckpoint)


# Saving that does not end well


class Killed(BaseException):
    pass


def save_and_die(directory, tree, metadata, *, calls):
    """Saves, but dies before the n-th change of directories; nothing tidies up, as after kill -9. Returns whether it died."""
    count = 0

    def dying(function):
        def wrapped(self, *arguments, **options):
            nonlocal count
            if count >= calls:
                raise Killed
            count += 1
            return function(self, *arguments, **options)

        return wrapped

    kind = type(epath.Path(directory))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "rmtree"):
            patch.setattr(kind, name, dying(getattr(kind, name)))
        try:
            checkpoints.save(directory, tree, metadata)
        except Killed:
            return True
    return False


def test_killed_anywhere_in_a_save_leaves_the_old_or_the_new_checkpoint(tmp_path):
    seen = []
    for calls in range(100):
        directory = tmp_path / f"{calls}" / "one"
        checkpoints.save(directory, {"a": jnp.zeros(3)}, {"number": 1})
        died = save_and_die(directory, {"a": jnp.ones(3)}, {"number": 2}, calls=calls)
        assert checkpoints.exists(directory)
        tree, metadata = checkpoints.restore(directory)
        np.testing.assert_array_equal(tree["a"], metadata["number"] - 1)
        seen.append(metadata["number"])
        checkpoints.save(directory, {"a": jnp.ones(3)}, {"number": 3})
        assert checkpoints.metadata(directory)["number"] == 3
        assert os.listdir(directory.parent) == ["one"]
        if not died:
            break
    assert seen == sorted(seen) and seen.count(1) >= 4 and seen.count(2) >= 2, seen


def test_killed_in_the_first_save_leaves_nothing_that_counts(tmp_path):
    for calls in range(3):
        directory = rundir.task_directory(tmp_path, calls)
        assert save_and_die(directory, {"a": jnp.ones(3)}, {}, calls=calls)
        assert not checkpoints.exists(directory)
    assert rundir.completed_tasks(tmp_path) == []


def full_disk_of_the_system(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_of_orbax(*_):
    raise ValueError("RESOURCE_EXHAUSTED: Error writing \"a\": No space left on device [os_error_code='28']")


@pytest.mark.parametrize("where", [(checkpoints, "_write_arrays"), (digests, "write")], ids=["arrays", "digests"])
@pytest.mark.parametrize("failure", [full_disk_of_the_system, full_disk_of_orbax])
def test_full_disk_is_one_plain_message(tmp_path, monkeypatch, where, failure):
    directory = tmp_path / "one"
    checkpoints.save(directory, {"a": jnp.zeros(3)}, {"number": 1})
    with monkeypatch.context() as patch:
        patch.setattr(*where, failure)
        with pytest.raises(InputError, match="disk is full"):
            checkpoints.save(directory, {"a": jnp.ones(3)}, {"number": 2})
    assert os.listdir(tmp_path) == ["one"]
    tree, metadata = checkpoints.restore(directory)
    assert metadata["number"] == 1
    np.testing.assert_array_equal(tree["a"], 0)


def test_other_errors_are_not_called_a_full_disk(tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")

    monkeypatch.setattr(checkpoints, "_write_arrays", broken)
    with pytest.raises(ValueError, match="Out of memory"):
        checkpoints.save(tmp_path / "one", small_tree(), {})


def test_unwritable_place_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(InputError, match="cannot be written"):
        checkpoints.save(tmp_path / "file" / "one", small_tree(), {})


def test_relative_and_home_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path, place in (("run/task", "run/task"), ("~/task", "home/task")):
        checkpoints.save(path, {"a": np.arange(3)}, {})
        assert (tmp_path / place / "metadata.json").exists()
        np.testing.assert_array_equal(checkpoints.restore(path)[0]["a"], np.arange(3))
