"""Every plug-in through `train.run`, and what a run promises."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from jax import monitoring
from numpy.testing import assert_array_equal

import nest_jax
from nest_jax import checkpoints, nest, phases, plugins, results, rundir
from nest_jax.errors import InputError, TrainingError
from tests import tiny

METHODS = plugins.names("methods")
INITIALISATIONS = plugins.names("classifier_init")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A complete run of MiB + NeST; the others share its task 0."""
    workdir = tmp_path_factory.mktemp("base")
    return workdir, nest_jax.run(tiny.config(), workdir)


def model(workdir, task):
    return checkpoints.restore(rundir.task_directory(workdir, task))[0]["model"]


def log_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_it_promises(base):
    workdir, outcome = base
    assert outcome == results.read(workdir)
    assert [task["new_classes"] for task in outcome["tasks"]] == [
        ["circle", "striped square", "dotted triangle", "striped circle", "square"],
        ["triangle", "dotted circle"],
    ]
    for task in outcome["tasks"]:
        metrics = task["metrics"]
        assert 0 <= metrics["miou_all"] <= 1 and 0 < metrics["pixel_accuracy"] <= 1
        assert np.array(task["confusion"]).shape == (len(task["per_class"]),) * 2
    assert outcome["tasks"][0]["metrics"]["miou_new"] is None
    assert set(outcome["tasks"][1]["seconds"]) == {"statistics", "pretuning", "training", "evaluation"}
    startup = outcome["tasks"][0]["startup"]
    assert startup["first_step"] > startup["compiling"] > 0 and startup["programs"] >= max(startup["loaded"], 2)
    assert "startup" not in outcome["tasks"][1]
    assert outcome["tasks"][1]["steps"]["training"] == outcome["tasks"][1]["images"]["train"] // 8
    assert (workdir / "results.csv").read_text().count("\n") == 3
    assert (workdir / "pictures" / "sheet.png").stat().st_size > 1000
    assert json.loads((workdir / "config.json").read_text())["method"]["name"] == "mib"
    assert {line["phase"] for line in log_lines(workdir)} == {"statistics", "pretuning", "training"} - {"statistics"}


def test_nest_pretunes_exactly_its_parameters(base):
    """n_new n_old (d + 1) + d + n_new + 1 of them, and they are kept before and after pre-tuning."""
    workdir, _ = base
    details = checkpoints.restore(rundir.task_directory(workdir, 1))[0]["details"]
    pretuned = details["pretuned"]
    assert sum(x.size for x in jax.tree.leaves(pretuned)) == nest.num_parameters(6, 2, 32)
    assert nest.num_parameters(20, 1, 256) == 5398  # the last task of VOC 15-1
    for name, value in pretuned.items():
        assert np.any(value != details["initial"][name]), name
    assert np.all(details["pixels"] > 0)


def test_pretuning_leaves_the_weights_of_the_network_alone(base):
    """Running statistics move (batch norm in train mode, as published), weights do not."""
    workdir, _ = base
    old = model(workdir, 0)
    start = checkpoints.restore(rundir.start_directory(workdir, 1))[0]["model"]
    for a, b in zip(jax.tree.leaves(old["network"]), jax.tree.leaves(start["network"]), strict=True):
        assert_array_equal(a, b)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), old["batch_stats"], start["batch_stats"])
    assert all(jax.tree.leaves(moved))
    # Old classes other than background keep their classifier.
    assert_array_equal(start["classifier"]["kernel"][:, 1:6], old["classifier"]["kernel"][:, 1:])
    assert_array_equal(start["classifier"]["bias"][:6], old["classifier"]["bias"])
    norms = np.linalg.norm(start["classifier"]["kernel"], axis=0)
    np.testing.assert_allclose(norms[6:].mean(), norms[:6].mean(), rtol=1e-5)  # weight alignment


@pytest.mark.parametrize("name", [name for name in METHODS if name != "mib"])
def test_every_method_learns(base, tmp_path, name):
    pick, network = f"method={name},classifier_init=background", {}
    shared = base[0] if name != "joint" else ""
    if hasattr(plugins.load("methods", name), "NEEDS"):  # RCIL: on a network of its own, here as shallow as it gets
        pick, shared = f"{pick},backbone=resnet50,decoder=deeplabv3", ""
        network = {"backbone__pretrained": "none", "backbone__blocks": "1,1,1,1", "decoder__channels": 32}
    outcome = nest_jax.run(tiny.config(pick, init_from=shared, train__epochs="3,3", **network), tmp_path)
    last = len(outcome["tasks"]) - 1
    losses = [line["loss"] for line in log_lines(tmp_path) if line["task"] == last and line["phase"] == "training"]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert len(outcome["tasks"][last]["per_class"]) == 8
    assert len(outcome["tasks"]) == (1 if name == "joint" else 2)
    assert outcome["tasks"][last]["metrics"]["miou_new"] is not None  # joint, too, reports old and new apart


@pytest.mark.parametrize("name", [name for name in INITIALISATIONS if name != "nest"])
def test_every_initialisation_starts_a_task(base, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)  # relative paths, as a command line has them
    nest_jax.run(tiny.config(f"classifier_init={name}", init_from=os.path.relpath(base[0])), tmp_path.name)
    old = model(base[0], 0)
    assert_array_equal(model(tmp_path, 0)["classifier"]["kernel"], old["classifier"]["kernel"])
    start = checkpoints.restore(rundir.start_directory(tmp_path, 1))[0]["model"]
    assert start["classifier"]["kernel"].shape == (32, 8)
    if name == "background":
        np.testing.assert_allclose(start["classifier"]["bias"][[0, 6, 7]], old["classifier"]["bias"][0] - np.log(3))
        for column in (6, 7):
            assert_array_equal(start["classifier"]["kernel"][:, column], old["classifier"]["kernel"][:, 0])


def test_frozen_old_classifiers_stay_bit_equal(base, tmp_path):
    nest_jax.run(tiny.config(init_from=base[0], train__freeze_old_classifiers=True), tmp_path)
    start = checkpoints.restore(rundir.start_directory(tmp_path, 1))[0]["model"]
    final = model(tmp_path, 1)
    assert_array_equal(final["classifier"]["kernel"][:, :6], start["classifier"]["kernel"][:, :6])
    assert np.any(final["classifier"]["kernel"][:, 6:] != start["classifier"]["kernel"][:, 6:])


def test_a_complete_run_is_not_trained_again(base):
    workdir, outcome = base
    before = {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints").rglob("*") if path.is_file()}
    again = nest_jax.run(tiny.config(), workdir)
    assert again["tasks"] == outcome["tasks"]
    assert before == {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints").rglob("*") if path.is_file()}


def test_another_config_is_refused(base):
    with pytest.raises(InputError, match=r"train.learning_rate"):
        nest_jax.run(tiny.config(train__learning_rate="0.5,0.5"), base[0])


def test_other_images_are_refused(base, tmp_path):
    shutil.copytree(base[0], tmp_path / "run")
    began = json.loads((tmp_path / "run" / "data.json").read_text())
    assert began["train"]["images"] == 64
    (tmp_path / "run" / "data.json").write_text(json.dumps({**began, "val": {"images": 23, "sha256": "0"}}))
    with pytest.raises(InputError, match="began with 23 val images, here are 24"):
        nest_jax.run(tiny.config(), tmp_path / "run")


def test_a_missing_earlier_task_is_refused(base, tmp_path):
    shutil.copytree(base[0], tmp_path / "run")
    shutil.rmtree(rundir.task_directory(tmp_path / "run", 0))
    with pytest.raises(InputError, match="task 1 is complete but task 0, from which it was learnt, is missing"):
        nest_jax.run(tiny.config(), tmp_path / "run")


def test_bfloat16_keeps_parameters_and_statistics_in_float32(base, tmp_path):
    """And learns: the base model's loss falls as it does in float32."""
    nest_jax.run(tiny.config(dtype="bfloat16", train__epochs="3,1"), tmp_path)
    tree = checkpoints.restore(rundir.task_directory(tmp_path, 1))[0]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(tree["model"])} == {"float32"}
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))
    losses = [line["loss"] for line in log_lines(tmp_path) if line["task"] == 0]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    # Close to float32 at the first step, where nothing but the precision differs, and not equal to it.
    first = next(line["loss"] for line in log_lines(base[0]) if line["phase"] == "training")
    assert 0 < abs(losses[0] - first) < 0.02 * first


def test_init_from_must_fit(base, tmp_path):
    with pytest.raises(InputError, match="no completed task 0"):
        nest_jax.run(tiny.config(init_from=tmp_path), tmp_path / "run")
    with pytest.raises(InputError, match="its task 0 learnt background, circle"):
        nest_jax.run(tiny.config(init_from=base[0], tasks__name="4-3"), tmp_path / "other")


def test_a_task_without_a_full_batch_is_said_before_training(tmp_path):
    with pytest.raises(InputError, match=r"training images, fewer than train.batch_size=64"):
        nest_jax.run(tiny.config(train__batch_size=64), tmp_path)


def test_a_non_finite_loss_stops_with_every_term(base, tmp_path):
    with pytest.raises(
        TrainingError, match=r"(?s)task 1, training, step \d+.*unce=.*unkd=.*Last good checkpoint: .*task-00"
    ):
        nest_jax.run(tiny.config(init_from=base[0], train__learning_rate="0.01,1e30", train__epochs="1,4"), tmp_path)
    assert rundir.completed_tasks(tmp_path) == [0]


def test_full_images(base, tmp_path):
    """Without a crop, full images of the synthetic set are the crops: the same confusion matrix, one image at a time."""
    config = tiny.config(init_from=base[0], evaluate__full_images=True, train__epochs="1,1")
    outcome = nest_jax.run(config, tmp_path, profile=1)
    recorded = {path.name for path in (tmp_path / "profile").glob("*.json.gz")}  # of the first task that is learnt
    assert recorded == {f"task-01-{phase}.json.gz" for phase in ("statistics", "pretuning", "training")}
    assert outcome["tasks"][0]["confusion"] == base[1]["tasks"][0]["confusion"]


def test_nothing_compiles_after_the_first_step_of_a_phase(base, tmp_path, monkeypatch):
    compiled, counts, log = [], [], phases._log
    monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )

    def counted(context, phase, waiting):
        counts.append((phase, waiting[-1][0], len(compiled)))
        return log(context, phase, waiting)

    monkeypatch.setattr(phases, "_log", counted)
    nest_jax.run(tiny.config("method=plop", init_from=base[0], train__epochs="1,2"), tmp_path)
    for phase in phases.PHASES:
        after_step = {step: count for name, step, count in counts if name == phase}
        assert len(after_step) >= 4 and after_step[1] > 0
        assert set(after_step.values()) == {after_step[1]}, phase


def test_pretuning_in_eval_mode_leaves_the_network_untouched(base, tmp_path):
    nest_jax.run(tiny.config(init_from=base[0], classifier_init__batch_norm="eval"), tmp_path)
    start = checkpoints.restore(rundir.start_directory(tmp_path, 1))[0]["model"]
    old = model(base[0], 0)
    for a, b in zip(jax.tree.leaves(old["batch_stats"]), jax.tree.leaves(start["batch_stats"]), strict=True):
        assert_array_equal(a, b)


def test_a_refused_run_leaves_the_workdir_free(base, tmp_path):
    """After a refusal the same workdir takes a mended config."""
    with pytest.raises(InputError, match="train.batch_size=64"):
        nest_jax.run(tiny.config(train__batch_size=64), tmp_path)
    with pytest.raises(InputError, match="no completed task 0"):
        nest_jax.run(tiny.config(init_from=tmp_path), tmp_path)
    nest_jax.run(tiny.config(init_from=base[0]), tmp_path)
    assert rundir.completed_tasks(tmp_path) == [0, 1]
