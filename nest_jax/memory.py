"""Keeping the memory that a training step frees, for the next step."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed() -> bool:
    """Have the C library keep freed memory instead of giving it back to the system; whether it agreed.

    XLA on a CPU frees and takes hundreds of megabytes at every step, and the system clears each page anew, which shows in the time of
    a step of EfficientNet-Lite0. Call it before JAX starts its threads. Only glibc has the switch; elsewhere, and where an accelerator's plug-in
    for JAX is installed, nothing happens.
    """
    accelerator = importlib.util.find_spec("libtpu") or importlib.metadata.entry_points(group="jax_plugins")
    if accelerator or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1))
    agreed = [mallopt(name, value) == 1 for name, value in settings]
    return all(agreed)
