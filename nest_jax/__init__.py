"""Class-incremental semantic segmentation with JAX: NeST and the methods it prepares classifiers for."""

import time
from typing import TYPE_CHECKING, Any

STARTED = time.monotonic()  # of a command line, as nearly as it can know

if TYPE_CHECKING:
    from nest_jax.train import run as run

__version__ = "0.1.0"
__all__ = ["__version__", "run"]


def __getattr__(name: str) -> Any:
    """`nest_jax.run` brings JAX and the network with it, so it is imported when first asked for."""
    if name == "run":
        from nest_jax.train import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
