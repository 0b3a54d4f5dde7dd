import dataclasses
import json
import shutil
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from nest_jax import config as configs
from nest_jax import data as task_data
from nest_jax import evaluate, main, plugins, reevaluate, restored, sharding, tasks, upsample
from nest_jax import segmenter as seg
from nest_jax.errors import InputError
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


# --- views: scales and mirror images --------------------------------------------------------------------------------------------------


def predictions(segmenter, model, images, views=evaluate.PLAIN):
    step = evaluate.make_step(segmenter, sharding.mesh(), views=views)
    batch = {"image": jnp.asarray(images), "label": jnp.zeros(images.shape[:3], jnp.uint8)}
    return np.asarray(step(model, jnp.zeros(256, jnp.uint8), batch)[1])


def test_views_average_probabilities(setting):
    _, data, segmenter, model = setting
    images = np.stack([np.asarray(data.val.read(index)[0]) for index in range(3)])
    views = reevaluate.views("0.75,1", flip=True)
    assert views == ((0.75, False), (0.75, True), (1.0, False), (1.0, True))

    @partial(jax.jit, static_argnums=(0, 1))
    def view(scale, mirrored):
        size = round(32 * scale)
        seen = upsample.bilinear(segmenter.normalise(jnp.asarray(images)), (size, size))
        seen = jnp.flip(seen, 2) if mirrored else seen
        features, _ = seg.apply(segmenter, model["network"], model["batch_stats"], seen, train=False)
        logits = upsample.bilinear(seg.logits(features.pre_logits, model["classifier"]), (32, 32))
        return jax.nn.softmax(jnp.flip(logits, 2) if mirrored else logits)

    mean = np.mean([view(*one) for one in views], axis=0)
    best = np.sort(mean, -1)
    found = predictions(segmenter, model, images, views)
    clear = best[..., -1] - best[..., -2] > 1e-4
    assert clear.mean() > 0.95
    assert_array_equal(found[clear], np.argmax(mean, -1)[clear])
    assert (found != predictions(segmenter, model, images)).any()


def test_with_both_mirror_images_a_mirrored_picture_gets_mirrored_predictions(setting):
    _, data, segmenter, model = setting
    images = np.asarray(data.val.read(0)[0])[None]
    views = reevaluate.views("1", flip=True)
    found, mirrored = (predictions(segmenter, model, one, views) for one in (images, images[:, :, ::-1]))
    assert (found == mirrored[:, :, ::-1]).mean() > 0.99  # sums of two probabilities, in another order


# --- the command ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert main.main([*tiny.arguments("method=finetune,classifier_init=random"), f"--workdir={workdir}"]) == 0
    return workdir


def written(workdir, *arguments):
    return json.loads(reevaluate.run(["--workdir", str(workdir), *arguments]).read_text())


def test_the_numbers_are_the_trainers(run, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    own = json.loads((run / "results.json").read_text())["tasks"]
    for task in (0, 1):
        found = written(run, "--task", str(task), "--config.evaluate.batch_size=5")
        assert found["task"] == task
        for key in ("confusion", "metrics", "per_class", "new_classes"):
            assert found[key] == own[task][key]
        assert found["images"]["val"] == own[task]["images"]["val"]
    told = capsys.readouterr().out
    assert "dotted circle" in told and str(run / "evaluations" / "task-01-") in told
    assert sum(sum(row) for row in own[1]["confusion"]) > 10000
    assert before == {path: path.read_bytes() for path in before}


def test_flags_change_the_evaluation_and_its_name(run, tmp_path):
    plain = written(run)
    shown = [path.name for path in (run / "evaluations").iterdir()]
    assert "task-01.json" in shown
    full = written(run, "--full_images", "--flip", "--scales", "0.75,1", "--config.dataset.size=40")
    assert full["settings"]["views"] == [[0.75, False], [0.75, True], [1.0, False], [1.0, True]]
    assert full["settings"]["evaluate"]["full_images"] and full["settings"]["dataset"]["size"] == 40
    void = 40 * 40 * full["images"]["val"] - np.sum(full["confusion"])
    assert 0 < void < 0.2 * 40 * 40 * full["images"]["val"]  # whole images were counted
    assert full["confusion"] != plain["confusion"]
    new = {path.name for path in (run / "evaluations").iterdir()} - set(shown)
    assert len(new) == 1 and new.pop().startswith("task-01-full_images-flip-scales-0.75-1-")
    out = tmp_path / "deep" / "a.json"
    assert written(run, "--out", str(out)) and out.exists()
    with pytest.raises(InputError, match="there is something already"):
        written(run, "--out", str(out))


def test_another_data_set_is_matched_by_class_names(run, monkeypatch):
    """The same images, with the classes in another order, those of task 1 named otherwise or not at all: task 0's numbers."""
    shapes = plugins.load("datasets", "shapes")
    own = shapes.classes({})
    raw = [0, 7, 5, 4, 3, 2, 1]  # of the new labels; 6 is background
    names = ("background", "thing", *(own[label] for label in raw[2:]))
    back = np.zeros(256, np.uint8)
    back[255] = 255
    back[raw] = range(7)

    def load(settings, split):
        inner = shapes.load(settings, split)

        def read(index):
            image, mask = inner.read(index)
            return image, mask.point(back.tolist())

        return dataclasses.replace(inner, classes=names, presence=inner.presence[:, raw], read=read)

    plugin = types.ModuleType("renamed")
    vars(plugin).update(defaults=shapes.defaults, classes=lambda settings: names, load=load)
    monkeypatch.setitem(plugins.modules("datasets"), "renamed", plugin)
    sizes = [f"--config.{key}={tiny.OVERRIDES[key]}" for key in ("dataset.size", "dataset.val_images")]
    found = written(run, "--task", "0", "--dataset", "renamed", *sizes)
    own_entry = json.loads((run / "results.json").read_text())["tasks"][0]
    assert found["confusion"] == own_entry["confusion"]

    model = restored.load(run, 0)
    table = reevaluate.label_table(own, model.class_names)
    assert_array_equal(table, tasks.test_table(configs.protocol(model.config), 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.backbone.widths=1,2,3,4"], "part of what the model is"),
        (["--config.dataset.name=voc2012"], "pick it with --dataset NAME"),
        (["--config.evaluate.batch_sise=3"], "did you mean 'evaluate.batch_size'"),
        (["--scales", "1,big"], "not a number"),
        (["--scales", "0"], "positive numbers"),
        (["--dataset", "voc"], "did you mean 'voc2012'"),
        (["--task", "5"], "complete: 0, 1"),
        (["--fulll"], "--help shows examples"),
    ],
)
def test_bad_input_is_one_message(run, capsys, arguments, message):
    assert reevaluate.main(["--workdir", str(run), *arguments]) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.startswith("error: ") and not told.out


def test_data_without_a_known_class_are_refused(run):
    dataset = plugins.load("datasets", "shapes").load(restored.load(run).config.dataset, "val")
    with pytest.raises(
        InputError, match="no validation image shows a class that the model knows: cat; the data set has circle"
    ):
        reevaluate.showing(dataset, ("background", "cat"))


def test_a_run_without_results_is_refused(run, tmp_path, capsys):
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    assert reevaluate.main(["--workdir", str(tmp_path)]) == 2
    assert "results.json is missing" in capsys.readouterr().err


def test_every_example_in_the_help_is_understood():
    lines = [line for line in reevaluate.EXAMPLES.splitlines() if line.startswith("  python -m nest_jax.evaluate ")]
    assert len(lines) == 3
    for line in lines:
        assert reevaluate.parse(line.split("nest_jax.evaluate ")[1].split())[0].workdir
