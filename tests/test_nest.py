import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from nest_jax import nest, optim

GOLDEN = np.load("tests/golden/nest.npz") if False else None


def golden(case):
    from pathlib import Path

    data = np.load(Path(__file__).parent / "golden" / "nest.npz")
    return {k.removeprefix(case + "_"): v for k, v in data.items() if k.startswith(case + "_")}


def nhwc(x):
    return np.moveaxis(x, -3, -1)


def run_golden(case):
    g = golden(case)
    features = nhwc(g["features"])
    settings = nest.Settings(
        epochs=int(g["epochs"]),
        learning_rate=float(g["lr"]),
        weight_decay=float(g["weight_decay"]),
        statistics_stride=1,
    )
    statistics_batches = list(zip(features, g["labels"].astype(np.int32), strict=True))
    pretuning = nest.repeated(list(zip(features, g["pretune_labels"].astype(np.int32), strict=True)), settings.epochs)
    batches = pretuning._replace(statistics=lambda start: statistics_batches[start:])
    logs = []

    def run(phase, step, carry, frozen, batches, steps):
        step = jax.jit(step)
        for batch in batches(0):
            carry, log = step(carry, frozen, batch)
            logs.append(log)
        return carry

    result = nest.new_classifier(
        g["old_kernel"].T,
        g["old_bias"],
        batches,
        settings,
        num_new=len(g["init_new_bias"]),
        bias=jnp.asarray(g["init_new_bias"]),
        run=run,
    )
    return g, features, result, [float(log["unce"]) for log in logs if log]


@pytest.mark.parametrize("case", ["voc15_1", "multi"])
def test_golden(case):
    g, features, result, losses = run_golden(case)
    initial, tuned = result.details["initial"], result.details["pretuned"]
    assert_allclose(initial["importance"], g["importance_init"], rtol=1e-5, atol=1e-6)
    assert_allclose(initial["projection"], g["projection_init"], rtol=1e-5, atol=1e-7)

    old = {"kernel": jnp.asarray(g["old_kernel"].T), "bias": jnp.asarray(g["old_bias"])}
    before = nest.transformed(initial, old)
    logits = features[0] @ np.asarray(before["kernel"]) + np.asarray(before["bias"])
    assert_allclose(logits, nhwc(g["logits_first_batch"]), rtol=1e-5, atol=1e-5)
    assert_allclose(np.mean(np.reshape(losses, (int(g["epochs"]), -1)), axis=1), g["epoch_losses"], rtol=1e-5)

    # M moves by as little as 3e-5, so the movement itself is compared, not only the result.
    for name in ("importance", "projection"):
        moved = np.asarray(tuned[name]) - np.asarray(initial[name])
        expected = g[f"pretuned_{name}"] - g[f"{name}_init"]
        assert_allclose(moved, expected, rtol=1e-3, atol=2e-3 * np.abs(expected).max() + 1.2e-7)
        assert_allclose(tuned[name], g[f"pretuned_{name}"], rtol=1e-5, atol=1e-6)
    assert_allclose(tuned["bias"], g["pretuned_new_bias"], rtol=1e-5)
    assert_allclose(tuned["bg_importance"], g["pretuned_bg_importance"][0], rtol=1e-5)
    assert_allclose(tuned["bg_projection"], g["pretuned_bg_projection"][0, 0], rtol=1e-5)
    assert_allclose(result.kernel.T, g["final_kernel"], rtol=1e-4, atol=1e-6)
    assert_allclose(result.bias, g["final_bias"], rtol=1e-5)
