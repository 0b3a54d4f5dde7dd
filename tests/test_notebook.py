"""The notebook runs on a checkpoint that is trained here, and the committed pair is one notebook with its outputs."""

import runpy
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

from nest_jax import checkpoints, rundir, train
from tests import tiny

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "inspect_checkpoint.ipynb"


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def pictures(notebook):
    return [output for output in outputs(notebook) if "image/png" in output.get("data", {})]


def test_notebook_runs_on_a_trained_checkpoint(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    train.run(tiny.config("method=mib,classifier_init=nest"), workdir)
    monkeypatch.setenv("NEST_JAX_WORKDIR", str(workdir))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = jupytext.read(NOTEBOOK.with_suffix(".py"))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()  # raises on an error
    assert len(pictures(notebook)) == 9
    text = "".join(output.text for output in outputs(notebook) if output.output_type == "stream")
    assert "initialisation nest" in text and "mean over tasks" in text

    # The same checkpoint as of another initialisation, and the notebook as a script: nothing to show of NeST, and no error.
    directory = rundir.task_directory(workdir, 1)
    tree, metadata = checkpoints.restore(directory)
    checkpoints.save(directory, {"model": tree["model"], "details": {}}, metadata)
    found = runpy.run_path(str(NOTEBOOK.with_suffix(".py")))
    assert found["transforms"] == {} and "shown" not in found


def test_the_pair_is_one_notebook():
    committed, paired = nbformat.read(NOTEBOOK, 4), jupytext.read(NOTEBOOK.with_suffix(".py"))
    assert [(c.cell_type, c.source) for c in committed.cells] == [(c.cell_type, c.source) for c in paired.cells]


def test_the_committed_notebook_has_its_outputs():
    committed = nbformat.read(NOTEBOOK, 4)
    assert len(pictures(committed)) == 9
    assert not [output for output in outputs(committed) if output.output_type == "error"]
    assert NOTEBOOK.stat().st_size < 400_000
