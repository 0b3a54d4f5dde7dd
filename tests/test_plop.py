"""PLOP's pseudo-labels, thresholds and factor against published numbers; the named choices against their definitions."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nest_jax import blockwise
from nest_jax.methods import plop

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "losses.npz"))
CASES = sorted({key.split("_")[0] for key in GOLDEN if key.endswith("_pseudo_labels")})


def method(num_old, num_new, **settings):
    return plop.build({**plop.defaults("plop"), **settings}, num_old=num_old, num_new=num_new)


@pytest.mark.parametrize("case", CASES)
def test_golden_pseudo_labels_and_adaptive_factor(case):
    """Seen through the method's own terms: where logits are huge, the cross entropy names the label that was used."""
    g = {key.removeprefix(f"{case}_"): value for key, value in GOLDEN.items() if key.startswith(f"{case}_")}
    old_logits, labels = jnp.asarray(np.moveaxis(g["old_logits"], 1, -1)), jnp.asarray(g["labels"].astype(np.int32))
    num_old, classes = old_logits.shape[-1], g["logits"].shape[1]
    assert int(g["old"]) == num_old
    assert_allclose(g["max_entropy"], np.log(classes), rtol=1e-6)
    terms = method(num_old, classes - num_old)
    # `thresholds` hold for entropy / max_entropy, which is what the method compares.
    pixel = {"prepared": jnp.asarray(g["thresholds"])}
    expected = g["pseudo_labels"]
    for label in np.unique(expected):
        logits = jnp.zeros((*labels.shape, classes)).at[..., min(int(label), classes - 1)].set(100.0)
        found = terms.pixel_terms(logits, old_logits, labels, **pixel)
        if label == 255:
            assert_array_equal(np.asarray(found["ce"])[expected == 255], 0.0)
        else:
            assert_array_equal(np.asarray(found["ce"]) < 1.0, (expected == label) | (expected == 255))
    sums = blockwise.sums_per_image(
        lambda z, o, y: terms.pixel_terms(z, o, y, **pixel), jnp.zeros((*labels.shape, classes)), old_logits, labels
    )
    factor = sums["certain"] / (sums["unlabelled"] + 1e-6)
    assert_allclose(factor, g["adaptive_factor"], rtol=1e-5)
    pixels = labels.shape[1] * labels.shape[2]
    assert_allclose(terms.combine(sums, pixels)["ce"], np.mean(factor * sums["ce"]) / pixels, rtol=1e-6)


def counts(*rows):
    found = np.zeros((len(rows), plop.BINS), np.float32)
    for row, values in zip(found, rows, strict=True):
        for index, value in values.items():
            row[index] = value
    return jnp.asarray(found)


def test_the_clean_threshold_is_the_median():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(4, 50, 40, 6)).astype(np.float32)) * 3
    labels = jnp.asarray(rng.choice([0, 6, 255], size=(4, 50, 40)).astype(np.int32))
    terms = method(6, 2, thresholds="clean")
    assert terms.preparation is not None
    thresholds = terms.preparation.finish(terms.preparation.sums(logits, labels))
    probabilities = np.asarray(jnp.exp(logits - jnp.log(jnp.sum(jnp.exp(logits), -1, keepdims=True))), np.float64)
    entropy = -(probabilities * np.log(probabilities + 1e-8)).sum(-1) / np.log(6)
    for label in range(6):
        mask = (probabilities.argmax(-1) == label) & (np.asarray(labels) == 0)
        assert_allclose(thresholds[label], np.median(entropy[mask]), atol=0.006)  # bins are .01 wide
    assert_allclose(plop.medians(counts({3: 10}, {0: 5, 1: 5}, {})), [0.035, 0.01, 0.0], rtol=1e-6)


def test_the_published_threshold_is_a_median_only_in_the_first_bin():
    one_bin = plop.published_medians(counts({0: 10}, {0: 6, 4: 4}))
    assert_allclose(one_bin, [0.005, 0.01 * 5 / 6], rtol=1e-6)
    # Half is 50; before bin 2 the numbers 0 + 1 have been added instead of counts.
    assert_allclose(plop.published_medians(counts({2: 100})), [(2 + (50 - 1) / 100) / 100], rtol=1e-6)
    # No bin holds the half: the last one is divided by, and it is empty.
    spread = plop.published_medians(counts(dict.fromkeys(range(50), 1000), dict.fromkeys(range(41), 10), {}))
    assert spread[0] == np.inf and spread[1] == -np.inf and spread[2] == 0.0
    # All of ADE20K's entropies lie in the first bin, and the threshold above all of them.
    terms = method(101, 5)
    assert terms.preparation is not None
    sums = terms.preparation.sums(jnp.zeros((1, 2, 2, 101)), jnp.zeros((1, 2, 2), jnp.int32))
    assert_allclose(terms.preparation.finish(sums)[0], 0.005, rtol=1e-5)
    found = terms.pixel_terms(
        jnp.zeros((1, 2, 2, 106)),
        jnp.zeros((1, 2, 2, 101)),
        jnp.zeros((1, 2, 2), jnp.int32),
        prepared=terms.preparation.finish(sums),
    )
    assert_array_equal(found["certain"], 1.0)


def test_an_image_without_background_has_no_loss():
    """0 certain of 0 unlabelled: the published factor is 0, though the image has new labels."""
    terms = method(3, 1)
    sums = {"ce": jnp.array([8.0, 8.0]), "certain": jnp.array([0.0, 2.0]), "unlabelled": jnp.array([0.0, 2.0])}
    assert_allclose(terms.combine(sums, 4)["ce"], (0 + 8) / 2 / 4, rtol=1e-5)


def test_settings_are_checked():
    assert plop.problems(plop.defaults("plop")) == []
    assert plop.problems({**plop.defaults("plop"), "thresholds": "mean"}) == [
        "thresholds: 'mean' is not one of code, clean"
    ]
