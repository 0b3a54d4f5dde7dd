from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.testing import assert_allclose, assert_array_equal

from nest_jax import nest, optim


def torch_sgd(w, gradients, lr, momentum, weight_decay, power):
    """PyTorch's SGD with Nesterov momentum, poly schedule advanced after the update."""
    buffer, steps = np.zeros_like(w), len(gradients)
    for i, gradient in enumerate(gradients):
        g = gradient + weight_decay * w
        buffer = momentum * buffer + g
        w = w - lr * (1 - i / steps) ** power * (g + momentum * buffer)
    return w


def apply(optimiser, params, gradients) -> Any:
    opt_state = optimiser.init(params)
    for gradient in gradients:
        updates, opt_state = optimiser.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_sgd_is_pytorchs():
    rng = np.random.default_rng(0)
    w, gradients = rng.normal(size=4), rng.normal(size=(6, 4))
    optimiser = optim.sgd(optim.poly(0.1, 6, 0.9), momentum=0.9, weight_decay=0.01)
    found = apply(optimiser, {"w": jnp.asarray(w)}, [{"w": jnp.asarray(g)} for g in gradients])
    assert_allclose(found["w"], torch_sgd(w, gradients, 0.1, 0.9, 0.01, 0.9), rtol=1e-5)


def test_poly_ends_at_zero_and_never_turns_nan():
    start = optim.poly(0.5, 9, 0.9).init({})
    assert isinstance(start, optim.PolyState)

    def rates(steps, shift):
        return [float(optim.rate(start._replace(count=jnp.int32(i)), 0.9, shift=shift)) for i in steps]

    assert rates([0], 0) == [0.5]
    assert_allclose(rates([8], 0), 0.5 * (1 / 9) ** 0.9, rtol=1e-6)
    assert_allclose(rates([0], 1), 0.5 * (8 / 9) ** 0.9, rtol=1e-6)
    assert rates([8, 9, 20], 1) == [0.0, 0.0, 0.0]


def test_frozen_elements_do_not_move_at_all():
    plain = optim.sgd(optim.poly(0.1, 9, 0.9), momentum=0.9, weight_decay=0.1)
    trainable = {"a": jnp.array([False, True]), "b": True}
    params = {"a": jnp.array([1.0, 1.0]), "b": jnp.ones(3)}
    gradient = {"a": jnp.array([5.0, 5.0]), "b": jnp.ones(3)}
    found = apply(optim.freeze(plain, trainable), params, [gradient] * 3)
    free = apply(plain, params, [gradient] * 3)
    assert_array_equal(found["a"][0], 1.0)
    assert_array_equal(found["a"][1], free["a"][1])
    assert_array_equal(found["b"], free["b"])


def test_pretuning_of_equal_shape_is_one_program():
    """Rate, number of steps, classifier, start and key are data, as in the training step."""

    def programs(rate, epochs, seed):
        rng, found = np.random.default_rng(seed), {}

        def run(phase, step, carry, frozen, batches, steps):
            found[phase] = jax.jit(step).lower(carry, frozen, next(iter(batches(0)))).as_text()
            return carry

        kernel, bias, features = (rng.normal(size=shape).astype(np.float32) for shape in ((9, 5), (5,), (2, 6, 6, 9)))
        batches = [(features, rng.choice([0, 5, 6], size=(2, 6, 6)).astype(np.int32))]
        settings = nest.Settings(epochs=epochs, learning_rate=rate, statistics_stride=1)
        nest.new_classifier(kernel, bias, batches, settings, num_new=2, key=jax.random.key(seed), run=run)
        return found

    assert programs(0.5, 5, 0) == programs(0.001, 15, 1)
