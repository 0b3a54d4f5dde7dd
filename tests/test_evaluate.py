import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from nest_jax import config as configs
from nest_jax import data as task_data
from nest_jax import evaluate, sharding, upsample
from nest_jax import segmenter as seg
from tests import tiny


def test_confusion_counts_and_drops_void():
    labels = jnp.array([[0, 0, 1, 2], [2, 2, 255, 1]])
    predictions = jnp.array([[0, 1, 1, 2], [0, 2, 0, 1]])
    assert_array_equal(evaluate.confusion(labels, predictions, 3), [[1, 1, 0], [0, 2, 0], [1, 0, 2]])


@pytest.fixture(scope="module")
def setting():
    config = configs.resolve(tiny.config(evaluate__pictures=3))
    protocol = configs.protocol(config)
    data = task_data.load(config, protocol, protocol)
    segmenter = seg.build(config)
    network, stats = seg.init(segmenter, jax.random.key(1), 32)
    rng = np.random.default_rng(0)
    classifier = {"kernel": jnp.asarray(rng.normal(size=(32, 6)), jnp.float32), "bias": jnp.zeros(6)}
    return config, data, segmenter, {"network": network, "classifier": classifier, "batch_stats": stats}


@pytest.mark.parametrize("rows", [0, 8])
def test_evaluation_equals_counting_by_hand(setting, tmp_path, rows):
    """Over the test list of the task, whatever the blocks and the padding of the last batch."""
    config, data, segmenter, model = setting
    config = tiny.config(evaluate__pictures=3, loss__block_rows=rows, evaluate__batch_size=7)
    data = data._replace(config=configs.resolve(config))
    found = evaluate.run(data, segmenter, sharding.mesh(), 0, model, tmp_path)

    seen = data.protocol.seen(0)
    expected = np.zeros((6, 6), np.int64)
    for index in range(len(data.val)):
        image, mask = (np.asarray(x) for x in data.val.read(index))
        if not np.isin(mask, seen[1:]).any():
            continue  # not on this task's test list
        features, _ = seg.apply(
            segmenter, model["network"], model["batch_stats"], jnp.asarray(image)[None], train=False
        )
        logits = upsample.bilinear(seg.logits(features.pre_logits, model["classifier"]), (32, 32))
        guess = np.asarray(jnp.argmax(logits, -1))[0]
        for y, p in zip(mask.ravel(), guess.ravel(), strict=True):
            if y != 255:
                expected[seen.index(y) if y in seen else 0, p] += 1  # later classes are background
    assert_array_equal(found, expected)
    assert len(list((tmp_path / "pictures" / "task-00").glob("*.prediction.png"))) == 3


def test_pictures_show_every_class_before_any_twice(setting):
    _, data, _, _ = setting
    chosen = task_data.picture_indices(data._replace(config=configs.resolve(tiny.config(evaluate__pictures=7))))
    assert len(set(chosen.tolist())) == 7
    assert data.val.presence[chosen, 1:].any(axis=0).all()
