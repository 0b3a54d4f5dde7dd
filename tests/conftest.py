"""Fixtures that several test files share."""

import os
import tempfile
from pathlib import Path

import jaxtyping
import pytest

# One folder of compiled programs for all workers and all runs that tests start; the user's stays as it is.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compiled = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # golden numbers and bit-identity are the CPU's
# Before anything imports the package: every call in a test checks the shapes and types that signatures state.
jaxtyping.install_import_hook("nest_jax", "beartype.beartype")


@pytest.fixture(scope="session")
def voc_root() -> Path:
    """The folder that holds VOC2012/, from NEST_JAX_VOC_ROOT."""
    root = os.environ.get("NEST_JAX_VOC_ROOT")
    if not root:
        pytest.skip("NEST_JAX_VOC_ROOT is not set")
    return Path(root)
