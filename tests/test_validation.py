"""Every config validates and shape-checks; what is wrong with one comes in one message."""

import pytest

from nest_jax import config, plugins, validation
from tests.test_config import NAMES, load, message

SHAPES = {  # parameters are counted in the network's own tests
    "voc_15_1": ((1, 32, 32, 256), (1, 32, 32, 21)),
    "voc_10_1": ((1, 32, 32, 256), (1, 32, 32, 21)),
    "ade_100_5": ((1, 32, 32, 256), (1, 32, 32, 151)),
    "voc_animals_3_1": ((1, 10, 10, 256), (1, 10, 10, 7)),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_config_validates_and_shape_checks(name):
    loaded = load(name)
    assert loaded.name == name and loaded.is_locked
    validation.validate(loaded)
    shapes = validation.shape_check(loaded)
    classes = 1 + config.protocol(loaded).num_classes
    assert shapes["logits"] == (*shapes["pre_logits"][:3], classes)
    if name in SHAPES:
        assert (shapes["pre_logits"], shapes["logits"]) == SHAPES[name]


@pytest.mark.parametrize("method", plugins.names("methods"))
@pytest.mark.parametrize("init", plugins.names("classifier_init"))
def test_every_combination_validates(method, init):
    needs = hasattr(plugins.load("methods", method), "NEEDS")
    network = ",backbone=resnet50,decoder=deeplabv3" if needs else ""
    loaded = load("shapes", arg=f"method={method},classifier_init={init}{network}")
    validation.validate(loaded)
    assert (loaded.method.name, loaded.classifier_init.name) == (method, init)


def test_all_values_that_are_wrong_come_in_one_message(tmp_path):
    loaded = load(
        "voc_15_1",
        "train.crop_size=510",
        "train.batch_size=25",
        "train.gradient_accumulation=2",
        "train.epochs=0,1",
        "train.momentum=1",
        "train.learning_rate=nan,0.1",
        "dtype=float16",
        "tasks.name=15x1",
        "classifier_init.bias_rescale=l2",
        f"dataset.root={tmp_path}/none",
        f"init_from={tmp_path}/run",
        "loss.block_rows=1000",
        "checkpoint.keep=0",
    )
    text = message(validation.validate, loaded)
    for key in (
        "train.crop_size=510: not divisible by the output stride 16 of resnet101; the nearest are 496 and 512",
        "train.batch_size=25: not divisible by",
        "train.epochs=(0, 1): must be at least 1",
        "train.momentum=1.0: must be",
        "train.learning_rate=(nan, 0.1): must be a finite number",
        "dtype='float16': must be one of: auto, float32, bfloat16",
        "tasks.name: '15x1'",
        "classifier_init.bias_rescale: 'l2' is not one of",
        "dataset.root=",
        "init_from=",
        "loss.block_rows=1000: does not divide train.crop_size=510",
        "classifier_init.statistics_stride=4: does not divide train.crop_size=510",
        "checkpoint.keep=0",
    ):
        assert key in text, key
    assert text.startswith("config voc_15_1: 13 problems\n")


def test_folders_of_a_dataset(tmp_path):
    absent = f"{tmp_path}/none"
    validation.validate(load("voc_15_1", f"dataset.root={tmp_path}", f"dataset.data_dir={absent}"))  # prepared there
    assert "dataset.data_dir=" in message(validation.validate, load("voc_15_1", f"dataset.data_dir={absent}"))


def test_structure_is_checked_with_all_problems():
    loaded = load("voc_15_1")
    with loaded.unlocked(), loaded.train.ignore_type():
        loaded.train.epochs = (1, 2, 3)
        loaded.train.batch_size = "24"
        loaded.train.nesterov = 1
        loaded.train.workers = True
        loaded.train.crop_size = 0
        loaded.train.weight_decy = 1.0
        del loaded.train.poly_power
    text = message(validation.validate, loaded)
    assert "train.epochs=(1, 2, 3): 3 values, not 2" in text
    assert "train.batch_size='24': str, not int" in text
    assert "train.nesterov=1: int, not bool" in text
    assert "train.workers=True: bool, not int" in text
    assert "'train.weight_decy'; did you mean 'train.weight_decay'" in text
    assert "train.poly_power is missing (default: 0.9)" in text
    assert "must be at least 16" in text  # what is right in form is checked too
    assert "7 problems" in text


def test_unknown_plugins_have_a_suggestion():
    loaded = load("voc_15_1")
    loaded.backbone.name = "resnet110"
    loaded.method.name = "mbi"
    text = message(validation.validate, loaded)
    assert "backbone.name: unknown value 'resnet110'; did you mean 'resnet101'" in text and "did you mean 'mib'" in text
    with loaded.unlocked():
        del loaded["decoder"]
    assert "decoder.name" in message(validation.validate, loaded)


def test_tasks_are_parsed():
    assert "needs at least" in message(validation.validate, load("shapes", "tasks.name=15-1"))
    assert "heptagon" in message(validation.validate, load("shapes", "tasks.classes=heptagon"))
    assert "somehow" in message(validation.validate, load("shapes", "tasks.setting=somehow"))
    validation.validate(load("voc_15_1", "tasks.order=B", "tasks.setting=disjoint"))


def test_ade20k_has_its_classes():
    ade20k = plugins.load("datasets", "ade20k")
    names = ade20k.classes({})
    assert len(names) == len(set(names)) == 151
    assert (names[0], names[1], names[13], names[21], names[150]) == ("background", "wall", "person", "car", "flag")
    protocol = config.protocol(load("ade_100_5"))
    assert [len(task) for task in protocol.tasks] == [100] + [5] * 10
