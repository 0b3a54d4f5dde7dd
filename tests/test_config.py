"""Config files are found and loaded; published values; overrides; storing, and the workdir that belongs to one config."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nest_jax import config, recipes, rundir, validation
from nest_jax.errors import InputError

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))


def load(name="shapes", *overrides: str, arg="") -> Any:
    loaded = config.load(f"configs/{name}.py:{arg}")
    config.override(loaded, [(key, value) for key, _, value in (item.partition("=") for item in overrides)])
    return loaded


def message(call, *arguments):
    with pytest.raises(InputError) as error:
        call(*arguments)
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_says_how_to_run_it(name):
    text = (CONFIGS / f"{name}.py").read_text().split('"""')[1]
    assert f"--config=configs/{name}.py" in text
    assert all(word in text for word in ("Command:", "Machine:", "Time:"))


def test_a_bare_config_is_mib_with_nest_on_resnet101_as_published():
    voc, short, ade = load("voc_15_1"), load("voc_10_1"), load("ade_100_5")
    for loaded in (voc, short, ade):
        assert (loaded.method.name, loaded.classifier_init.name, loaded.backbone.name) == ("mib", "nest", "resnet101")
        assert (loaded.method.distillation, loaded.decoder.channels, loaded.seed) == (10.0, 256, 42)
        assert (loaded.train.batch_size, loaded.train.crop_size) == (24, 512)
        assert loaded.train.learning_rate == (0.02, 0.001)
        assert (loaded.train.momentum, loaded.train.weight_decay, loaded.train.poly_power) == (0.9, 1e-4, 0.9)
    assert (voc.train.epochs, short.train.epochs, ade.train.epochs) == ((30, 30), (30, 10), (60, 60))
    assert (voc.classifier_init.epochs, voc.classifier_init.learning_rate) == (5, 0.001)
    assert (ade.classifier_init.epochs, ade.classifier_init.learning_rate) == (15, 0.5)


def test_the_animals_recipe():
    loaded = load("voc_animals_3_1")
    assert loaded.backbone.name == "efficientnet_lite0" and loaded.dtype == "float32"
    assert (loaded.train.crop_size, loaded.train.batch_size, loaded.train.epochs) == (160, 12, (6, 6))
    assert (loaded.train.learning_rate, loaded.method.distillation, loaded.seed) == ((0.02, 0.001), 10.0, 42)
    assert (loaded.classifier_init.epochs, loaded.classifier_init.learning_rate) == (5, 0.001)
    assert config.protocol(loaded).tasks == ((8, 10, 12), (13,), (15,), (17,))


def test_rows_of_plop_and_rcil():
    assert load("voc_15_1", arg="method=plop").train.freeze_old_classifiers
    assert not load("voc_15_1", arg="method=plop,classifier_init=background").train.freeze_old_classifiers
    ade = load("ade_100_5", arg="method=plop")
    assert not ade.train.freeze_old_classifiers
    assert (ade.method.pod, ade.method.pod_logits) == (0.001, 0.00001)
    assert load("voc_10_1", arg="method=plop").train.epochs == (30, 10)
    assert load("voc_10_1", arg="method=rcil").train.epochs == (30, 30)
    rcil = load("ade_100_5", arg="method=rcil")
    assert rcil.train.learning_rate == (0.01, 0.001) and rcil.classifier_init.learning_rate == 0.1
    assert (rcil.method.pooled_cube, rcil.method.pooled_cube_last) == (5e-6, 5e-7)
    assert load("voc_15_1", arg="method=rcil,classifier_init=background").classifier_init.bias == "random"
    assert load("voc_15_1", arg="method=mib,classifier_init=background").classifier_init.bias == "shared"


def test_rcil_picks_its_networks():
    loaded = load("voc_15_1", arg="method=rcil,backbone=resnet50")
    assert (loaded.backbone.name, loaded.decoder.name) == ("resnet50_rc", "deeplabv3_rc")
    assert load("voc_15_1", arg="method=rcil,backbone=resnet101_rc").backbone.name == "resnet101_rc"
    assert load("voc_15_1", arg="method=plop").backbone.name == "resnet101"


def test_picks_replace_whole_sections():
    loaded = load("voc_15_1", arg="method=finetune,classifier_init=random,backbone=resnet50")
    assert (loaded.method.name, loaded.classifier_init.name, loaded.backbone.name) == ("finetune", "random", "resnet50")
    assert "distillation" not in loaded.method and "importance_init" not in loaded.classifier_init


def test_bad_picks_are_all_named():
    text = message(config.load, "configs/voc_15_1.py:method=mbi,classifer_init=nest,backbone,decoder=x,method=joint")
    assert "did you mean 'mib'" in text and "did you mean 'classifier_init'" in text
    assert "'backbone' is not of the form key=value" in text
    assert "decoder: unknown value 'x'" in text and "deeplabv3" in text
    assert "method is given twice" in message(config.load, "configs/voc_15_1.py:method=mib,method=joint")


def test_rows_cannot_add_keys():
    with pytest.raises((KeyError, AttributeError)):
        recipes.base(name="x", dataset="shapes", tasks="3-2", backbone="tiny", rows=[({}, {"train.epoch": (1, 1)})])


# ------------------------------------------------------------------------------------------------------------------ files


def test_configs_are_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spelling in ("configs/shapes.py", "configs/shapes", "shapes", "shapes.py", str(CONFIGS / "shapes.py")):
        assert config.resolve_path(spelling) == CONFIGS / "shapes.py"
    own = tmp_path / "configs" / "shapes.py"  # what lies here comes first
    own.parent.mkdir()
    own.write_text((CONFIGS / "shapes.py").read_text().replace('name="shapes"', 'name="mine"'))
    assert config.load("configs/shapes.py").name == "mine"


def test_configs_are_found_in_an_installed_package(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages" / "nest_jax"
    (installed / "configs").mkdir(parents=True)
    (installed / "configs" / "only_here.py").write_text("")
    monkeypatch.setattr(config, "PACKAGE", installed)
    assert config.available() == ["configs/only_here.py"]
    assert config.resolve_path("configs/only_here.py") == installed / "configs" / "only_here.py"


def test_unknown_config_files():
    text = message(config.load, "configs/voc_15_11.py")
    assert "did you mean 'configs/voc_15_1.py'" in text and "configs/ade_100_5.py" in text
    assert "did you mean 'configs/shapes.py'" in message(config.load, "shape")
    assert "/nowhere/voc_15_1.py" in message(config.load, "/nowhere/voc_15_1.py")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("x = 1", "AttributeError"),
        ("\ndef get_config(arg=''):\n    return 1 / 0", "line 3: ZeroDivisionError"),
        ("def get_config(arg=''):\n    return {}", "returned dict"),
        ("def get_config(:", "line 1: SyntaxError"),
    ],
)
def test_broken_config_files(tmp_path, body, expected):
    path = tmp_path / "broken.py"
    path.write_text(body)
    text = message(config.load, str(path))
    assert str(path) in text and expected in text


# -------------------------------------------------------------------------------------------------------------- overrides


def test_overrides_take_the_type_of_the_value():
    loaded = load(
        "shapes",
        "train.epochs=6,7",
        "train.learning_rate=(1, 2e-3)",
        "train.nesterov=false",
        "seed=7",
        "train.momentum=0",
        "tasks.classes=circle,3",
        "tasks.order=2,1,3",
        "decoder.channels=8",
        "init_from=runs/a=b",
    )
    assert loaded.train.epochs == (6, 7) and loaded.train.learning_rate == (1.0, 0.002)
    assert all(isinstance(rate, float) for rate in loaded.train.learning_rate)
    assert loaded.train.nesterov is False and loaded.seed == 7
    assert loaded.train.momentum == 0.0 and isinstance(loaded.train.momentum, float)
    assert loaded.tasks.classes == ("circle", "3") and loaded.tasks.order == "2,1,3"
    assert loaded.init_from == "runs/a=b"
    assert load("shapes", "tasks.classes=4,3").tasks.classes == (4, 3)
    assert load("voc_15_1", "decoder.dilations=3,6,9").decoder.dilations == (3, 6, 9)


def test_bad_overrides_are_all_named():
    text = message(
        load, "shapes", "train.epoch=1,1", "sede=1", "seed=1.5", "train.nesterov=maybe", "train.learning_rate=a,b"
    )
    assert "did you mean 'train.epochs'" in text and "did you mean 'seed'" in text
    assert "--config.seed=1.5: not a whole number" in text
    assert "not true or false" in text
    assert "--config.train.learning_rate=a" in text
    for key in ("method", "method.name"):
        assert "--config=FILE:method=joint" in message(load, "shapes", f"{key}=joint")


# ------------------------------------------------------------------------------------------------------------------- storing


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip(name):
    loaded = load(name)
    again = config.from_json(config.to_json(loaded))
    assert config.flatten(again) == config.flatten(loaded)
    types = {key: type(value) for key, value in config.flatten(loaded).items()}
    assert {key: type(value) for key, value in config.flatten(again).items()} == types
    validation.validate(again)


def test_resolve_gives_a_frozen_copy():
    loaded = load("voc_15_1")
    resolved = config.resolve(loaded)
    assert resolved.dtype == "float32" and loaded.dtype == "auto"  # tests run on CPU
    assert config.resolve(load("voc_15_1", "dtype=bfloat16")).dtype == "bfloat16"
    with pytest.raises(AttributeError):
        resolved.seed = 1
    loaded.train.batch_size = 12
    assert resolved.train.batch_size == 24
    validation.validate(resolved)
    assert config.flatten(config.resolve(resolved)) == config.flatten(resolved)


def test_a_workdir_belongs_to_one_config(tmp_path):
    workdir = tmp_path / "a" / "run"
    resolved = config.resolve(load())
    config.claim(resolved, workdir, write=False)
    assert not workdir.exists()
    config.claim(resolved, workdir)
    stored = (workdir / "config.json").read_text()
    assert json.loads(stored)["train"]["epochs"] == list(resolved.train.epochs)
    assert os.listdir(workdir) == ["config.json"]

    config.claim(load("shapes", "log.every_steps=3", "checkpoint.keep=5", "train.workers=2"), workdir)
    text = message(config.claim, load("shapes", "seed=1", "train.epochs=1,1"), workdir)
    assert str(workdir) in text and "seed: 42 there, 1 now" in text and "now" in text.split("train.epochs")[1]
    text = message(config.claim, load("shapes", arg="classifier_init=random"), workdir)
    assert "classifier_init.name: 'nest' there, 'random' now" in text and text.count("classifier_init") == 1
    assert (workdir / "config.json").read_text() == stored


def test_a_locked_workdir_is_claimed(tmp_path):
    """A run takes the lock first, so that two runs cannot both find the workdir free; the lock's file is there by then."""
    workdir = tmp_path / "run"
    for seed in ("1", "1", "2"):  # new, continued, another config
        with rundir.lock(workdir):
            assert (workdir / ".lock").exists()
            if seed == "1":
                config.claim(load("shapes", f"seed={seed}"), workdir)
            else:
                assert "seed: 1 there, 2 now" in message(config.claim, load("shapes", f"seed={seed}"), workdir)
    assert sorted(os.listdir(workdir)) == [".lock", "config.json"]


def test_workdirs_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("precious")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        assert "a file where a directory should be" in message(config.claim, load(), workdir)
    assert (tmp_path / "file").read_text() == "precious"
    (tmp_path / "config.json").write_text("not json")
    assert "not a config written by nest_jax" in message(config.claim, load(), tmp_path)
    assert (tmp_path / "config.json").read_text() == "not json"


def test_bad_names_are_answered_without_importing_jax():
    code = "import sys, nest_jax.main as m; print(m.main(['--config=configs/nothing.py']), 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CONFIGS.parent, check=True)
    assert done.stdout.split() == ["2", "False"]
