"""Every backbone plug-in through two tasks of a run, shallow where its settings allow it."""

import json
import math
from functools import partial

import jax
import numpy as np
import pytest

import nest_jax
from nest_jax import base, checkpoints, plugins, rundir, segmenter, trees
from nest_jax import config as configs
from nest_jax.backbones import efficientnet_lite
from tests import tiny

SHALLOW = {"blocks": "1,1,1,1", "depths": "1,1,1,1", "depth": "1"}
DECODERS = {"vit_b": "setr"}  # the others: plain, which compiles fastest
# Other sizes of one network: the second runs for both.
SAME = {"resnet101": "resnet50", "resnet101_rc": "resnet50_rc", "swin_b": "swin_t"}
NAMES = [name for name in plugins.names("backbones") if name not in SAME]
# MiB reads no maps, and these belong to maps alone.
UNREAD = {f"body/norm{stage}/bias" for stage in range(3)}
# Nearly all of a run's time is XLA's compiler's, which is several times as fast without its care for fast code.
QUICK = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def tiny_config(name):
    """Of a short run of two tasks: MiB + NeST, or the method that the network is made for."""
    plugin = plugins.load("backbones", name)
    defaults = plugin.defaults(name)
    method, decoder = "mib", DECODERS.get(name, "plain")
    for candidate in plugins.names("methods"):
        needs = getattr(plugins.load("methods", candidate), "NEEDS", {})
        if name in needs.get("backbone", {}).values():
            method, decoder = candidate, next(iter(needs["decoder"].values()))
    return tiny.config(
        f"backbone={name},decoder={decoder},method={method}",
        **{f"backbone__{key}": value for key, value in SHALLOW.items() if key in defaults},
        backbone__pretrained="none",
        decoder__channels=16,
        dataset__train_images=12,
        dataset__val_images=8,
        train__batch_size=4,
        train__crop_size=max(32, plugin.output_stride(defaults)),
        train__learning_rate="0.01,0.01",
        evaluate__batch_size=4,
        evaluate__pictures=0,
    )


@pytest.mark.parametrize("name", NAMES)
def test_two_tasks_of_every_backbone(name, tmp_path, monkeypatch):
    saved, save = {}, checkpoints.save

    def recorded(directory, tree, metadata):
        saved[str(directory)] = jax.tree.map(np.array, tree)
        save(directory, tree, metadata)

    # the one network without a setting for its depth
    monkeypatch.setattr(efficientnet_lite, "STAGES", tuple((1, *stage[1:]) for stage in efficientnet_lite.STAGES))
    config = tiny_config(name)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", recorded)
        patch.setattr(jax, "jit", partial(jax.jit, compiler_options=QUICK))
        outcome = nest_jax.run(config, tmp_path)
    assert len(outcome["tasks"]) == 2 and outcome["tasks"][1]["steps"]["training"] > 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["phase"] == "training"]
    assert {line["task"] for line in lines} == {0, 1} and all(map(math.isfinite, losses))

    before, after = (saved[str(rundir.task_directory(tmp_path, task))]["model"] for task in (0, 1))
    config = configs.resolve(config)
    target = base.abstract(config, segmenter.build(config), after["classifier"]["bias"].size)
    restored = checkpoints.restore(rundir.task_directory(tmp_path, 1))[0]["model"]
    assert jax.tree.structure(restored) == jax.tree.structure(target)
    jax.tree.map(np.testing.assert_array_equal, restored, after)
    pairs = zip(*(trees.flatten(model["network"])[0].items() for model in (before, after)), strict=True)
    assert {path for (path, old), (_, new) in pairs if np.array_equal(old, new)} <= UNREAD


@pytest.mark.parametrize(("name", "other"), SAME.items())
def test_other_sizes_are_the_same_network(name, other):
    """Shallow, they differ in nothing but Swin's numbers."""

    def fields(config):
        body = segmenter.build(configs.resolve(config)).network.body
        return {key: getattr(body, key) for key in body.__dataclass_fields__ if key not in ("size", "parent", "name")}

    assert fields(tiny_config(name)) == fields(tiny_config(other))
