"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

# Compiled programs are kept between runs and shared with the subprocesses of the tests; it only saves time.
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")


@pytest.fixture(scope="session")
def voc_root() -> Path:
    """The folder that holds VOC2012/, from NEST_JAX_VOC_ROOT."""
    root = os.environ.get("NEST_JAX_VOC_ROOT")
    if not root:
        pytest.skip("NEST_JAX_VOC_ROOT is not set")
    return Path(root)
