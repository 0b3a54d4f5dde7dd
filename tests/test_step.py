"""The training step against a trajectory of the published code, and its own invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nest_jax import config as configs
from nest_jax import optim, plugins, state, step, torch_weights, upsample
from nest_jax import segmenter as seg
from tests.deterministic_state import GOLDEN, state_dict

IDENTITY = np.arange(256, dtype=np.uint8)


def torch_model(config, segmenter, published, tasks):
    """{"network", "classifier", "batch_stats"} from a published state dict with classifiers `cls.0` .. of `tasks` tasks."""
    params, stats = jax.eval_shape(lambda: seg.init(segmenter, jax.random.key(0), 64))
    network = {k: v for k, v in published.items() if not k.startswith("cls.")}
    tree = torch_weights.to_tree(
        network, {"params": params, "batch_stats": stats}, lambda path: seg.torch_name(config, path)
    )
    kernel = np.concatenate([published[f"cls.{t}.weight"][:, :, 0, 0] for t in range(tasks)]).T
    bias = np.concatenate([published[f"cls.{t}.bias"] for t in range(tasks)])
    return {
        "network": tree["params"],
        "classifier": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)},
        "batch_stats": tree["batch_stats"],
    }


def torch_entries(config, final):
    """name -> array in the published naming, classifiers split again."""
    tree = {"params": final.params["network"], "batch_stats": final.batch_stats}
    entries = torch_weights.from_tree(tree, lambda path: seg.torch_name(config, path))
    kernel, bias = (np.asarray(final.params["classifier"][k]) for k in ("kernel", "bias"))
    for name, columns in {"cls.0": slice(0, 16), "cls.1": slice(16, 17)}.items():
        entries[f"{name}.weight"] = kernel[:, columns].T[:, :, None, None]
        entries[f"{name}.bias"] = bias[columns]
    return entries


PUBLISHED_TERMS = {"mib": {"unce": 0, "unkd": 1}, "plop": {"ce": 0, "pod": 3}}  # columns of loss_ce_kd_de_pod


@pytest.mark.parametrize("name", PUBLISHED_TERMS)
def test_trajectory_of_the_published_code(name):
    """Three steps on ResNet-50: every loss, and every entry's movement to 1e-3 of the movement + 1e-6 of its norm."""
    golden = np.load(GOLDEN / f"trajectory_{name}_resnet50.npz")
    images = np.moveaxis(golden["images"], 2, -1)
    # The published PLOP step writes its pseudo-labels (here all of class 1) into the labels, and the file holds them so.
    labels = np.where(golden["labels"] == 1, 0, golden["labels"])
    batches = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
    config = configs.resolve(configs.load(f"configs/voc_15_1.py:backbone=resnet50,method={name}"))
    segmenter = seg.build(config)
    published = state_dict("deeplabv3_resnet50")
    published = {k: v * np.float32(0.2) if k.endswith(".bn3.weight") else v for k, v in published.items()}
    teacher = torch_model(config, segmenter, published, tasks=1)
    student = torch_model(config, segmenter, published, tasks=2)

    method = plugins.load("methods", name).build(config.method, num_old=16, num_new=1)
    optimiser = optim.sgd(
        optim.poly(float(golden["lr"]), 3, 0.9), momentum=0.9, weight_decay=float(golden["weight_decay"])
    )
    if name == "plop":
        optimiser = optim.freeze(optimiser, state.trainable(student, frozen_classes=16))
    frozen = {"teacher": teacher, "table": jnp.asarray(IDENTITY), "key": jnp.zeros(2, jnp.uint32)}
    prepared = None
    with jax.default_matmul_precision("highest"):
        if method.preparation:
            sums, pass_step = step.no_sums(method, 16), jax.jit(step.make_preparation(segmenter, method))
            for batch in batches:
                sums, _ = pass_step(sums, frozen, batch)
            prepared = method.preparation.finish(sums)
            assert_allclose(prepared, golden["thresholds"][:16], rtol=1e-5)
        train_step = jax.jit(step.make(segmenter, method, optimiser))
        now = state.create(student, optimiser, prepared)
        for batch, expected in zip(batches, golden["loss_ce_kd_de_pod"], strict=True):
            now, terms = train_step(now, frozen, batch)
            for term, column in PUBLISHED_TERMS[name].items():
                assert_allclose(terms[term], expected[column], rtol=1e-4, err_msg=term)
            assert_allclose(terms["loss"], expected.sum(), rtol=1e-4)

    moved = torch_entries(config, now)
    assert set(moved) == set(golden["param_names"])
    failures = []
    for entry, delta, norm in zip(
        golden["param_names"], golden["param_delta_norm"], golden["param_final_norm"], strict=True
    ):
        found = np.linalg.norm(moved[entry].astype(np.float64) - published[entry])
        if abs(found - delta) > 1e-3 * delta + 1e-6 * norm:
            failures.append(f"{entry}: moved by {found}, published {delta}")
    assert not failures, "\n".join(failures)

    features, _ = seg.apply(segmenter, now.params["network"], now.batch_stats, jnp.asarray(images[0]), train=False)
    logits = upsample.bilinear(seg.logits(features.pre_logits, now.params["classifier"]), (64, 64))
    found = np.moveaxis(np.asarray(logits), -1, 1)[:, :, ::5, ::5]
    assert_allclose(found, golden["final_logits"], rtol=1e-3, atol=1e-3 * np.abs(golden["final_logits"]).max())


@pytest.fixture(scope="module")
def tiny():
    """A tiny network with 3 old classes and 1 new one, and a batch of raw labels."""
    config = configs.resolve(configs.load("configs/shapes.py"))
    segmenter = seg.build(config)
    network, stats = seg.init(segmenter, jax.random.key(0), 32)
    rng = np.random.default_rng(0)

    def classifier(classes):
        return {
            "kernel": jnp.asarray(rng.normal(size=(segmenter.channels, classes)), jnp.float32) * 0.3,
            "bias": jnp.zeros(classes),
        }

    bright = rng.choice([0, 1], size=(8, 4, 4)).repeat(8, axis=1).repeat(8, axis=2)
    label = np.where(rng.random((8, 32, 32)) < 0.05, 255, 3 * bright)
    noise = rng.integers(0, 60, (8, 32, 32, 3))
    batch = {"image": (150 * bright[..., None] + noise).astype(np.uint8), "label": label.astype(np.uint8)}
    old = {"network": network, "classifier": classifier(3), "batch_stats": stats}
    new = {**old, "classifier": classifier(4)}
    return config, segmenter, old, new, batch


def make(tiny, *, optimiser=None, **options):
    config, segmenter, old, new, _ = tiny
    method = plugins.load("methods", "mib").build({"distillation": 10.0}, num_old=3, num_new=1)
    optimiser = optimiser or optim.sgd(optim.poly(0.05, 100, 0.9), momentum=0.9, weight_decay=1e-4)
    frozen = {"teacher": old, "table": jnp.asarray(IDENTITY), "key": jnp.zeros(2, jnp.uint32)}
    return jax.jit(step.make(segmenter, method, optimiser, **options)), state.create(new, optimiser), frozen


def test_loss_falls_and_the_step_compiles_once(tiny):
    train_step, now, frozen = make(tiny)
    losses = []
    for _ in range(15):
        now, terms = train_step(now, frozen, tiny[-1])
        losses.append((float(terms["loss"]), float(terms["unce"])))
    assert losses[-1][0] < losses[0][0]  # distillation from a random teacher has a floor, the labels have none
    assert losses[-1][1] < 0.8 * losses[0][1]
    assert train_step._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]
    assert int(now.step) == 15


def test_tasks_of_equal_shape_share_one_program(tiny):
    """Rate, number of steps, labels, key and teacher are data: nothing of a task but its shapes is compiled in."""

    def program(rate, steps, seed):
        train_step, now, frozen = make(
            tiny, optimiser=optim.sgd(optim.poly(rate, steps, 0.9), momentum=0.9, weight_decay=1e-4)
        )
        table = jnp.asarray(np.random.default_rng(seed).permutation(IDENTITY))
        return train_step.lower(
            now, {**frozen, "table": table, "key": jnp.full(2, seed, jnp.uint32)}, tiny[-1]
        ).as_text()

    assert program(0.05, 100, 0) == program(0.001, 33, 7)


def test_frozen_classifiers_stay_bit_equal(tiny):
    _, _, _, new, batch = tiny
    plain = optim.sgd(optim.poly(0.05, 100, 0.9), momentum=0.9, weight_decay=1e-4)
    train_step, now, frozen = make(tiny, optimiser=optim.freeze(plain, state.trainable(new, frozen_classes=3)))
    for _ in range(3):
        now, _ = train_step(now, frozen, batch)
    for name in ("kernel", "bias"):
        assert_array_equal(now.params["classifier"][name][..., :3], new["classifier"][name][..., :3])
        assert np.all(now.params["classifier"][name][..., 3:] != new["classifier"][name][..., 3:])
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), now.params["network"], new["network"])
    assert all(jax.tree.leaves(moved))


def test_the_label_table_is_applied(tiny):
    """With every label ignored, cross entropy vanishes and distillation stays."""
    train_step, now, frozen = make(tiny)
    _, terms = train_step(now, {**frozen, "table": jnp.full(256, 255, jnp.uint8)}, tiny[-1])
    assert float(terms["unce"]) == 0.0 and float(terms["unkd"]) > 0.0


def test_accumulated_gradient_is_that_of_the_whole_batch(tiny):
    """Of a batch whose two halves are equal, so that batch statistics are too; the halves are rows 0, 2, .. and 1, 3, .."""
    batch = jax.tree.map(lambda x: np.repeat(x[:4], 2, axis=0), tiny[-1])
    whole, now, frozen = make(tiny)
    parts, _, _ = make(tiny, accumulation=2)
    a, terms = whole(now, frozen, batch)
    b, part_terms = parts(now, frozen, batch)
    assert_allclose(part_terms["loss"], terms["loss"], rtol=1e-5)
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        assert_allclose(x, y, rtol=1e-4, atol=1e-6)
