"""ViT-B under SETR's head against PyTorch's numbers, its position embedding, and its dropout."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nest_jax import segmenter, torch_weights, upsample, weights
from nest_jax.backbones import vit
from nest_jax.errors import InputError
from nest_jax.validation import validate
from tests import deterministic_state, tiny
from tests.deterministic_state import GOLDEN
from tests.test_backbones import apply
from tests.test_segmenter import assert_near, config


def shapes(settings):
    model = segmenter.build(settings)
    params, stats = jax.eval_shape(lambda: segmenter.init(model, jax.random.key(0), 64))
    return {"params": params, "batch_stats": stats}


@pytest.fixture(scope="module")
def golden_run():
    """Features, statistics before and after, and logits in eval and train mode; without a key nothing is dropped."""
    settings = config("vit_b", "setr")
    model = segmenter.build(settings)
    state = deterministic_state.state_dict("setr_vit_b")

    def name(path):
        return segmenter.torch_name(settings, path)

    tree = torch_weights.to_tree(state, shapes(settings), name, ignore=(r"cls\..*", *weights.UNUSED))
    kernel = np.concatenate([state["cls.0.weight"], state["cls.1.weight"]])[:, :, 0, 0].T
    classifier = {"kernel": jnp.array(kernel), "bias": jnp.concatenate([state["cls.0.bias"], state["cls.1.bias"]])}
    batch = deterministic_state.network_input("g1/", (2, 3, 512, 512)).transpose(0, 2, 3, 1)

    @jax.jit
    def forward(params, batch_stats, batch):
        with jax.default_matmul_precision("highest"):
            results = {}
            for mode in ("eval", "train"):  # compiled together: the body, nearly all of the work, is the same
                features, stats = segmenter.apply(model, params, batch_stats, batch, train=mode == "train")
                results[mode] = features, stats, segmenter.logits(features.pre_logits, classifier)
            return results

    return tree["batch_stats"], forward(tree["params"], tree["batch_stats"], jnp.array(batch))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_setr_vit_b_gives_the_published_numbers(golden_run, mode):
    before, results = golden_run
    features, stats, small = results[mode]
    golden = np.load(GOLDEN / "setr_vit_b.npz")
    found = {
        "logits": upsample.bilinear(small, (512, 512))[:, ::37, ::37],
        "logits_small": small[:, ::2, ::2],
        "pre_logits": features.pre_logits[:, ::2, ::2, ::8],
    }
    for name, value in found.items():
        assert_near(value, golden[f"{mode}_{name}"], 1e-4, name)
    # every 16th published token, beginning with the 8th behind the class token
    tokens = features.body.reshape(2, 1024, 768)[:, 7::16, ::8]
    expected = golden[f"{mode}_body"]
    assert tokens.shape == expected.shape
    assert np.abs(tokens - expected).max() <= 1e-4 * np.abs(expected).max()
    assert features.maps == () and features.pre_logits.min() == 0
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, stats)
    assert list(stats) == ["head"]
    assert all(jax.tree.leaves(moved)) if mode == "train" else not any(jax.tree.leaves(moved))


def test_the_tree_has_the_published_names_and_shapes():
    settings = config("vit_b", "setr")
    leaves, _ = jax.tree_util.tree_flatten_with_path(shapes(settings))
    paths = {torch_weights.leaf_path(path)[1:]: leaf.shape for path, leaf in leaves}
    ours = {segmenter.torch_name(settings, path): shape for path, shape in paths.items()}
    theirs = json.loads((GOLDEN / "setr_vit_b_state_dict.json").read_text())
    unused = {"head.conv_seg.weight", "head.conv_seg.bias", "head.conv_1.weight", "head.conv_1.bias"}
    assert set(ours) == {key for key in theirs if not key.startswith("cls.")} - unused
    kernels = {segmenter.torch_name(settings, path) for path in paths if path[-1] == "kernel"}
    for key, shape in ours.items():
        published = tuple(theirs[key])
        assert shape == ((*published[2:], *published[1::-1]) if key in kernels else published), key


def test_parameter_count_is_the_published_one():
    """The ImageNet classifier's 86.6 M for images of 224 x 224: a smaller position embedding, a last norm, 1000 classes."""
    body = segmenter.num_parameters(shapes(config("vit_b", "setr"))["params"]["body"])
    assert body - (32 * 32 - 14 * 14) * 768 + 2 * 768 + 769 * 1000 == 86_567_656


def test_positions_are_resized_bilinearly_and_the_class_token_is_not():
    positions = np.random.default_rng(0).normal(size=(1, 1 + 4 * 4, 3)).astype(np.float32)
    result = np.asarray(vit.resized_positions(jnp.array(positions), (4, 4), (8, 6)))
    assert result.shape == (1, 1 + 48, 3)
    np.testing.assert_array_equal(result[:, 0], positions[:, 0])
    grid, new = positions[0, 1:].reshape(4, 4, 3), result[0, 1:].reshape(8, 6, 3)
    # rows 2 and 3 of 8 lie a quarter and three quarters of the way from 0.5 to 1.5 of 4; columns 1 of 6 at 0.5 of 4
    row = 0.75 * grid[0] + 0.25 * grid[1]
    np.testing.assert_allclose(new[1, 1], (row[0] + row[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(new[0, 0], grid[0, 0] * (5 / 6 + 1 / 6), atol=1e-6)  # beyond the centres: the border's
    same = vit.resized_positions(jnp.array(positions), (4, 4), (4, 4))
    np.testing.assert_array_equal(same, positions)


def small(dropout=0.0, dtype="float32"):
    settings: Any = config("vit_b", "setr", dtype=dtype, channels=8)
    settings.backbone.update(depth=1, dropout=dropout)
    return segmenter.build(settings)


@pytest.fixture(scope="module")
def started():
    return segmenter.init(small(dtype="bfloat16"), jax.random.key(0), 64)


def forward(model, train=False):
    return jax.jit(lambda params, stats, x, key=None: segmenter.apply(model, params, stats, x, train=train, key=key))


def images(count, height, width):
    return jnp.array(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8))


def test_any_size_of_image(started):
    """35 x 50 pixels are padded to 3 x 4 patches."""
    features, _ = forward(small())(*started, images(1, 35, 50))
    assert features.body.shape == (1, 3, 4, 768) and features.pre_logits.shape == (1, 3, 4, 8)
    assert bool(jnp.all(jnp.isfinite(features.pre_logits)))


def test_bfloat16_keeps_parameters_and_features_float32(started):
    batch = images(2, 32, 64)
    results = [forward(small(dtype=dtype), True)(*started, batch) for dtype in ("bfloat16", "float32")]
    assert {leaf.dtype for leaf in jax.tree.leaves((started, results))} == {jnp.dtype("float32")}
    (features, _), (reference, _) = results
    assert 1e-5 < float(jnp.abs(features.body - reference.body).max() / jnp.abs(reference.body).max()) < 0.02


def test_a_networks_key_reaches_its_dropout(started):
    trained, arguments = forward(small(dropout=0.1), train=True), (*started, images(2, 32, 32))
    one, again, other = (trained(*arguments, jax.random.key(seed))[0].body for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    without = trained(*arguments)[0].body
    np.testing.assert_allclose(without, forward(small(dropout=0.1))(*arguments)[0].body, atol=1e-6)
    for result in (other, without):
        assert float(jnp.abs(one - result).max()) > 1e-3
    assert float(jnp.mean(one != without)) > 0.99  # elements, not whole images


def test_dropout_keeps_expectations():
    block = vit.Block(0.1, jnp.float32)
    x = jnp.zeros((1, 1, vit.WIDTH))
    variables: Any = jax.eval_shape(lambda: block.init(jax.random.key(0), x, False))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)
    variables["params"]["attn"]["proj"]["bias"] += 1.0  # the block adds 1 to every element
    run = jax.jit(lambda key: apply(block, variables, x, True, rngs={"dropout": key}))
    result = np.concatenate([run(jax.random.key(seed)).ravel() for seed in range(20)])
    kept = np.isclose(result, 1 / 0.9)
    assert np.all(kept | (result == 0)) and abs(kept.mean() - 0.9) < 0.01


def test_wrong_settings_are_named():
    wrong = tiny.config("backbone=vit_b,decoder=setr", backbone__depth="0", backbone__dropout="1.0")
    with pytest.raises(InputError) as error:
        validate(wrong)
    assert "backbone.depth=0: must be at least 1" in str(error.value)
    assert "backbone.dropout=1.0: must be at least 0 and below 1" in str(error.value)
