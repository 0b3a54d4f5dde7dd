"""RCIL: the two-branch network and its merge against the published code's numbers, random fusion, and what a student trains."""

import dataclasses
import json
import struct
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from numpy.testing import assert_allclose, assert_array_equal

from nest_jax import distillation, layers, optim, plugins, segmenter, state, step, torch_weights, two_branch
from nest_jax.backbones import resnet
from nest_jax.errors import InputError
from nest_jax.methods import rcil
from tests import deterministic_state
from tests.deterministic_state import GOLDEN

SHALLOW: dict[str, Any] = {"blocks": (1, 1, 1, 1)}


def config(decoder: dict[str, Any] | None = None, **backbone):
    sections = {}
    for kind, section, name in (("backbones", "backbone", "resnet50_rc"), ("decoders", "decoder", "deeplabv3_rc")):
        sections[section] = {"name": name, **plugins.load(kind, name).defaults(name)}
    sections["backbone"].update(pretrained="none", **backbone)
    sections["decoder"].update(decoder or {})
    return ConfigDict({"dtype": "float32", **sections})


def leaves(tree) -> dict:
    return dict(flatten_dict(tree))


# ------------------------------------------------------------------------------------------------------------ published numbers


@pytest.fixture(scope="module")
def published():
    """The published network: its evaluation as a function of trees, the trees, and the published numbers."""
    settings = config()
    model = segmenter.build(settings)
    shapes = jax.eval_shape(lambda: segmenter.init(model, jax.random.key(0), 96))
    entries = deterministic_state.state_dict("rcil_resnet50")
    target = {"params": shapes[0], "batch_stats": shapes[1]}
    # every name and shape is accounted for
    tree = torch_weights.to_tree(
        entries, target, lambda path: segmenter.torch_name(settings, path), ignore=(r"cls\..*",)
    )
    kernel = np.concatenate([entries["cls.0.weight"], entries["cls.1.weight"]])[:, :, 0, 0].T
    bias = np.concatenate([entries["cls.0.bias"], entries["cls.1.bias"]])
    classifier = {"kernel": jnp.array(kernel), "bias": jnp.array(bias)}
    images = jnp.array(deterministic_state.network_input("g1/", (2, 3, 96, 96)).transpose(0, 2, 3, 1))

    @jax.jit
    def evaluate(params, batch_stats):
        with jax.default_matmul_precision("highest"):
            features, _ = segmenter.apply(model, params, batch_stats, images, train=False)
            maps = {
                f"att{i}": found[:, ::2, ::2, ::16] for i, found in enumerate((*features.maps, features.pre_logits))
            }
            small = segmenter.logits(features.pre_logits, classifier)
            return {"logits_small": small, "pre_logits": features.pre_logits, **maps}

    return evaluate, tree["params"], tree["batch_stats"], np.load(GOLDEN / "rcil_resnet50.npz")


def assert_published(found, golden, prefix):
    assert len(found) == 7
    for name, ours in found.items():
        theirs = golden[f"{prefix}_{name}"]
        ours = np.moveaxis(np.asarray(ours), -1, 1)
        assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max(), name


def test_two_branches_merged_or_not(published):
    evaluate, params, batch_stats, golden = published
    assert_published(evaluate(params, batch_stats), golden, "two_branch")
    code = two_branch.merge(params, batch_stats, exact=False)
    assert_published(evaluate(*code), golden, "student_start")
    exact = two_branch.merge(params, batch_stats, exact=True)
    assert_published(evaluate(*exact), golden, "two_branch")
    assert not np.allclose(golden["two_branch_logits_small"], golden["student_start_logits_small"], rtol=0.1)

    # the second branch, and all that has one branch only, stay as they are
    changed = {path for path, value in leaves(code[0]).items() if np.any(value != leaves(params)[path])}
    fixed = {path for path, value in leaves(two_branch.trainable(params)).items() if not value}
    assert changed == fixed and len(fixed) == 16 * 3 + 4 + 2


# ------------------------------------------------------------------------------------------------------------------ small networks


@pytest.fixture(scope="module")
def small():
    """A network of one block per stage, with weights and statistics as of a trained one, and images."""
    settings = config({"channels": 16, "dilations": (2,)}, **SHALLOW)
    model = segmenter.build(settings)
    rng = np.random.default_rng(0)

    def numbers(path, leaf):
        noise = jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
        fan_in = max(leaf.size // leaf.shape[-1], 1)
        spread = {"kernel": noise / fan_in**0.5, "scale": 1 + 0.3 * noise, "var": 1 + 0.3 * jnp.abs(noise)}
        return spread.get(path[-1].key, 0.3 * noise)

    shapes = jax.eval_shape(lambda: segmenter.init(model, jax.random.key(0), 32))
    params, batch_stats = jax.tree_util.tree_map_with_path(numbers, shapes)
    return model, params, batch_stats, jnp.asarray(rng.normal(size=(4, 32, 32, 3)), jnp.float32)


def test_the_exact_merge_keeps_the_function_of_a_merged_and_trained_network(small):
    model, params, batch_stats, images = small
    params, batch_stats = two_branch.merge(params, batch_stats, exact=False)
    again = two_branch.merge(params, batch_stats, exact=True)
    pre_logits = jax.jit(lambda p, stats: segmenter.apply(model, p, stats, images, train=False)[0].pre_logits)
    expected = pre_logits(params, batch_stats)
    assert_allclose(pre_logits(*again), expected, atol=1e-5 * float(jnp.abs(expected).max()))
    for path, leaf in leaves(again[0]).items():
        if two_branch.twin(path) in leaves(again[0]):
            assert_array_equal(leaf, leaves(again[0])[two_branch.twin(path)])


def test_merge_survives_a_channel_that_is_switched_off():
    """gamma = 0 in both branches: the factor is InPlace-ABN's eps, and nothing is divided by it."""
    rng = np.random.default_rng(0)
    kernels = {name: {"kernel": rng.normal(size=(3, 3, 2, 2)).astype(np.float32)} for name in ("conv2", "conv2_new")}
    norms = {name: {"scale": np.array([0.0, -2.0], np.float32), "bias": np.ones(2)} for name in ("bn2", "bn2_new")}
    stats = {name: {"mean": np.full(2, 3.0), "var": np.full(2, 4.0 - 1e-5)} for name in ("bn2", "bn2_new")}
    params, found = two_branch.merge({**kernels, **norms}, stats, exact=False)
    mean = (kernels["conv2"]["kernel"] + kernels["conv2_new"]["kernel"]) / 2
    assert_allclose(params["conv2"]["kernel"], mean * np.array([1e-5, 2.0]) / 2, rtol=1e-4)
    factor = (jnp.abs(params["bn2"]["scale"]) + 1e-5) / jnp.sqrt(found["bn2"]["var"] + 1e-5)
    assert_allclose(factor, 1.0, rtol=1e-6)
    assert_allclose(params["bn2"]["bias"] - found["bn2"]["mean"], [1.0, 1 - 3.0], atol=1e-4)


def fuse(train, rngs=None):
    one, two = jnp.full((2, 3, 3, 3000), 4.0), jnp.zeros((2, 3, 3, 3000))
    return np.asarray(two_branch.Fusion().apply({}, one, two, train, rngs=rngs))


def test_fusion():
    key = {"dropout": jax.random.key(0)}
    assert_array_equal(fuse(train=False, rngs=key), 2.0)
    assert_array_equal(fuse(train=True), 2.0)
    fused = fuse(train=True, rngs=key)
    assert_array_equal(fused, np.broadcast_to(fused[:1, :1, :1], fused.shape))  # one draw for images and pixels
    shares = [float(np.mean(fused == value)) for value in (4.0, 0.0, 2.0)]
    assert_allclose(shares, [0.33, 0.33, 0.34], atol=0.03)
    assert sum(shares) == 1.0
    assert np.any(fused != fuse(train=True, rngs={"dropout": jax.random.key(1)}))


def test_blocks_fuse_at_random_where_they_are_given_a_key():
    block = resnet.Bottleneck(8, 1, 1, layers.InPlaceABN, layers.leaky_relu, two_branch.both, jnp.float32)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 16)), jnp.float32)
    variables = jax.jit(lambda: block.init(jax.random.key(0), x, False))()

    @jax.jit
    def forward(seed):
        keys = None if seed is None else {"dropout": jax.random.key(seed)}
        return block.apply(variables, x, True, rngs=keys, mutable=["batch_stats"])[0]

    outputs = [forward(None), forward(0), forward(1)]
    assert all(np.any(one != two) for one, two in zip(outputs, outputs[1:] + outputs[:1], strict=True))


def test_layers_draw_for_themselves():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, one, two):
            return [two_branch.Fusion(name=name)(one, two, True) for name in ("first", "second")]

    one, two = jnp.ones((1, 1, 1, 30)), jnp.zeros((1, 1, 1, 30))
    first, second = Two().apply({}, one, two, rngs={"dropout": jax.random.key(0)})
    assert np.any(first != second)


# ------------------------------------------------------------------------------------------------------------------------ method


def test_a_student_trains_all_but_the_merged_branches(small, monkeypatch):
    monkeypatch.setattr(distillation, "POOLING_SIZES", (4, 8))  # all six take long to compile
    model, network, batch_stats, images = small
    rng = np.random.default_rng(1)
    classifier = {
        "kernel": jnp.asarray(0.1 * rng.normal(size=(model.channels, 3)), jnp.float32),
        "bias": jnp.zeros(3),
    }
    teacher = {"network": network, "classifier": classifier, "batch_stats": batch_stats}
    student = rcil.student(rcil.defaults("rcil"), model, teacher)
    grown = jax.tree.map(lambda x: jnp.concatenate([x, x[..., :1]], -1), classifier)
    begin = {**student.model, "classifier": grown}
    assert jax.tree.structure(begin) == jax.tree.structure(teacher)

    # in eval mode it is the function of the run's own network
    evaluations = [
        jax.make_jaxpr(lambda params, stats, m=m: segmenter.apply(m, params, stats, images, train=False)[0])
        for m in (model, student.segmenter)
    ]
    one, two = (str(evaluation(begin["network"], begin["batch_stats"])) for evaluation in evaluations)
    assert one == two

    plain = optim.sgd(optim.poly(1e-3, 100, 0.9), momentum=0.9, weight_decay=1e-4)
    optimiser = optim.freeze(plain, state.trainable(begin, network=student.trainable))
    method = rcil.build(rcil.defaults("rcil"), num_old=3, num_new=1)
    train_step = jax.jit(step.make(student.segmenter, method, optimiser))
    frozen = {"teacher": teacher, "table": jnp.arange(256, dtype=jnp.uint8), "key": jnp.zeros(2, jnp.uint32)}
    now, losses = state.create(begin, optimiser), []
    batch = {"image": images, "label": rng.choice([0, 3], size=(4, 32, 32)).astype(np.uint8)}
    for _ in range(4):
        now, terms = train_step(
            dataclasses.replace(now, step=jnp.zeros((), jnp.int32)), frozen, batch
        )  # the same draw of branches
        losses.append(float(terms["loss"]))
    assert set(terms) >= {"loss", "unce", "unkd", "pooled_cube_spatial", "pooled_cube_channel"}
    assert losses[-1] < losses[0]

    before = leaves({"network": begin["network"], "stats": begin["batch_stats"], "classifier": begin["classifier"]})
    after = leaves({"network": now.params["network"], "stats": now.batch_stats, "classifier": now.params["classifier"]})
    still = {path for path in before if np.array_equal(before[path], after[path])}
    assert still == {path for path in before if two_branch.twin(path) in before}
    assert len(still) == 4 * 5 + 2 + 4


def test_student_start(small):
    model, network, batch_stats, _ = small
    teacher = {"network": network, "classifier": {}, "batch_stats": batch_stats}
    for start in rcil.STUDENT_STARTS:
        student = rcil.student({"student_start": start}, model, teacher)
        conv = student.model["network"]["body"]["mod4_block1"]
        same = np.array_equal(conv["conv2"]["kernel"], conv["conv2_new"]["kernel"])
        assert same == (start == "exact")


def test_bad_values_are_named():
    assert rcil.problems(rcil.defaults("rcil")) == []
    assert rcil.problems({**rcil.defaults("rcil"), "student_start": "half"}) == [
        "student_start: 'half' is not one of code, exact"
    ]


def test_needs_are_plugins():
    for section, variants in rcil.NEEDS.items():
        for name, variant in variants.items():
            kind = {"backbone": "backbones", "decoder": "decoders"}[section]
            assert plugins.load(kind, name) is plugins.load(kind, variant)


# --------------------------------------------------------------------------------------------------------------- pretrained weights


def test_second_branches_start_as_copies_of_pretrained_weights(tmp_path):
    backbone = plugins.load("backbones", "resnet50_rc")
    settings = {"name": "resnet50_rc", **backbone.defaults("resnet50_rc"), **SHALLOW}
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def shapes(name, module):
        network = module.build(name, {**settings, **module.defaults(name), **SHALLOW}, jnp.float32)
        return jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), images)

    target = shapes("resnet50_rc", backbone)
    random = np.random.default_rng(0).random
    entries = torch_weights.from_tree(
        jax.tree.map(lambda leaf: random(leaf.shape, np.float32), target), backbone.torch_name
    )
    published = {name: value for name, value in entries.items() if "_new" not in name}
    assert len(published) == len(entries) - 4 * 5
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, published)
    params, stats = backbone.load_pretrained({**settings, "pretrained": str(path)}, **target)
    name = "mod3.block1.convs"
    for suffix in ("", "_new"):
        kernel = params["mod3_block1"][f"conv2{suffix}"]["kernel"]
        assert_array_equal(kernel, published[f"{name}.conv2.weight"].transpose(2, 3, 1, 0))
        assert_array_equal(stats["mod3_block1"][f"bn2{suffix}"]["var"], published[f"{name}.bn2.running_var"])
    # a file with branches of its own keeps them, and is none for the ordinary network
    write_safetensors(path, entries)
    params, _ = backbone.load_pretrained({**settings, "pretrained": str(path)}, **target)
    kernel = entries[f"{name}.conv2_new.weight"].transpose(2, 3, 1, 0)
    assert_array_equal(params["mod3_block1"]["conv2_new"]["kernel"], kernel)
    with pytest.raises(InputError, match="not known to this network .*conv2_new"):
        backbone.load_pretrained(
            {**settings, "name": "resnet50", "norm": "iabn", "pretrained": str(path)}, **shapes("resnet50", backbone)
        )


def write_safetensors(path, entries):
    header, data = {}, b""
    for name, value in entries.items():
        raw = np.ascontiguousarray(value, np.float32).tobytes()
        header[name] = {"dtype": "F32", "shape": value.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
