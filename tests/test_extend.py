"""`extend_from`: a model learns new classes without the data it was trained on."""

import json
import shutil

import jax
import numpy as np
import pytest
import yaml
from numpy.testing import assert_array_equal

import nest_jax
from nest_jax import base as base_module
from nest_jax import checkpoints, main, results, rundir, segmenter, to_torch, validation
from nest_jax import config as configs
from nest_jax.data import Data
from nest_jax.errors import InputError
from tests import test_folder, tiny

OLD = ("circle", "striped square", "dotted triangle")
QUICK = {"tasks__name": "offline", "evaluate__pictures": 2, "decoder__channels": 24}
PICK = "method=mib,classifier_init=background"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished run of one task: three classes of the synthetic images."""
    workdir = tmp_path_factory.mktemp("base")
    nest_jax.run(tiny.config(PICK, tasks__classes=",".join(OLD), **QUICK), workdir)
    return workdir


@pytest.fixture(scope="module")
def extended(base, tmp_path_factory):
    """The same data set, whose masks show the old classes: they are evaluated. The configured decoder is another: the model's counts."""
    workdir = tmp_path_factory.mktemp("extended")
    return workdir, nest_jax.run(extending(base, tasks__classes="square"), workdir)


def extending(source, pick=PICK, **overrides):
    values = {**QUICK, "extend_from": source, **overrides}
    del values["decoder__channels"]
    return tiny.config(pick, **values)


def model(workdir, task, directory=rundir.task_directory):
    return checkpoints.restore(directory(workdir, task))[0]["model"]


def message(call, *arguments):
    with pytest.raises(InputError) as error:
        call(*arguments)
    return str(error.value)


def test_task_0_is_what_the_model_knows(base, extended):
    workdir, outcome = extended
    first, second = outcome["tasks"]
    assert (first["new_classes"], second["new_classes"]) == (list(OLD), ["square"])
    assert first["images"]["train"] == 0 and first["steps"] == {} and second["images"]["train"] > 0
    assert set(second["per_class"]) == {"background", *OLD, "square"}
    # The old classes are in the masks, so that what was learnt first is measured as it was then.
    assert first["confusion"] == results.read(base)["tasks"][0]["confusion"]
    assert second["metrics"]["miou_old"] is not None
    assert outcome["config"]["decoder"]["channels"] == 24
    assert outcome["config"]["extend_from"] == str(rundir.task_directory(base, 0))
    assert json.loads((workdir / "pictures" / "classes.json").read_text())["4"] == "square"


def test_the_start_has_the_old_classifiers_bit_for_bit(base, extended):
    old, start = model(base, 0), model(extended[0], 1, rundir.start_directory)
    assert_array_equal(model(extended[0], 0)["classifier"]["kernel"], old["classifier"]["kernel"])
    assert start["classifier"]["kernel"].shape == (24, 5)
    assert_array_equal(start["classifier"]["kernel"][:, :4], old["classifier"]["kernel"])
    assert_array_equal(start["classifier"]["bias"][1:4], old["classifier"]["bias"][1:])
    assert np.any(model(extended[0], 1)["classifier"]["kernel"][:, :4] != start["classifier"]["kernel"][:, :4])


@pytest.mark.parametrize(("known", "pick"), [(False, ""), (True, PICK)])
def test_extended_twice_on_a_folder_without_the_old_classes(extended, tmp_path, known, pick):
    """New images show one new class; what the model knew is not measured, or only what `known` maps."""
    workdir, _ = extended
    test_folder.tree(tmp_path)
    said = test_folder.document() | {"classes": {"triangle": 16}, "tasks": [["triangle"]], "unlisted": "background"}
    file = test_folder.say(tmp_path, said | ({"known": {"circle": 11, "square": 15}} if known else {}))
    config = test_folder.config(file, pick, extend_from=workdir, decoder__channels=24)
    assert (config.backbone.name, config.decoder.name, config.decoder.channels) == ("tiny", "plain", 24)
    if known:
        protocol = configs.protocol(config)
        assert protocol.class_names == (
            "background",
            "triangle",
            "circle",
            "square",
            "striped square",
            "dotted triangle",
        )
        assert protocol.tasks == ((2, 4, 5, 3), (1,))
    outcome = nest_jax.run(config, tmp_path / "run")
    assert outcome["tasks"][0]["new_classes"] == [*OLD, "square"] and outcome["tasks"][1]["new_classes"] == ["triangle"]
    per_class = outcome["tasks"][1]["per_class"]
    assert [name for name, value in per_class.items() if value is None] == (
        ["striped square", "dotted triangle"] if known else [*OLD, "square"]
    )
    old = outcome["tasks"][1]["metrics"]["miou_old"]
    if known:
        assert old == pytest.approx(np.mean([per_class[name] for name in ("background", "circle", "square")]))
    else:
        assert old is None and outcome["tasks"][0]["metrics"]["miou_all"] is None
    assert checkpoints.metadata(rundir.task_directory(tmp_path / "run", 1))["classes"] == [
        "background",
        *OLD,
        "square",
        "triangle",
    ]
    # NeST's matrices lie beside this model; it can be extended all the same.
    again = configs.resolve(extending(tmp_path / "run", tasks__classes="dotted circle"))
    protocol = configs.protocol(again)
    found = base_module.extended(again, segmenter.build(again), Data(again, protocol, protocol, None, None))  # type: ignore[arg-type]
    jax.tree.map(assert_array_equal, found, model(tmp_path / "run", 1))


# ------------------------------------------------------------------------------------------------------------------ continuing


def test_the_same_command_continues(base, extended, monkeypatch):
    workdir, outcome = extended
    monkeypatch.chdir(base.parent)
    assert nest_jax.run(extending(base.name, tasks__classes="square"), workdir)["tasks"] == outcome["tasks"]
    checkpoint = rundir.task_directory(base, 0)
    assert nest_jax.run(extending(checkpoint, tasks__classes="square"), workdir)["tasks"] == outcome["tasks"]
    text = message(nest_jax.run, extending(workdir, tasks__classes="triangle"), workdir)
    assert f"extend_from: '{checkpoint}' there" in text and "task-01' now" in text


def test_a_run_goes_on_after_task_0(base, extended, tmp_path):
    """Task 0, once kept in the workdir, is enough: the same numbers come out as in one go."""
    shutil.copytree(extended[0], tmp_path / "run")
    for directory in (rundir.task_directory, rundir.start_directory):
        shutil.rmtree(directory(tmp_path / "run", 1))
    again = nest_jax.run(extending(base, tasks__classes="square"), tmp_path / "run")
    assert again["tasks"][1]["confusion"] == extended[1]["tasks"][1]["confusion"]


def test_a_pytorch_file_is_task_0(base, tmp_path):
    to_torch.export(base, tmp_path / "model.safetensors", 0)
    overrides = {**QUICK, "tasks__classes": ",".join(OLD), "init_from": tmp_path / "model.safetensors"}
    outcome = nest_jax.run(tiny.config(PICK, **overrides), tmp_path / "run")
    assert outcome["tasks"][0]["confusion"] == results.read(base)["tasks"][0]["confusion"]
    assert outcome["tasks"][0]["steps"] == {}
    jax.tree.map(assert_array_equal, model(tmp_path / "run", 0), model(base, 0))
    more = tiny.config(PICK, **{**overrides, "tasks__classes": ",".join([*OLD, "square"])})
    assert "4 classes, background included; 5 are needed" in message(nest_jax.run, more, tmp_path / "more").replace(
        "has learnt ", ""
    )


# ------------------------------------------------------------------------------------------------------------------- what is refused


def test_what_does_not_go_together_is_said_at_once(base):
    config = extending(base, "method=joint", tasks__classes="square,circle", init_from=base, backbone__widths="8,8,8,8")
    text = message(validation.validate, config)
    assert "the model knows circle already; leave what it knows out of the tasks" in text
    assert "init_from=" in text and "says already what task 0 is" in text
    assert "method.name='joint': it trains on all tasks at once" in text
    assert "backbone.widths=(8, 8, 8, 8): the model that is taken over has (16, 32, 64, 64)" in text
    assert "4 problems" in text


def test_another_network_is_refused_by_both_names(base, capsys):
    """Picked after the colon, or standing in a config that was not loaded with `extend_from`."""
    arguments = ["--config=configs/folder.py:backbone=resnet50", f"--config.extend_from={base}", "--validate_only"]
    assert main.main(arguments) == 2
    assert "backbone='resnet50': the model that is taken over has 'tiny'" in capsys.readouterr().err
    config = configs.load("configs/folder.py")
    config.extend_from = str(base)
    text = message(validation.validate, config)
    assert "backbone.name='efficientnet_lite0': the model that is taken over has 'tiny'" in text
    assert "decoder.name='deeplabv3': the model that is taken over has 'plain'" in text


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("nowhere", "no completed task there; give the --workdir of a run, or WORKDIR/checkpoints/task-NN"),
        ("{workdir}/checkpoints/task-07", "no completed task there"),
        ("{workdir}/checkpoints/start-01", "not the checkpoint of a completed task"),
        ("model.pth", "a file does not say which classes its model knows"),
    ],
)
def test_what_is_no_model(extended, path, part):
    text = message(extending, path.format(workdir=extended[0]))
    assert part in text and text.startswith("extend_from=")


def test_known_classes_must_be_known(base, tmp_path):
    said = test_folder.document() | {"classes": {"triangle": 16}, "tasks": [["triangle"]], "known": {"cat": 11}}
    config = test_folder.config(test_folder.say(tmp_path, said), "", extend_from=base)
    text = message(validation.validate, config)
    assert "known: cat: not among its classes circle, striped square, dotted triangle" in text


def test_too_many_classes(base, tmp_path):
    many = [f"class {number}" for number in range(252)]
    said = test_folder.document() | {"classes": many, "tasks": [many], "void": None}
    config = test_folder.config(test_folder.say(tmp_path, yaml.safe_load(yaml.safe_dump(said))), "", extend_from=base)
    assert "255 classes, its own and the data set's, do not fit 8 bits" in message(validation.validate, config)


def test_means_over_the_classes_that_are_measured_by_hand():
    per_class = {"background": 0.9, "cat": None, "dog": 0.5, "sheep": None, "horse": 0.2}
    assert results.of_those_measured(per_class, 3) == {"miou_old": pytest.approx(0.7), "miou_new": pytest.approx(0.2)}
    assert results.of_those_measured(per_class, 2) == {"miou_old": None, "miou_new": pytest.approx(0.35)}
    assert results.of_those_measured({**per_class, "horse": None}, 4)["miou_new"] is None
