"""NeST against the published numbers, against its definition, and at its edges."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nest_jax import nest
from nest_jax.classifier_init import nest as plugin


def golden(case):
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


@pytest.fixture
def problem():
    """5 old classes, 3 new ones (5, 6, 7), features with negative values and exact zeros."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(2, 6, 6, 9)).astype(np.float32)
    features[np.abs(features) < 0.2] = 0.0
    kernel = rng.normal(size=(9, 5)).astype(np.float32)
    kernel[0, 0] = 0.0
    labels = rng.choice([0, 5, 6, 255], size=(2, 6, 6)).astype(np.int32)  # class 7 never appears
    return kernel, rng.normal(size=5).astype(np.float32), features, labels


def statistics_by_definition(kernel, bias, features, labels, label):
    """The paper's mean over pixels of 1[p_d W_id > 0] s_i, one pixel at a time."""
    total, count = np.zeros((kernel.shape[1], kernel.shape[0])), 0
    for p, y in zip(features.reshape(-1, features.shape[-1]), labels.reshape(-1), strict=True):
        if y == label:
            logits = p.astype(np.float64) @ kernel + bias
            scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            total += (kernel.T * p > 0) * scores[:, None]
            count += 1
    return total / count, count


@pytest.mark.parametrize("block", [1, 4, 256])
def test_closed_form_equals_the_definition(problem, monkeypatch, block):
    monkeypatch.setattr(nest, "BLOCK", block)  # classes of many blocks, of a part of one, of none
    kernel, bias, features, labels = problem
    old = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    statistics = nest.no_statistics(3, 5, 9)
    for i in range(2):  # batches add up
        statistics = nest.add_statistics(statistics, old, features[i : i + 1], labels[i : i + 1], stride=1)
    transform = nest.initial_transform(statistics, old, jnp.zeros(3))
    for c, label in enumerate((5, 6)):
        expected, count = statistics_by_definition(kernel, bias, features, labels, label)
        assert_allclose(transform["importance"][c], expected, rtol=1e-5, atol=1e-6)
        weights = np.exp(expected.sum(1) - expected.sum(1).max())
        assert_allclose(transform["projection"][c], weights / weights.sum(), rtol=1e-4)
        assert int(statistics["pixels"][c]) == count


def test_statistics_take_every_stride_th_label(problem):
    """Nearest resampling of the published code: pixel (4 i, 4 j) of the label map, not its centre."""
    kernel, bias, features, labels = problem
    old = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    fine = np.full((2, 24, 24), 255, np.int32)
    fine[:, ::4, ::4] = labels
    empty = nest.no_statistics(3, 5, 9)
    coarse = nest.add_statistics(empty, old, features, labels, stride=1)
    for name, value in nest.add_statistics(empty, old, features, fine, stride=4).items():
        assert_allclose(value, coarse[name], rtol=1e-6, err_msg=name)


def test_class_without_a_pixel_starts_from_background_and_is_named(problem):
    kernel, bias, features, labels = problem
    settings = nest.Settings(epochs=1, statistics_stride=1, weight_alignment=False)
    result = nest.new_classifier(kernel, bias, [(features, labels)], settings, num_new=3)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(result))
    before = nest.transformed(result.details["initial"], {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)})
    assert_allclose(before["kernel"][:, 7], kernel[:, 0], rtol=1e-6)
    assert plugin.warnings(result.details, ["ant", "bee", "cicada"]) == [
        "NeST: no pixel of 'cicada' was sampled; its pre-tuning started from the background classifier"
    ]


def test_only_new_classes_and_background_change(problem):
    kernel, bias, features, labels = problem
    copies = kernel.copy(), bias.copy()
    result = nest.new_classifier(
        kernel, bias, [(features, labels)], nest.Settings(epochs=4, statistics_stride=1), num_new=3
    )
    assert_array_equal(kernel, copies[0])
    assert_array_equal(result.kernel[:, 1:5], kernel[:, 1:])
    assert_array_equal(result.bias[:5], bias)
    assert np.any(result.kernel[:, 0] != kernel[:, 0])
    assert_allclose(np.linalg.norm(result.kernel[:, 0]), np.linalg.norm(kernel[:, 0]), rtol=1e-5)
    norms = np.linalg.norm(result.kernel, axis=0)
    assert_allclose(norms[5:].mean(), norms[:5].mean(), rtol=1e-5)
    assert_allclose(np.linalg.norm(result.bias[5:]), np.linalg.norm(bias), rtol=1e-5)


def test_pretuning_lowers_the_loss(problem):
    kernel, bias, features, labels = problem
    logged = []

    def run(phase, step, carry, frozen, batches, steps):
        for batch in batches(0):
            carry, log = step(carry, frozen, batch)
            logged.extend(float(v) for v in log.values())
        return carry

    settings = nest.Settings(epochs=30, learning_rate=0.1, statistics_stride=1)
    nest.new_classifier(kernel, bias, [(features, labels)], settings, num_new=3, run=run)
    assert len(logged) == 30 and logged[-1] < 0.9 * logged[0]


@pytest.fixture
def written(problem):
    """write_back of one transform under given settings."""
    kernel, bias, features, labels = problem
    old = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    statistics = nest.add_statistics(nest.no_statistics(3, 5, 9), old, features, labels, stride=1)
    transform = nest.initial_transform(statistics, old, jnp.array([0.1, -0.2, 0.4]))
    transform["bg_importance"] = transform["bg_importance"] * 2.0
    return lambda **choices: (nest.write_back(transform, old, nest.Settings(**choices)), old, transform)


def test_named_choices_of_the_write_back(written):
    free, old, _ = written(background_norm="free", bias_rescale="off", weight_alignment=False)
    assert_allclose(free["kernel"][:, 0], 2.0 * old["kernel"][:, 0], rtol=1e-6)
    assert_allclose(free["bias"][5:], [0.1, -0.2, 0.4], rtol=1e-6)
    restored, _, _ = written(background_norm="restore", weight_alignment=False)
    assert_allclose(restored["kernel"][:, 0], old["kernel"][:, 0], rtol=1e-6)
    assert_allclose(restored["kernel"][:, 5:], free["kernel"][:, 5:], rtol=1e-6)
    mean_abs, _, _ = written(bias_rescale="mean_abs")
    assert_allclose(np.abs(mean_abs["bias"][5:]).mean(), np.abs(old["bias"]).mean(), rtol=1e-5)
    # The background is rewritten first, so that a free one weighs in the alignment.
    aligned, _, _ = written(background_norm="free", weight_alignment=True)
    norms = np.linalg.norm(aligned["kernel"], axis=0)
    assert_allclose(norms[5:].mean(), norms[:5].mean(), rtol=1e-5)


def test_zero_biases_and_kernels_are_not_divided_by(written):
    _, old, transform = written()
    zero = {**transform, "bias": jnp.zeros(3), "importance": jnp.zeros((3, 5, 9)), "bg_projection": jnp.zeros(())}
    result = nest.write_back(zero, old, nest.Settings())
    assert np.all(np.isfinite(result["kernel"])) and np.all(np.isfinite(result["bias"]))


def test_named_choices_of_the_new_bias():
    old = {"kernel": jnp.ones((16, 3)), "bias": jnp.array([0.7, 0.1, 0.2])}
    key = jax.random.key(0)
    random = nest.initial_bias(key, old, 4, nest.Settings())
    assert len(set(np.asarray(random).tolist())) == 1 and 0 < abs(float(random[0])) <= 0.25  # one common scalar
    assert_allclose(nest.initial_bias(key, old, 2, nest.Settings(new_bias="background")), [0.7, 0.7])
    assert_allclose(nest.initial_bias(key, old, 2, nest.Settings(new_bias="zeros")), [0.0, 0.0])


def test_the_published_schedule_ends_one_step_early(problem):
    """ "shifted": the last update has rate 0 and only momentum is left undone; "plain" moves on."""
    kernel, bias, features, labels = problem
    batches = [(features, labels)]

    def tuned(schedule, epochs):
        settings = nest.Settings(epochs=epochs, schedule=schedule, statistics_stride=1, learning_rate=0.1)
        return nest.new_classifier(kernel, bias, batches, settings, num_new=3).details

    one = tuned("shifted", 1)
    assert_array_equal(one["pretuned"]["importance"], one["initial"]["importance"])
    assert np.any(tuned("plain", 1)["pretuned"]["importance"] != one["initial"]["importance"])


def test_settings_of_the_config_are_checked():
    section = {**plugin.defaults("nest"), "bias_rescale": "l3"}
    assert plugin.problems(section) == ["bias_rescale: 'l3' is not one of l2_total, mean_abs, off"]
    assert plugin.problems(plugin.defaults("nest")) == []


@pytest.mark.parametrize(("matrices", "fixed"), [("projection", "importance"), ("importance", "projection")])
def test_one_matrix_alone_is_learnt(problem, matrices, fixed):
    """Table 5: M is one and stays, or P is the mean over old classes and stays; the other one starts from the statistics."""
    kernel, bias, features, labels = problem
    common = {"epochs": 4, "statistics_stride": 1, "learning_rate": 0.1}
    both = nest.new_classifier(kernel, bias, [(features, labels)], nest.Settings(**common), num_new=3).details
    settings = nest.Settings(**common, matrices=matrices)
    one = nest.new_classifier(kernel, bias, [(features, labels)], settings, num_new=3).details
    value = 1.0 if fixed == "importance" else 1 / 5
    for moment in ("initial", "pretuned"):
        assert_allclose(one[moment][fixed], np.full_like(both["initial"][fixed], value), rtol=1e-6)
    assert_array_equal(one["initial"][matrices], both["initial"][matrices])
    assert np.all(np.any(one["pretuned"][matrices] != one["initial"][matrices], axis=-1))
    assert np.any(one["pretuned"]["bias"] != one["initial"]["bias"])


def test_random_matrices_need_no_statistics(problem):
    """Table 4: Kaiming normal on fan-out, of which M's is new x d and P's new."""
    kernel, bias, features, labels = problem
    phases = []

    def run(phase, step, carry, frozen, batches, steps):
        phases.append(phase)
        return nest.run_all(phase, step, carry, frozen, batches, steps)

    settings = nest.Settings(epochs=1, statistics_stride=1, matrix_init="random")
    result = nest.new_classifier(kernel, bias, [(features, labels)], settings, num_new=3, run=run)
    assert phases == ["pretuning"] and "pixels" not in result.details
    assert plugin.warnings(result.details, ["ant", "bee", "cicada"]) == []
    old = {"kernel": jnp.zeros((64, 40)), "bias": jnp.zeros(40)}
    drawn = nest.random_transform(jax.random.key(0), old, jnp.zeros(20))
    assert_allclose(np.std(drawn["importance"]), np.sqrt(2 / (20 * 64)), rtol=0.02)
    assert_allclose(np.std(drawn["projection"]), np.sqrt(2 / 20), rtol=0.1)


def test_background_may_stay_untransformed(problem):
    kernel, bias, features, labels = problem
    common = {"epochs": 4, "statistics_stride": 1, "learning_rate": 0.1, "weight_alignment": False}
    free = nest.new_classifier(kernel, bias, [(features, labels)], nest.Settings(**common), num_new=3)
    fixed = nest.Settings(**common, background_transform=False)
    result = nest.new_classifier(kernel, bias, [(features, labels)], fixed, num_new=3)
    assert np.any(free.kernel[:, 0] != kernel[:, 0])
    assert_allclose(result.kernel[:, 0], kernel[:, 0], rtol=1e-6)
