"""`--profile`: a file of a few steps that the viewer opens."""

import gzip
import json

import jax.numpy as jnp
import numpy as np

from nest_jax import phases, sharding, writers
from tests import tiny


def step(carry, frozen, batch):
    image = batch["image"].astype(jnp.float32)
    return {"w": carry["w"] + jnp.tanh(image @ carry["w"]).sum()}, {"loss": image.sum()}


def test_steps_after_the_first_are_recorded(tmp_path, capsys):
    batches = [{"image": np.ones((2, 8), np.uint8)}] * 6
    with writers.Writer(tmp_path) as writer:
        context = phases.Context(tmp_path, tiny.config(), sharding.mesh(), writer, 1, {}, {}, 3)
        phases.run(context, "pretuning", step, {"w": jnp.ones((8, 8))}, {}, lambda start: batches[start:], 6)
    path = tmp_path / "profile" / "task-01-pretuning.json.gz"
    assert f"open {path} at https://ui.perfetto.dev" in capsys.readouterr().out
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    marks = [int(event["args"]["step_num"]) for event in events if event.get("name") == "pretuning"]
    assert marks == [2, 3, 4]
    names = [event.get("name", "") for event in events]
    assert names.count("PjitFunction(step)") >= 3 and sum("tanh" in name or "fusion" in name for name in names) >= 3
    assert path.with_name("task-01-pretuning.xplane.pb").stat().st_size > 1000


def test_nothing_is_recorded_unasked(tmp_path):
    with writers.Writer(tmp_path) as writer:
        context = phases.Context(tmp_path, tiny.config(), sharding.mesh(), writer, 1, {}, {})
        phases.run(
            context, "pretuning", step, {"w": jnp.ones((8, 8))}, {}, lambda start: [{"image": np.ones((2, 8))}], 1
        )
    assert not (tmp_path / "profile").exists()
