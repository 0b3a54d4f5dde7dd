"""Local POD and pooled cube distillation against the published code's numbers and against loops."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from nest_jax import distillation
from tests.deterministic_state import GOLDEN

VOC, ADE = {"factor": 0.01, "last_factor": 0.0005}, {"factor": 0.001, "last_factor": 0.00001}
ADE_CUBE = {"factor": 5e-6, "last_factor": 5e-7}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def golden():
    return {**np.load(GOLDEN / "distillation_old.npz"), **np.load(GOLDEN / "distillation_new.npz")}


def items(golden, which, features=None):
    """The six published items: four maps, pre-logits, logits."""
    found = features or [jnp.asarray(np.moveaxis(golden[f"{which}_feat{i}"], 1, -1)) for i in range(6)]
    *maps, pre_logits, logits = found
    return distillation.items(SimpleNamespace(maps=maps, pre_logits=pre_logits), logits, int(golden["num_old"]))


def classes(golden):
    return {name: int(golden[name]) for name in ("num_old", "num_new")}


@pytest.mark.parametrize(
    ("function", "published"),
    [
        (distillation.local_pod, {"pod_voc": VOC, "pod_ade": ADE}),
        (distillation.pooled_cube_spatial, {"pckd_spatial_voc": VOC, "pckd_spatial_ade": ADE_CUBE}),
        (distillation.pooled_cube_channel, {"pckd_channel_voc": VOC, "pckd_channel_ade": ADE_CUBE}),
    ],
)
def test_published_numbers(golden, function, published):
    @jax.jit
    def values(old, new):
        return {name: function(old, new, **factors, **classes(golden)) for name, factors in published.items()}

    old = items(golden, "old")
    for name, value in values(old, items(golden, "new")).items():
        assert_allclose(value, golden[name], rtol=1e-5)
    assert all(value == 0.0 for value in values(old, old).values())


def test_published_gradients_of_local_pod(golden):
    old = items(golden, "old")
    features = [jnp.asarray(np.moveaxis(golden[f"new_feat{i}"], 1, -1)) for i in range(6)]
    value = jax.jit(
        jax.grad(lambda new: distillation.local_pod(old, items(golden, "new", new), **VOC, **classes(golden)))
    )
    for i, gradient in enumerate(value(features)):
        assert_allclose(np.linalg.norm(gradient), golden[f"pod_voc_grad{i}_norm"], rtol=1e-5)


def test_embedding_is_the_published_one(golden):
    x = jnp.square(jnp.asarray(np.moveaxis(golden["old_feat0"], 1, -1)))
    vectors = []
    for scale, (over_width, over_height) in zip(distillation.SCALES, distillation.pod_parts(x), strict=True):
        side = x.shape[1] // scale
        for i in range(scale):
            for j in range(scale):
                rows, cols = slice(i * side, (i + 1) * side), slice(j * side, (j + 1) * side)
                for means in (over_width[:, rows, j], over_height[:, i, cols]):  # [b, side, c]
                    vectors.append(jnp.moveaxis(means, 1, 2).reshape(len(x), -1))
    assert_allclose(np.concatenate(vectors, 1), golden["local_pod_embedding0"], rtol=1e-5)


def embedding_by_loops(x):
    found = []
    for scale in (1, 2, 4):
        height, width = x.shape[0] // scale, x.shape[1] // scale
        for i in range(scale if height and width else 0):
            for j in range(scale):
                region = x[i * height : (i + 1) * height, j * width : (j + 1) * width]
                found += [region.mean(0).ravel(), region.mean(1).ravel()]
    return np.concatenate(found)


@pytest.mark.parametrize("shape", [(7, 7), (33, 33), (6, 9), (3, 3), (2, 2), (1, 1)])
def test_pod_distance_of_any_size(shape):
    """Rows and columns beyond the regions do not count; a map of 2 x 2 has no scale 4."""
    old, new = random(2, *shape, 3), random(2, *shape, 3, seed=1)
    expected = [
        np.linalg.norm(embedding_by_loops(a**2) - embedding_by_loops(b**2)) for a, b in zip(old, new, strict=True)
    ]
    assert_allclose(jax.jit(distillation.pod_distance)(old, new), np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 5), (9, 6), (26, 30)])
def test_spatial_distance_of_any_size(shape):
    old, new = random(2, *shape, 3), random(2, *shape, 3, seed=1)
    expected = []
    for size in (4, 8, 12, 16, 20, 24):
        half = size // 2
        x = np.pad(old**2 - new**2, ((0, 0), (half, half), (half, half), (0, 0)))
        pooled = np.array(
            [[x[:, i : i + size, j : j + size].mean((1, 2)) for j in range(shape[1] + 1)] for i in range(shape[0] + 1)]
        )
        expected.append(np.sqrt((pooled**2).sum((0, 1, 3))).mean())
    found = jax.jit(distillation.spatial_distance)(old, new)
    assert_allclose(found, np.mean(expected), rtol=1e-5)


def test_channel_distance_by_hand():
    old, new = jnp.array([3.0, 0.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 0.0, 3.0])
    # 9 and -9 at the ends of four channels; means over three: 3, 3, -3, -3
    found = distillation.channel_distance(old.reshape(1, 1, 1, 4), new.reshape(1, 1, 1, 4))
    assert_allclose(found, 6.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["pod_distance", "spatial_distance", "channel_distance"])
def test_gradients(name):
    """0 and not NaN for a student that is its teacher; elsewhere as finite differences have it."""
    distance = jax.jit(getattr(distillation, name))
    old, new, direction = (jnp.array(random(2, 5, 5, 3, seed=seed)) for seed in range(3))
    gradient = jax.jit(jax.grad(distance, argnums=1))
    assert not np.any(gradient(old, old))
    one_equal = gradient(old, new.at[0].set(old[0]))
    assert not np.any(one_equal[0]) and np.all(one_equal[1] != 0)
    step = 1e-2
    change = distance(old, new + step * direction) - distance(old, new - step * direction)
    assert_allclose(jnp.vdot(gradient(old, new), direction), change / (2 * step), rtol=5e-3)


def test_items_call_new_classes_background():
    logits = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]).reshape(1, 1, 1, 5)
    features = SimpleNamespace(maps=(jnp.ones((1, 2, 2, 3)),), pre_logits=jnp.zeros((1, 1, 1, 7)))
    first, second, folded = distillation.items(features, logits, 3)
    assert first is features.maps[0] and second is features.pre_logits
    assert_allclose(folded.ravel(), [1 + 4 + 5, 2, 3])
    assert_allclose(distillation.items(features, logits[..., :3], 3)[-1].ravel(), [1, 2, 3])
