"""Swin against PyTorch's numbers, its windows against loops, and its stochastic depth."""

import json
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nest_jax import attention, segmenter, torch_weights, upsample
from nest_jax.backbones import swin
from nest_jax.decoders import plain
from nest_jax.errors import InputError
from nest_jax.validation import validate
from tests import tiny
from tests.deterministic_state import GOLDEN
from tests.test_backbone_contract import QUICK
from tests.test_backbones import apply
from tests.test_segmenter import assert_near, config, published

SMALL = swin.Size(width=16, depths=(1, 2, 1, 1), heads=(1, 2, 4, 8), window=3, drop_path=0.0)


def small(drop_path=0.0, dtype=jnp.float32):
    """A small Swin under the plain decoder."""
    body = swin.Swin(SMALL._replace(drop_path=drop_path), dtype)
    return segmenter.Segmenter(segmenter.Network(body, plain.Plain(8, dtype)), swin.normalise, 8)


def forward(model, train=False):
    def call(params, stats, x, key=None):
        return segmenter.apply(model, params, stats, x, train=train, key=key)

    return jax.jit(call, compiler_options=QUICK)


def images(count=2, size=64, seed=0):
    return jnp.array(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8))


@pytest.fixture(scope="module")
def started():
    """The small network's random parameters and statistics."""
    return segmenter.init(small(dtype=jnp.bfloat16), jax.random.key(0), 64)


@pytest.fixture(scope="module")
def golden_run():
    """Features, statistics after and before, and logits in eval and train mode; without a key nothing is dropped."""
    settings: Any = config("swin_b", "deeplabv3")
    assert settings.backbone.drop_path == 0.3
    model, tree, classifier, batch = published(settings)

    @jax.jit
    def forward(params, batch_stats, batch):
        with jax.default_matmul_precision("highest"):
            results = {}
            for mode in ("eval", "train"):  # compiled together: the body is the same
                features, stats = segmenter.apply(model, params, batch_stats, batch, train=mode == "train")
                results[mode] = features, stats, segmenter.logits(features.pre_logits, classifier)
            return results

    return tree["batch_stats"], forward(tree["params"], tree["batch_stats"], batch)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_deeplabv3_swin_b_gives_the_published_numbers(golden_run, mode):
    before, results = golden_run
    features, stats, small = results[mode]
    golden = np.load(GOLDEN / "deeplabv3_swin_b.npz")
    tolerance = 1e-4 if mode == "eval" else 2e-3  # statistics over 2 x 3 x 3 pixels magnify rounding
    found = {
        "logits": upsample.bilinear(small, (96, 96))[:, ::7, ::7],
        "logits_small": small,
        "pre_logits": features.pre_logits,
        "body": features.body[..., ::8],
        **{f"att{i}": feature_map[:, ::2, ::2, ::16] for i, feature_map in enumerate(features.maps)},
    }
    assert {f"{mode}_{name}" for name in found} == {name for name in golden if name.startswith(mode)}
    for name, value in found.items():
        assert_near(value, golden[f"{mode}_{name}"], 1e-4 if name == "body" or "att" in name else tolerance, name)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, stats)
    assert list(stats) == ["head"]  # the body has no running statistics
    assert all(jax.tree.leaves(moved)) if mode == "train" else not any(jax.tree.leaves(moved))


def test_the_tree_has_the_published_names_and_shapes():
    settings: Any = config("swin_b", "deeplabv3")
    model = segmenter.build(settings)
    params, stats = jax.eval_shape(lambda: segmenter.init(model, jax.random.key(0), 64))
    leaves, _ = jax.tree_util.tree_flatten_with_path({"params": params, "batch_stats": stats})
    paths = {torch_weights.leaf_path(path)[1:]: leaf.shape for path, leaf in leaves}
    ours = {segmenter.torch_name(settings, path): shape for path, shape in paths.items()}
    theirs = json.loads((GOLDEN / "deeplabv3_swin_b_state_dict.json").read_text())
    theirs = {key: tuple(shape) for key, shape in theirs.items() if not key.startswith("cls.")}
    assert set(ours) == set(theirs)
    kernels = {segmenter.torch_name(settings, path) for path in paths if path[-1] == "kernel"}
    for key, shape in theirs.items():
        assert ours[key] == ((*shape[2:], *shape[1::-1]) if key in kernels else shape), key


def parameters(name):
    """Of the body without the stages' output norms, which classification does not have."""
    network = swin.build(name, swin.defaults(name), jnp.float32)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), False))
    assert set(variables) == {"params"}
    assert sum(key.startswith("norm") for key in variables["params"]) == 4
    return segmenter.num_parameters({k: v for k, v in variables["params"].items() if not k.startswith("norm")})


def test_parameter_counts_are_the_published_ones():
    """The counts of the ImageNet classifiers: 87.9 M and 28.3 M, with a last norm and 1000 classes."""
    assert parameters("swin_b") == 87_903_584 - 2 * 1024 - 1025 * 1000
    assert parameters("swin_t") == 28_288_354 - 2 * 768 - 769 * 1000


@pytest.mark.parametrize(
    "height, width, size, shift", [(9, 11, 4, 2), (9, 11, 4, 0), (3, 10, 4, 2), (8, 8, 4, 1), (5, 5, 7, 3)]
)
def test_windows_of_odd_maps_are_those_of_loops(height, width, size, shift):
    """A block without its MLP, token by token: who is in the window, who is seen, at which relative position."""
    rng = np.random.default_rng(0)
    heads, channels = 2, 6
    block = swin.Block(heads, size, shift, 0.0, jnp.float32)
    x = rng.normal(size=(2, height, width, channels)).astype(np.float32)
    params: Any = jax.eval_shape(lambda: block.init(jax.random.key(0), jnp.array(x), False))["params"]
    params = jax.tree.map(lambda leaf: jnp.array(rng.normal(size=leaf.shape), jnp.float32), params)
    params["mlp"]["fc2"] = jax.tree.map(jnp.zeros_like, params["mlp"]["fc2"])
    with jax.default_matmul_precision("highest"):
        result = jax.jit(lambda x: apply(block, {"params": params}, x, False))(x)

    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    normed = normed * params["norm1"]["scale"] + params["norm1"]["bias"]
    rows, columns = math.ceil(height / size) * size, math.ceil(width / size) * size
    full = np.zeros((2, rows, columns, channels))
    full[:, :height, :width] = normed
    attn = params["attn"]
    qkv = full @ attn["qkv"]["kernel"] + attn["qkv"]["bias"]
    query, key, value = np.moveaxis(qkv.reshape(2, rows, columns, 3, heads, -1), 3, 0)
    expected = x.astype(np.float64)
    for i, j in np.ndindex(height, width):
        place = (i - shift) % rows, (j - shift) % columns  # after the shift
        corner = [p - p % size for p in place]
        scores, values = [], []
        for di, dj in np.ndindex(size, size):
            k, m = (corner[0] + di + shift) % rows, (corner[1] + dj + shift) % columns
            # rows and columns that the shift carried from one border to the other see only each other
            if (i < shift) != (k < shift) or (j < shift) != (m < shift):
                continue
            dy, dx = place[0] - corner[0] - di, place[1] - corner[1] - dj
            bias = attn["relative_position_bias_table"][(dy + size - 1) * (2 * size - 1) + dx + size - 1]
            scores.append(np.sum(query[:, i, j] * key[:, k, m], -1) / np.sqrt(channels / heads) + bias)
            values.append(value[:, k, m])
        weights = np.exp(scores - np.max(scores, 0))
        weights /= weights.sum(0)
        out = np.sum(weights[..., None] * np.array(values), 0).reshape(2, channels)
        expected[:, i, j] += out @ attn["proj"]["kernel"] + attn["proj"]["bias"]
    np.testing.assert_allclose(result, expected, atol=2e-5 * np.abs(expected).max())


def test_windows_come_back_and_bias_rows_are_the_published_ones():
    x = jnp.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    cut = swin.windows(x, 4)
    assert cut.shape == (2, 6, 16, 3)
    np.testing.assert_array_equal(cut[1, 4, 5], x[1, 5, 5])  # second row of windows, second window; token (1, 1)
    np.testing.assert_array_equal(swin.unwindowed(cut, 8, 12), x)
    # window 2: offsets -1, 0, 1 in each direction
    np.testing.assert_array_equal(swin.relative_positions(2), [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]])


def test_stochastic_depth_keeps_expectations_and_draws_for_each_image_and_branch():
    block = swin.Block(2, 2, 0, 0.4, jnp.float32)
    one = jnp.array(np.random.default_rng(0).normal(size=(1, 2, 2, 4)), jnp.float32)
    x = jnp.repeat(one, 3000, 0)
    variables = jax.jit(lambda: block.init(jax.random.key(0), one, False))()
    variables = jax.tree.map(lambda leaf: 20 * leaf, variables)
    variables["params"]["mlp"]["fc2"] = jax.tree.map(jnp.zeros_like, variables["params"]["mlp"]["fc2"])
    branch = apply(block, variables, one, False) - one
    assert float(jnp.abs(branch).max()) > 0.1

    def call(train, rngs=None):
        return apply(block, variables, x, train, rngs=rngs)

    run = jax.jit(call, static_argnums=0, compiler_options=QUICK)

    def trained(key):
        return run(True, {"dropout": key}) - x

    first = trained(jax.random.key(1))
    factor = first[:, 0, 0, 0] / branch[0, 0, 0, 0]
    np.testing.assert_allclose(first, factor[:, None, None, None] * branch, atol=1e-5)
    kept = np.isclose(factor, 1 / 0.6, rtol=1e-4)
    assert np.all(kept | np.isclose(factor, 0, atol=1e-5))
    assert abs(kept.mean() - 0.6) < 0.03
    np.testing.assert_array_equal(first, trained(jax.random.key(1)))
    assert np.any(first != trained(jax.random.key(2)))
    # the same without a key, or where nothing is trained
    evaluated = run(False)
    np.testing.assert_array_equal(run(True), evaluated)
    np.testing.assert_array_equal(run(False, {"dropout": jax.random.key(1)}), evaluated)


def test_a_networks_key_reaches_its_blocks(started):
    model = small(drop_path=0.5)
    params, stats = started
    params = {**params, "body": jax.tree.map(lambda leaf: 5 * leaf, params["body"])}
    trained, arguments = forward(model, train=True), (params, stats, images(8))
    one, again, other = (trained(*arguments, jax.random.key(seed))[0].body for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    without = trained(*arguments)[0].body
    np.testing.assert_allclose(without, forward(model)(*arguments)[0].body, atol=1e-5)
    assert np.abs(one - without).max() > 1e-3


def test_rates_grow_linearly_and_every_second_block_is_shifted():
    blocks = []

    def note(call, arguments, options, context):
        if isinstance(context.module, swin.Block):
            blocks.append(context.module)
        return call(*arguments, **options)

    network = swin.build("swin_b", swin.defaults("swin_b"), jnp.float32)
    with nn.intercept_methods(note):
        jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False))
    np.testing.assert_allclose([block.drop_path for block in blocks], np.linspace(0, 0.3, 24), atol=1e-7)
    assert [block.shift for block in blocks] == [0, 6] * 12
    assert [block.heads for block in blocks] == [4] * 2 + [8] * 2 + [16] * 18 + [32] * 2


def test_bfloat16_keeps_parameters_and_features_float32(started):
    params, stats = started
    params = {**params, "body": jax.tree.map(lambda leaf: 3 * leaf, params["body"])}
    results = [forward(small(dtype=dtype), True)(params, stats, images(4)) for dtype in (jnp.bfloat16, jnp.float32)]
    assert {leaf.dtype for leaf in jax.tree.leaves((params, results))} == {jnp.dtype("float32")}
    (features, _), (reference, _) = results
    for ours, theirs in zip(jax.tree.leaves(features), jax.tree.leaves(reference), strict=True):
        assert 1e-5 < float(jnp.abs(ours - theirs).max() / jnp.abs(theirs).max()) < 0.06


def test_odd_images_are_padded(started):
    """33 x 50 pixels: 9 x 13 patches, then 5 x 7, 3 x 4, 2 x 2."""
    features, _ = forward(small())(*started, images(1, 64)[:, :33, :50])
    assert [feature_map.shape for feature_map in features.maps] == [(1, 9, 13, 16), (1, 5, 7, 32), (1, 3, 4, 64)]
    assert features.body.shape == (1, 2, 2, 128) and bool(jnp.all(jnp.isfinite(features.body)))


def test_weights_start_as_published(started):
    body = started[0]["body"]
    attn = body["layers_3"]["blocks_0"]["attn"]
    table, patches = body["layers_0"]["blocks_0"]["attn"]["relative_position_bias_table"], body["patch_embed"]["proj"]
    for leaf in (attn["qkv"]["kernel"], attn["relative_position_bias_table"], patches["kernel"]):
        error = 4 * 0.02 / np.sqrt(leaf.size)  # four standard errors
        assert abs(float(leaf.std()) - 0.02) < error and abs(float(leaf.mean())) < error
    assert table.shape == (25, 1)
    assert not jnp.any(attn["qkv"]["bias"]) and bool(jnp.all(body["norm3"]["scale"] == 1))


def test_a_body_without_statistics_has_no_entry_for_them(started):
    assert list(started[1]) == ["head"]
    settings: Any = config("swin_t", "plain")
    settings.backbone.pretrained = "none"
    params, stats = {"body": {"a": jnp.ones(1)}, "head": {}}, {"head": {"mean": jnp.zeros(1)}}
    assert segmenter.load_pretrained(settings, params, stats) == (params, stats)


def test_attention_without_mask_or_bias_is_numpys():
    layer = attention.Attention(heads=3)
    x = np.random.default_rng(0).normal(size=(2, 2, 5, 6)).astype(np.float32)
    params = layer.init(jax.random.key(0), jnp.array(x), False)["params"]
    params = jax.tree.map(lambda leaf: 30 * leaf + 0.1, params)
    with jax.default_matmul_precision("highest"):
        result = apply(layer, {"params": params}, jnp.array(x), False)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    query, key, value = np.split((x @ p["qkv"]["kernel"] + p["qkv"]["bias"]).reshape(2, 2, 5, 9, 2), 3, axis=3)
    scores = np.einsum("bntkd,bnskd->bnkts", query, key) / np.sqrt(2)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bnkts,bnskd->bntkd", weights, value).reshape(x.shape)
    np.testing.assert_allclose(result, out @ p["proj"]["kernel"] + p["proj"]["bias"], rtol=1e-4, atol=1e-4)


def test_wrong_settings_are_named():
    wrong = tiny.config("backbone=swin_t", backbone__depths="1,1,0", backbone__drop_path="1.0", train__crop_size="64")
    with pytest.raises(InputError) as error:
        validate(wrong)
    text = str(error.value)
    assert "backbone.depths=(1, 1, 0): needs four numbers, each at least 1, or () for the published ones" in text
    assert "backbone.drop_path=1.0: must be at least 0 and below 1" in text
    with pytest.raises(InputError, match="crop_size=48: not divisible by the output stride 32 of swin_t"):
        validate(tiny.config("backbone=swin_t", train__crop_size="48"))
