import json
import os
import re
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nest_jax import evaluate, export, pictures, predict, restored, sharding
from nest_jax.predict import Picture
from tests import untrained

# What a program does that has JAX and flatbuffers; it fails where any other package of ours is needed.
PROGRAM = """
import sys
import jax, jax.export
import numpy as np

with open(sys.argv[1], "rb") as file:
    model = jax.export.deserialize(bytearray(file.read()))
given = np.load(sys.argv[2])
found = jax.jit(model.call)(given)
labels, probabilities = found if isinstance(found, (tuple, list)) else (found, ())
np.savez(sys.argv[3], labels=labels, probabilities=probabilities)
foreign = [name for name in ("nest_jax", "flax", "orbax", "optax", "PIL", "ml_collections") if name in sys.modules]
assert not foreign, foreign
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained.workdir(tmp_path_factory.mktemp("run"))


def images(count, height, width):
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(height // 4, 1).repeat(width // 4, 2)


def in_a_process_of_its_own(path, given, tmp_path):
    np.save(tmp_path / "given.npy", given)
    files = [str(path), str(tmp_path / "given.npy"), str(tmp_path / "found.npz")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *files], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return np.load(tmp_path / "found.npz")


def test_the_file_gives_the_predictions_in_a_process_without_this_package(run, tmp_path, capsys):
    path = tmp_path / "deep" / "model.stablehlo"
    assert export.main(["--workdir", str(run), "--out", str(path), "--probabilities"]) == 0
    assert "6 classes, input ['batch', 32, 32, 3], for cpu, cuda, tpu" in capsys.readouterr().out
    given = images(3, 32, 32)
    found = in_a_process_of_its_own(path, given, tmp_path)

    model = restored.load(run)
    step = evaluate.make_step(model.segmenter, sharding.mesh())
    batch = {"image": jnp.asarray(given), "label": jnp.zeros(given.shape[:3], jnp.uint8)}
    expected = np.asarray(step(model.model, jnp.zeros(256, jnp.uint8), batch)[1])
    assert found["labels"].dtype == np.uint8 and len(np.unique(expected)) > 2
    assert_array_equal(found["labels"], expected)
    for image, probabilities in zip(given, found["probabilities"], strict=True):
        ((_, logits),) = predict.segment(model, [Picture(0, image)])
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        assert_allclose(probabilities, powers / powers.sum(-1, keepdims=True), atol=1e-5)

    about = json.loads((tmp_path / "deep" / "model.stablehlo.json").read_text())
    assert about["classes"] == list(model.class_names)
    assert about["palette"] == pictures.palette()[:6].tolist()
    assert about["input"] == {"dtype": "uint8", "shape": ["batch", 32, 32, 3], "channels": "RGB", "range": [0, 255]}
    assert about["outputs"] == [
        {"name": "labels", "dtype": "uint8", "shape": ["batch", 32, 32]},
        {"name": "probabilities", "dtype": "float32", "shape": ["batch", 32, 32, 6]},
    ]
    assert about["bytes"] == path.stat().st_size and about["convolutions"] == "written out for CPUs"


def test_size_batch_and_platform_can_be_fixed(run, tmp_path):
    path = tmp_path / "model"
    flags = ["--size", "24x40", "--batch", "2", "--platforms", "cpu"]
    assert export.main(["--workdir", str(run), "--out", str(path), *flags]) == 0
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["input"]["shape"] == [2, 24, 40, 3] and about["platforms"] == ["cpu"] and len(about["outputs"]) == 1
    made = export.jax.export.deserialize(bytearray(path.read_bytes()))
    given = images(2, 24, 40)
    expected = export.function(restored.load(run))(jnp.asarray(given))
    assert_array_equal(np.asarray(made.call(given)), np.asarray(expected))


def test_the_snippet_in_the_docstring_runs(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert export.main(["--workdir", str(run), "--out", "model.stablehlo", "--platforms", "cpu"]) == 0
    capsys.readouterr()
    blocks = re.findall(r"(?:^    .*\n|^\n)+", export.__doc__ or "", re.MULTILINE)
    code = textwrap.dedent(max(blocks, key=len))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == 0, done.stderr
    names = restored.load(run).class_names
    assert done.stdout.startswith("{'") and any(name in done.stdout for name in names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "8"], "at least 16"),
        (["--size", "64x64x64"], "HEIGHTxWIDTH"),
        (["--batch", "0"], "at least 1"),
        (["--platforms", "cpu,gpu"], "unknown: 'gpu'; choices: cpu, cuda"),
        (["--task", "3"], "complete: 0"),
        (["--out", "."], "a directory"),
    ],
)
def test_bad_input_is_one_message(run, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert export.main(["--workdir", str(run), "--out", "model", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not os.listdir(tmp_path)
