"""What a user can get wrong, through the command line: exit code 2, one plain message that names it, nothing overwritten.

The messages of each module are tested beside it (a VOC folder's in test_voc2012.py, a config's in test_validation.py, flags in
test_main.py); here they travel through a whole run.
"""

from pathlib import Path

import pytest

from nest_jax import main, rundir
from nest_jax.datasets import voc2012
from tests import test_voc2012, tiny

QUICK = "method=finetune,classifier_init=random"
ONE_TASK = {"tasks__name": "offline", "dataset__train_images": 16, "dataset__val_images": 8, "evaluate__pictures": 0}


@pytest.fixture(autouse=True)
def _no_data_from_outside(monkeypatch, tmp_path):
    monkeypatch.delenv(voc2012.ROOT_VARIABLE, raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default_data_dir"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a finished run of one task."""
    workdir = tmp_path_factory.mktemp("finished")
    assert main.main([*tiny.arguments(QUICK, **ONE_TASK), f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture
def refused(capsys, tmp_path):
    """Calls the command line; returns its one message, after the checks that hold for every bad input."""

    def call(arguments, *, keeps=tmp_path):
        capsys.readouterr()
        before = contents(keeps)
        assert main.main([str(word) for word in arguments]) == 2
        after = contents(keeps)
        assert {path: after.get(path) for path in before} == before
        told = capsys.readouterr().err
        assert told.count("error: ") == 1 and "Traceback" not in told, told
        warnings, error, message = told.partition(
            "error: "
        )  # a warning that this process has not given yet may come first
        assert not warnings or warnings.endswith("\n"), told
        return error + message

    return call


def contents(folder):
    """Every file below, but for the lock that a run takes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def voc_arguments(pick="", **overrides):
    """A run on VOC with the tiny network; `tree` has 3 training images with the classes 1, 4, 13 and 15."""
    values = {
        "train.crop_size": 32,
        "train.batch_size": 1,
        "evaluate.batch_size": 1,
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }
    pick = pick or f"{QUICK},backbone=tiny,decoder=plain"
    return [f"--config=configs/voc_15_1.py:{pick}", *(f"--config.{key}={value}" for key, value in values.items())]


# ---------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("pick", "overrides", "parts"),
    [
        ("method=mbi", {}, ("method: unknown value 'mbi'", "did you mean 'mib'", "finetune")),
        (QUICK, {"train__epoch": 1}, ("--config.train.epoch", "did you mean 'train.epochs'", "train.batch_size")),
        (QUICK, {"tasks__classes": "circle,heptagon"}, ("tasks.classes", "'heptagon'", "circle", "dotted triangle")),
        (QUICK, {"tasks__name": "15x1"}, ("tasks.name: '15x1'", "15-1")),
        (QUICK, {"tasks__name": "9-2"}, ("tasks.name: '9-2'", "7")),
        (QUICK, {"tasks__order": "1,2,2"}, ("tasks.order",)),
        (QUICK, {"train__batch_size": 60}, ("task 0 has 56 training images", "fewer than train.batch_size=60")),
        (QUICK, {"init_from": "nowhere"}, ("init_from='nowhere'", "no such directory", "--workdir")),
        (QUICK, {"init_from": "."}, ("init_from=.", "no completed task 0")),
        (QUICK, {"dtype": "float16"}, ("dtype='float16'", "float32, bfloat16")),
    ],
)
def test_values(refused, tmp_path, pick, overrides, parts):
    error = refused([*tiny.arguments(pick, **overrides), f"--workdir={tmp_path / 'run'}"])
    assert all(part in error for part in parts), error
    assert rundir.completed_tasks(tmp_path / "run") == []


@pytest.mark.parametrize("name", ["weights.pth", "imagenette"])
def test_pretrained_weights_that_are_not_there(refused, tmp_path, name):
    test_voc2012.tree(tmp_path / "data")
    pick = f"{QUICK},backbone=resnet50,decoder=plain"
    words = voc_arguments(pick, backbone__pretrained=name, dataset__root=tmp_path / "data", tasks__name="offline")
    assert name in refused([*words, "--workdir=run"])


# ------------------------------------------------------------------------------------------------------------------ data


def test_a_root_that_is_not_there(refused):
    assert "dataset.root='nowhere': no such directory" in refused([*voc_arguments(dataset__root="nowhere")])


def test_a_root_without_voc_in_it(refused, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    error = refused([*voc_arguments(dataset__root=tmp_path / "photos"), "--workdir=run"])
    assert str(tmp_path / "photos") in error and "JPEGImages" in error


def test_no_data_at_all(refused):
    error = refused([*voc_arguments(), "--workdir=run"])
    assert "--config.dataset.root" in error and voc2012.ROOT_VARIABLE in error


@pytest.mark.parametrize("case", ["truncated JPEG", "size", "labels"])
def test_files_of_a_data_set(refused, tmp_path, case):
    spoil, _ = test_voc2012.BAD[case]
    spoil(test_voc2012.tree(tmp_path / "data"))
    error = refused([*voc_arguments(dataset__root=tmp_path / "data"), "--workdir=run"])
    assert test_voc2012.TRAIN[0] in error and f"1 problem in {tmp_path / 'data'}" in error
    assert not (tmp_path / "default_data_dir").exists()


def test_a_task_without_an_image(refused, tmp_path):
    test_voc2012.tree(tmp_path / "data")
    order = (20, *range(1, 15), 16, 15, 17, 18, 19)  # 16 is in no mask
    words = voc_arguments(dataset__root=tmp_path / "data", tasks__order=",".join(map(str, order)))
    error = refused([*words, "--workdir=run"])
    assert "task 1" in error and "pottedplant" in error


# --------------------------------------------------------------------------------------------------------------- workdir


def test_a_file_in_the_place_of_the_workdir(refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    for workdir in ("file", "file/run", "file/a/run"):
        error = refused([*tiny.arguments(QUICK), f"--workdir={tmp_path / workdir}"])
        assert str(tmp_path / "file") in error and "file" in error and "directory" in error, error


def test_a_workdir_that_another_run_is_using(refused, finished):
    with rundir.lock(finished):
        error = refused([*tiny.arguments(QUICK, **ONE_TASK), f"--workdir={finished}"], keeps=finished)
    assert str(finished) in error and "another run is using it" in error and "--workdir" in error


def test_a_workdir_of_another_config(refused, finished):
    words = [*tiny.arguments(QUICK, **ONE_TASK), "--config.train.learning_rate=0.5,0.5", "--config.seed=1"]
    error = refused([*words, f"--workdir={finished}"], keeps=finished)
    assert str(finished) in error and "train.learning_rate: (" in error and "seed: 42 there, 1 now" in error


@pytest.fixture(params=["metadata.json", "arrays"])
def flipped(request, finished):
    """A file of the finished task's checkpoint with one bit changed; mended afterwards."""
    directory = Path(rundir.task_directory(finished, 0))
    files = [path for path in directory.rglob("*") if path.is_file()]
    files = [path for path in files if request.param in path.relative_to(directory).parts]
    path = max(files, key=lambda path: path.stat().st_size)
    good = path.read_bytes()
    middle = len(good) // 2
    path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    yield path
    path.write_bytes(good)


def test_a_checkpoint_that_was_altered(refused, finished, flipped, tmp_path):
    arguments = tiny.arguments(QUICK, **ONE_TASK)
    error = refused([*arguments, f"--workdir={finished}"], keeps=finished)
    assert str(flipped) in error
    assert str(flipped) in refused([*arguments, f"--config.init_from={finished}", f"--workdir={tmp_path / 'run'}"])
