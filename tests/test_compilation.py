"""Compiled programs are kept between processes, and never in the way of a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from nest_jax import compilation

ROOT = Path(__file__).parents[1]
# A training step of the tiny network; which programs were loaded, which written, and what came out.
PROGRAM = """
import collections, hashlib, json, sys
import jax, jax.numpy as jnp, numpy as np
from nest_jax import compilation, optim, plugins, state, step
from nest_jax import segmenter as seg
from tests import tiny
events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.rpartition("/")[2]]))
folder, config = compilation.keep(), tiny.config("method=finetune", dtype="float32")
segmenter = seg.build(config)
network, stats = seg.init(segmenter, jax.random.key(0), 32)
model = {"network": network, "classifier": {"kernel": jnp.ones((segmenter.channels, 3)), "bias": jnp.zeros(3)}, "batch_stats": stats}
method = plugins.load("methods", "finetune").build(config.method, num_old=1, num_new=2)
optimiser = optim.sgd(optim.poly(0.1, int(sys.argv[1]), 0.9), momentum=0.9, weight_decay=1e-4)
rng = np.random.default_rng(0)
batch = {"image": rng.integers(0, 256, (2, 32, 32, 3), np.uint8), "label": rng.integers(0, 3, (2, 32, 32)).astype(np.uint8)}
frozen = {"teacher": None, "table": jnp.arange(256, dtype=jnp.uint8), "key": jnp.zeros(2, jnp.uint32)}
now, _ = jax.jit(step.make(segmenter, method, optimiser))(state.create(model, optimiser), frozen, batch)
digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(now.params)))
print(json.dumps({"folder": str(folder), "digest": digest.hexdigest(), "hits": events["cache_hits"], "misses": events["cache_misses"]}))
"""


def call(home, steps=10, **environment):
    """What the program printed, and its warnings."""
    unset = {"JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR"}
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    added = {"XDG_CACHE_HOME": str(home), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", PROGRAM, str(steps)]
    done = subprocess.run(command, env=inherited | added, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_programs_are_loaded_bit_identical_and_bad_entries_compiled_anew(tmp_path):
    cold, _ = call(tmp_path)
    assert cold["folder"] == str(tmp_path / "nest_jax" / "xla")
    assert cold["hits"] == 0 and cold["misses"] > 10
    warm, told = call(tmp_path, steps=10)
    assert warm == {**cold, "hits": cold["misses"], "misses": 0} and told == ""
    steps = list(tmp_path.rglob("jit_step-*-cache"))
    assert len(steps) == 1
    steps[0].write_bytes(steps[0].read_bytes()[:1000])  # its writer was killed
    bad, told = call(tmp_path, steps=77)  # another number of steps is the same program
    assert bad["digest"] == cold["digest"] and bad["hits"] == warm["hits"] - 1
    assert "Error reading persistent compilation cache entry for 'jit_step'" in told


@pytest.fixture
def enabled(monkeypatch, tmp_path):
    """A process like the user's, whose settings of JAX are put back."""
    names = ("jax_enable_compilation_cache", "jax_compilation_cache_dir", *compilation.SETTINGS)
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_folder_that_cannot_be_written_to_costs_a_warning(enabled, caplog):
    (enabled / "nest_jax").write_text("a file")
    assert compilation.keep() is None
    assert getattr(jax.config, "jax_compilation_cache_dir") is None  # noqa: B009
    assert len(caplog.records) == 1 and "compiled programs are not kept" in caplog.text


def test_the_environment_wins(enabled):
    jax.config.update("jax_compilation_cache_dir", str(enabled / "own"))  # as JAX_COMPILATION_CACHE_DIR does
    assert compilation.keep() == enabled / "own"
    jax.config.update("jax_enable_compilation_cache", False)  # as JAX_ENABLE_COMPILATION_CACHE=0
    assert compilation.keep() is None
    assert not list(enabled.iterdir())


def test_what_was_not_read_for_longest_is_deleted(tmp_path):
    for age, name in enumerate(("new", "read", "old")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 - age, 900))
    compilation.trim(tmp_path.rglob("*"), 300)
    assert len(list(tmp_path.iterdir())) == 3
    compilation.trim([*tmp_path.rglob("*"), tmp_path / "gone"], 200)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "read"]
