"""The whole network against PyTorch's numbers, and the interface that the rest builds on."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from nest_jax import plugins, segmenter, torch_weights, upsample
from nest_jax.decoders import deeplabv3
from nest_jax.errors import InputError
from tests import deterministic_state
from tests.deterministic_state import GOLDEN


def config(backbone="tiny", decoder="plain", dtype="float32", **decoder_values):
    sections = {}
    for kind, section, name in (("backbones", "backbone", backbone), ("decoders", "decoder", decoder)):
        sections[section] = {"name": name, **plugins.load(kind, name).defaults(name)}
    sections["decoder"].update(decoder_values)
    return ConfigDict({"dtype": dtype, **sections})


def published(settings):
    """The segmenter, with parameters, statistics and classifier of the golden files, and the image batch."""
    model = segmenter.build(settings)
    shapes = jax.eval_shape(lambda: segmenter.init(model, jax.random.key(0), 96))
    state = deterministic_state.state_dict(f"deeplabv3_{settings.backbone.name}")
    target = {"params": shapes[0], "batch_stats": shapes[1]}
    tree = torch_weights.to_tree(state, target, lambda path: segmenter.torch_name(settings, path), ignore=(r"cls\..*",))
    kernel = np.concatenate([state["cls.0.weight"], state["cls.1.weight"]])[:, :, 0, 0].T
    classifier = {"kernel": jnp.array(kernel), "bias": jnp.concatenate([state["cls.0.bias"], state["cls.1.bias"]])}
    images = deterministic_state.network_input("g1/", (2, 3, 96, 96)).transpose(0, 2, 3, 1)
    return model, tree, classifier, jnp.array(images)


def assert_near(ours, theirs, tolerance, name):
    """Channels-last `ours` equals `theirs` relative to the largest value."""
    ours = np.asarray(ours).transpose(0, 3, 1, 2)
    assert ours.shape == theirs.shape, name
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max(), name


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_deeplabv3_resnet_gives_the_published_numbers(name, mode):
    model, tree, classifier, images = published(config(name, "deeplabv3"))

    @jax.jit
    def forward(params, batch_stats, images):
        with jax.default_matmul_precision("highest"):
            features, stats = segmenter.apply(model, params, batch_stats, images, train=mode == "train")
            return features, stats, segmenter.logits(features.pre_logits, classifier)

    features, stats, small = forward(tree["params"], tree["batch_stats"], images)
    golden = {
        key.removeprefix(f"{mode}_"): value
        for key, value in np.load(GOLDEN / f"deeplabv3_{name}.npz").items()
        if key.startswith(mode)
    }
    # statistics over 2 x 3 x 3 pixels magnify rounding
    tolerance = 1e-4 if mode == "eval" else 2e-3
    assert_near(upsample.bilinear(small, (96, 96))[:, ::7, ::7], golden["logits"], tolerance, "logits")
    assert_near(small, golden["logits_small"], tolerance, "logits_small")
    assert_near(features.pre_logits, golden["pre_logits"], tolerance, "pre_logits")
    assert_near(features.body[..., ::8], golden["body"], tolerance, "body")
    for index, feature_map in enumerate(features.maps):
        assert_near(feature_map[:, ::2, ::2, ::16], golden[f"att{index}"], tolerance, f"att{index}")
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), tree["batch_stats"], stats)
    assert all(jax.tree.leaves(moved)) if mode == "train" else not any(jax.tree.leaves(moved))


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_the_tree_has_the_published_names_and_shapes(name):
    settings = config(name, "deeplabv3")
    model = segmenter.build(settings)
    params, stats = jax.eval_shape(lambda: segmenter.init(model, jax.random.key(0), 96))
    leaves, _ = jax.tree_util.tree_flatten_with_path({"params": params, "batch_stats": stats})
    ours = {segmenter.torch_name(settings, torch_weights.leaf_path(path)[1:]): leaf.shape for path, leaf in leaves}
    theirs = json.loads((GOLDEN / f"deeplabv3_{name}_state_dict.json").read_text())
    theirs = {key: tuple(shape) for key, shape in theirs.items() if not key.startswith("cls.")}
    assert set(ours) == set(theirs)
    for key, shape in theirs.items():
        assert ours[key] == ((*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape), key
    assert "body.mod2.block1.convs.conv1.weight" in ours and "head.map_convs.3.weight" in ours


def test_uint8_images_are_normalised_inside():
    settings = config("resnet50", "plain", channels=8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), np.uint8)
    np.testing.assert_allclose(
        segmenter.build(settings).normalise(jnp.array(images)), (images / 255 - mean) / std, atol=1e-5
    )
    lite = plugins.load("backbones", "efficientnet_lite0")
    np.testing.assert_allclose(lite.normalise(jnp.array(images)), (images.astype(float) - 127) / 128, atol=1e-6)
    model = segmenter.build(config())
    params, stats = segmenter.init(model, jax.random.key(0), 16)
    images = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    raw, _ = segmenter.apply(model, params, stats, jnp.array(images), train=False)
    ready, _ = segmenter.apply(model, params, stats, model.normalise(jnp.array(images)), train=False)
    np.testing.assert_array_equal(raw.pre_logits, ready.pre_logits)
    assert float(jnp.abs(raw.pre_logits).max()) > 0.01


@pytest.mark.parametrize("train", [False, True])
def test_bfloat16_keeps_parameters_statistics_and_features_float32(train):
    model = segmenter.build(config(dtype="bfloat16"))
    plain = segmenter.build(config())
    params, stats = segmenter.init(model, jax.random.key(0), 32)
    images = jnp.array(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8))
    features, after = segmenter.apply(model, params, stats, images, train=train)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, stats, after, features))} == {jnp.dtype("float32")}
    reference, reference_after = segmenter.apply(plain, params, stats, images, train=train)
    error = jnp.abs(features.pre_logits - reference.pre_logits).max() / jnp.abs(reference.pre_logits).max()
    assert 1e-5 < float(error) < 0.05
    for low, full in zip(jax.tree.leaves(after), jax.tree.leaves(reference_after), strict=True):
        np.testing.assert_allclose(low, full, rtol=0.03, atol=0.01)


def test_init_depends_on_the_key_only_and_is_scaled():
    model = segmenter.build(config("tiny", "deeplabv3", channels=32, dilations=(2, 4, 6)))
    params, stats = segmenter.init(model, jax.random.key(1), 32)
    again, _ = segmenter.init(model, jax.random.key(1), 64)
    other, _ = segmenter.init(model, jax.random.key(2), 32)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), params, again))
    kernel = params["head"]["map_convs_1"]["kernel"]
    assert kernel.shape == (3, 3, 64, 32) and not jnp.any(kernel == other["head"]["map_convs_1"]["kernel"])
    # xavier_normal: gain^2 * 2 / (fan_in + fan_out)
    expected = np.sqrt(2 / (1 + 0.01**2) * 2 / (9 * 64 + 9 * 32))
    assert float(kernel.std()) == pytest.approx(expected, rel=0.03)
    body = params["body"]["conv3"]["kernel"]
    assert float(body.std()) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.03)
    assert float(stats["head"]["red_bn"]["var"].min()) == 1.0
    total = sum(9 * a * b for a, b in ((3, 16), (16, 32), (32, 64), (64, 64))) + 2 * (16 + 32 + 64 + 64)
    assert segmenter.num_parameters(params["body"]) == total


def test_logits_are_one_by_one_convolutions():
    rng = np.random.default_rng(0)
    features, kernel, bias = rng.normal(size=(2, 3, 4, 8)), rng.normal(size=(8, 5)), rng.normal(size=5)
    classifier = {"kernel": jnp.array(kernel, jnp.float32), "bias": jnp.array(bias, jnp.float32)}
    result = segmenter.logits(jnp.array(features, jnp.float32), classifier)
    np.testing.assert_allclose(result, features @ kernel + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 4), (33, 32), (40, 35)])
def test_image_pooling_in_eval_is_a_window_of_32_with_replicated_borders(shape):
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    rows, cols = min(32, shape[0]), min(32, shape[1])
    expected = np.zeros_like(x)
    for i in range(shape[0]):
        for j in range(shape[1]):
            top = np.clip(i - (rows - 1) // 2, 0, shape[0] - rows)
            left = np.clip(j - (cols - 1) // 2, 0, shape[1] - cols)
            expected[:, i, j] = x[:, top : top + rows, left : left + cols].mean((1, 2))
    result = np.broadcast_to(deeplabv3.image_pooling(jnp.array(x), train=False), x.shape)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    trained = deeplabv3.image_pooling(jnp.array(x), train=True)
    np.testing.assert_allclose(trained, x.mean((1, 2), keepdims=True), atol=1e-6)


def test_dilations_follow_the_output_stride():
    heads = {
        stride: deeplabv3.build("deeplabv3", deeplabv3.defaults("deeplabv3"), jnp.float32, output_stride=stride)
        for stride in (32, 16, 8)
    }
    assert heads[32].dilations == heads[16].dilations == (6, 12, 18) and heads[8].dilations == (12, 24, 32)
    with pytest.raises(InputError, match="none for output stride 4"):
        deeplabv3.build("deeplabv3", deeplabv3.defaults("deeplabv3"), jnp.float32, output_stride=4)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from nest_jax import segmenter
from tests.test_segmenter import config
assert len(jax.devices()) == 2
model = segmenter.build(config())
params, stats = segmenter.init(model, jax.random.key(0), 16)
images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
sharded = jax.device_put(images, jax.NamedSharding(mesh, jax.P("batch")))
forward = jax.jit(lambda images: segmenter.apply(model, params, stats, images, train=True))
for one, two in zip(jax.tree.leaves(forward(jnp.array(images))), jax.tree.leaves(forward(sharded)), strict=True):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
"""


def test_statistics_are_those_of_the_global_batch_under_a_sharded_jit():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    result = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
