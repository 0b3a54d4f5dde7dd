"""Every backbone plug-in through two tasks of a run, shallow where its settings allow it."""

import json
import math
from functools import partial

import jax
import numpy as np
import pytest

import nest_jax
from nest_jax import base, checkpoints, plugins, rundir, segmenter
from nest_jax import config as configs
from nest_jax.backbones import efficientnet_lite
from tests import tiny

SHALLOW = {"blocks": "1,1,1,1", "depths": "1,1,1,1", "depth": "1"}
# nearly all of a run's time is XLA's compiler's, which is several times as fast without its care for fast code
QUICK = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
DECODERS = {"vit_b": "setr"}  # the others: plain, which compiles fastest


def arguments(name):
    """`config`'s arguments for a short run of two tasks."""
    plugin = plugins.load("backbones", name)
    defaults = plugin.defaults(name)
    method, decoder = "mib", DECODERS.get(name, "plain")
    for candidate in plugins.names("methods"):  # networks that are made for one method
        needs = getattr(plugins.load("methods", candidate), "NEEDS", {})
        if name in needs.get("backbone", {}).values():
            method, decoder = candidate, next(iter(needs["decoder"].values()))
    values = {f"backbone__{key}": value for key, value in SHALLOW.items() if key in defaults}
    crop = max(32, plugin.output_stride(defaults))
    return f"backbone={name},decoder={decoder},method={method}", {
        **values,
        "backbone__pretrained": "none",
        "decoder__channels": 16,
        "dataset__train_images": 12,
        "dataset__val_images": 8,
        "train__batch_size": 4,
        "train__crop_size": crop,
        "train__learning_rate": "0.01,0.01",
        "evaluate__batch_size": 4,
        "evaluate__pictures": 0,
    }


@pytest.mark.parametrize("name", plugins.names("backbones"))
def test_two_tasks_of_every_backbone(name, tmp_path, monkeypatch):
    saved, save = {}, checkpoints.save

    def recorded(directory, tree, metadata):
        saved[str(directory)] = jax.tree.map(np.array, tree)
        save(directory, tree, metadata)

    # the one network without a setting for its depth
    monkeypatch.setattr(efficientnet_lite, "STAGES", tuple((1, *stage[1:]) for stage in efficientnet_lite.STAGES))
    pick, overrides = arguments(name)
    config = tiny.config(pick, **overrides)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", recorded)
        patch.setattr(jax, "jit", partial(jax.jit, compiler_options=QUICK))
        outcome = nest_jax.run(config, tmp_path)
    assert len(outcome["tasks"]) == 2 and outcome["tasks"][1]["steps"]["training"] > 0
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    losses = [value for line in map(json.loads, lines) for key, value in line.items() if key == "loss"]
    assert len(losses) >= 3 and all(map(math.isfinite, losses))

    config = configs.resolve(config)
    directory = rundir.task_directory(tmp_path, 1)
    model = saved[str(directory)]["model"]
    target = base.abstract(config, segmenter.build(config), model["classifier"]["bias"].size)
    restored = checkpoints.restore(directory)[0]["model"]
    assert jax.tree.structure(restored) == jax.tree.structure(target) == jax.tree.structure(model)
    jax.tree.map(np.testing.assert_array_equal, restored, model)
    before = saved[str(rundir.task_directory(tmp_path, 0))]["model"]["network"]
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, model["network"])
    assert all(jax.tree.leaves(moved))
