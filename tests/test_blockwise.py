import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nest_jax import blockwise, losses, upsample


def torch_bilinear(x, size):
    """align_corners=False, written as loops over the definition."""
    out = np.zeros((*x.shape[:1], *size, x.shape[-1]))
    for i in range(size[0]):
        for j in range(size[1]):
            y = max((i + 0.5) * x.shape[1] / size[0] - 0.5, 0)
            z = max((j + 0.5) * x.shape[2] / size[1] - 0.5, 0)
            a, b = int(y), int(z)
            a1, b1 = min(a + 1, x.shape[1] - 1), min(b + 1, x.shape[2] - 1)
            fy, fz = y - a, z - b
            out[:, i, j] = (1 - fy) * ((1 - fz) * x[:, a, b] + fz * x[:, a, b1]) + fy * (
                (1 - fz) * x[:, a1, b] + fz * x[:, a1, b1]
            )
    return out


@pytest.mark.parametrize("size", [(12, 20), (7, 5), (2, 3), (3, 5)])
def test_bilinear_equals_its_definition(size):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    assert_allclose(upsample.bilinear(jnp.asarray(x), size), torch_bilinear(x, size), rtol=1e-5, atol=1e-6)


def test_up_and_down_again_is_a_direct_resize():
    """The published statistics interpolate logits 32 -> 512 -> 128; 32 -> 128 is the same map (and 16 -> 512 -> 128 likewise)."""
    for small in (32, 16):
        there = upsample.matrix(128, 512).astype(np.float64) @ upsample.matrix(512, small)
        assert_allclose(there, upsample.matrix(128, small), atol=1e-7)


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(3, 4, 5, 7)), jnp.float32)
    old_logits = jnp.asarray(rng.normal(size=(3, 4, 5, 5)), jnp.float32)
    labels = rng.choice([0, 1, 4, 5, 6, 255], size=(3, 24, 20))
    return logits, old_logits, jnp.asarray(labels, jnp.int32)


def terms(logits, old_logits, labels):
    return {
        "unce": losses.unbiased_cross_entropy(logits, labels, num_old=5),
        "unkd": losses.unbiased_distillation(logits, old_logits),
    }


@pytest.mark.parametrize("rows", [1, 4, 8, 24])
def test_value_and_gradient_equal_the_plain_form(batch, rows):
    logits, old_logits, labels = batch
    weights = jnp.array([1.0, 2.0, 0.5])  # per image, as an adaptive factor would be

    def blocked(z):
        sums = blockwise.sums_per_image(terms, z, old_logits, labels, rows=rows)
        return sum(jnp.sum(weights * s) for s in sums.values())

    def plain(z):
        full = terms(upsample.bilinear(z, (24, 20)), upsample.bilinear(old_logits, (24, 20)), labels)
        return sum(jnp.sum(weights * jnp.sum(t, axis=(1, 2))) for t in full.values())

    value, gradient = jax.value_and_grad(blocked)(logits)
    expected, expected_gradient = jax.value_and_grad(plain)(logits)
    assert_allclose(value, expected, rtol=1e-5)
    assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def test_the_full_resolution_logits_never_exist(batch):
    logits, old_logits, labels = batch
    labels = jnp.tile(labels, (1, 8, 8))  # 192 x 160
    full = 3 * 192 * 160 * 7 * 4

    def peak(rows):
        loss = jax.jit(
            jax.grad(
                lambda z: sum(
                    jnp.sum(s) for s in blockwise.sums_per_image(terms, z, old_logits, labels, rows=rows).values()
                )
            )
        )
        analysis = loss.lower(logits).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert peak(4) < full / 4
    assert peak(192) > full


def test_block_rows_divide_the_height_and_fit():
    assert blockwise.block_rows(512, 24 * 512 * 151 * 4) == 8
    assert blockwise.block_rows(160, 1) == 160
    assert blockwise.block_rows(7, 2 * blockwise.BLOCK_BYTES) == 1
    with pytest.raises(ValueError, match="rows=5 does not divide the height 24"):
        blockwise.map_rows(lambda z, y: y, (jnp.zeros((1, 2, 2, 1)),), jnp.zeros((1, 24, 24), jnp.int32), rows=5)


def test_missing_map_stays_none(batch):
    logits, _, labels = batch
    seen = []
    blockwise.map_rows(lambda z, old, y: seen.append(old) or y, (logits, None), labels, rows=8)
    assert seen == [None] * len(seen) and seen
    stacked = blockwise.map_rows(lambda z, y: y, (logits,), labels, rows=8)
    assert_array_equal(jnp.moveaxis(stacked, 0, 1).reshape(labels.shape), labels)
