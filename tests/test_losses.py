from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from numpy.testing import assert_allclose

from nest_jax import losses

GOLDEN = np.load(Path(__file__).parent / "golden" / "losses.npz")
CASES = sorted({key.split("_")[0] for key in GOLDEN})


def load(case):
    old = int(GOLDEN[f"{case}_old"])
    logits = jnp.moveaxis(jnp.asarray(GOLDEN[f"{case}_logits"]), 1, -1)
    old_logits = jnp.moveaxis(jnp.asarray(GOLDEN[f"{case}_old_logits"]), 1, -1)
    labels = jnp.asarray(GOLDEN[f"{case}_labels"].astype(np.int32))
    return old, logits, old_logits, labels


@pytest.mark.parametrize("case", CASES)
def test_golden_values(case):
    old, logits, old_logits, labels = load(case)
    unce = losses.unbiased_cross_entropy(logits, labels, num_old=old)
    assert_allclose(unce, GOLDEN[f"{case}_unce"], rtol=1e-5, atol=1e-5)
    assert_allclose(losses.unbiased_distillation(logits, old_logits), GOLDEN[f"{case}_unkd"], rtol=1e-5, atol=1e-6)
    assert_allclose(losses.distillation(logits, old_logits), GOLDEN[f"{case}_kd"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_golden_binary_cross_entropies(case):
    _, logits, old_logits, labels = load(case)
    assert_allclose(losses.binary_cross_entropy(logits, labels), GOLDEN[f"{case}_bce"], rtol=1e-5, atol=1e-5)
    icarl = losses.binary_cross_entropy_with_teacher(logits, old_logits, labels)
    assert_allclose(icarl, GOLDEN[f"{case}_icarl_disjoint"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_golden_gradients_of_the_mean(case):
    old, logits, old_logits, labels = load(case)
    unce = jax.grad(lambda z: jnp.mean(losses.unbiased_cross_entropy(z, labels, num_old=old)))(logits)
    unkd = jax.grad(lambda z: jnp.mean(losses.unbiased_distillation(z, old_logits)))(logits)
    assert_allclose(jnp.moveaxis(unce, -1, 1), GOLDEN[f"{case}_unce_mean_grad"], rtol=1e-4, atol=1e-8)
    assert_allclose(jnp.moveaxis(unkd, -1, 1), GOLDEN[f"{case}_unkd_mean_grad"], rtol=1e-4, atol=1e-8)


def test_cross_entropy_by_hand_and_ignored_pixels():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.3, 0.5]]))
    values = losses.cross_entropy(logits, jnp.array([0, 2, 255]))
    assert_allclose(values, [-np.log(0.5), -np.log(0.8), 0.0], rtol=1e-6)
    gradient = jax.grad(lambda z: jnp.sum(losses.cross_entropy(z, jnp.array([0, 2, 255]))))(logits)
    assert_allclose(gradient[2], 0.0)


def test_unbiased_cross_entropy_by_hand():
    """Background in the labels collects the probability of background and of the old class."""
    logits = jnp.log(jnp.array([[0.5, 0.2, 0.3]] * 4))
    values = losses.unbiased_cross_entropy(logits, jnp.array([0, 1, 2, 255]), num_old=2)
    assert_allclose(values, [-np.log(0.7), -np.log(0.7), -np.log(0.3), 0.0], rtol=1e-6)


def test_unbiased_distillation_by_hand():
    student = jnp.log(jnp.array([0.5, 0.2, 0.3]))
    teacher = jnp.log(jnp.array([0.6, 0.4]))
    expected = -(0.6 * np.log(0.8) + 0.4 * np.log(0.2)) / 2
    assert_allclose(losses.unbiased_distillation(student, teacher), expected, rtol=1e-6)


def test_losses_survive_huge_logits():
    logits = jnp.array([[1e4, -1e4, 0.0]])
    for value in (
        losses.cross_entropy(logits, jnp.array([1])),
        losses.unbiased_cross_entropy(logits, jnp.array([2]), num_old=2),
        losses.unbiased_distillation(logits, jnp.array([[0.0, 1e4]])),
        losses.binary_cross_entropy(logits, jnp.array([1])),
        losses.binary_cross_entropy_with_teacher(logits, jnp.array([[0.0, 1e4]]), jnp.array([2])),
    ):
        assert np.all(np.isfinite(value))


def test_shapes_in_signatures_are_checked():
    """By the import hook of conftest.py; without it a wrong shape would broadcast in silence."""
    with pytest.raises(TypeCheckError, match="labels"):
        losses.cross_entropy(jnp.zeros((4, 3)), jnp.zeros(1, jnp.int32))


def test_normalised_entropy_is_1_for_equal_and_0_for_certain_classes():
    equal, certain = jnp.zeros((2, 7)), jnp.eye(7)[:2] * 200.0
    assert_allclose(losses.normalised_entropy(equal), 1.0, rtol=1e-5)
    assert_allclose(losses.normalised_entropy(certain), 0.0, atol=1e-6)
    assert_allclose(losses.normalised_entropy(jnp.zeros((3, 1))), 0.0, atol=1e-6)
