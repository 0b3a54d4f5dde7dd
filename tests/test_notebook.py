"""The notebook runs on a checkpoint that is trained here, and the committed pair is one notebook with its outputs."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from nest_jax import train
from tests import tiny

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "inspect_checkpoint.ipynb"


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def pictures(notebook):
    return [output for output in outputs(notebook) if "image/png" in output.get("data", {})]


@pytest.mark.parametrize("initialisation", ["nest", "random"])
def test_notebook_runs_on_a_trained_checkpoint(tmp_path, monkeypatch, initialisation):
    train.run(tiny.config(f"method=mib,classifier_init={initialisation}"), tmp_path / "run")
    monkeypatch.setenv("NEST_JAX_WORKDIR", str(tmp_path / "run"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = jupytext.read(NOTEBOOK.with_suffix(".py"))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()  # raises on an error
    assert len(pictures(notebook)) == (9 if initialisation == "nest" else 5)
    text = "".join(output.text for output in outputs(notebook) if output.output_type == "stream")
    assert f"initialisation {initialisation}" in text and "mean over tasks" in text


def test_the_pair_is_one_notebook():
    committed, paired = nbformat.read(NOTEBOOK, 4), jupytext.read(NOTEBOOK.with_suffix(".py"))
    assert [(c.cell_type, c.source) for c in committed.cells] == [(c.cell_type, c.source) for c in paired.cells]


def test_the_committed_notebook_has_its_outputs():
    committed = nbformat.read(NOTEBOOK, 4)
    assert len(pictures(committed)) == 9
    assert not [output for output in outputs(committed) if output.output_type == "error"]
    assert NOTEBOOK.stat().st_size < 400_000
