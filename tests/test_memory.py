"""Freed memory is kept: a second large allocation touches no new pages."""

import importlib.metadata
import importlib.util
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from ctypes import CDLL, c_size_t, c_void_p, memset
if sys.argv[1] == "keep":
    from nest_jax.memory import keep_freed
    assert keep_freed()
libc = CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = c_void_p, [c_size_t], [c_void_p]
faults = []
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(2**26)
    memset(block, 1, 2**26)
    libc.free(block)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[1])
"""


ACCELERATOR = importlib.util.find_spec("libtpu") or importlib.metadata.entry_points(group="jax_plugins")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
@pytest.mark.skipif(bool(ACCELERATOR), reason="an accelerator's plug-in for JAX is installed")
def test_freed_memory_is_kept():
    def faults(how: str) -> int:
        result = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        return int(result.stdout)

    assert faults("keep") < 100 < faults("leave")
