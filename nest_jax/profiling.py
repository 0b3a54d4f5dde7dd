"""A recording of some steps of a phase, as a file for https://ui.perfetto.dev."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath

from nest_jax import storage, writers

VIEWER = "https://ui.perfetto.dev"


@contextlib.contextmanager
def recording(name: epath.PathLike, steps: int) -> Iterator[Callable[[int, Any], None]]:
    """A function to be called after every step with its number, from 1, and what it returned; records `steps` of them from the second one on.

    The first step is left out, because it is compiled. What is recorded is waited for, so that the recording is whole and nothing of other steps
    is in it. `NAME.json.gz` is the file for Perfetto, `NAME.xplane.pb` the same for TensorBoard's profiler. Process 0 alone records.

    Args:
        name: path of the files without their endings; may be on an object store.
        steps: 0 for none.
    """
    path = epath.Path(name)
    with contextlib.ExitStack() as stack:

        def after(number: int, result: Any) -> None:
            if jax.process_index() or number not in (1, 1 + steps) or not steps:
                return
            jax.block_until_ready(result)
            if number == 1:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                stack.callback(_keep, Path(folder), path)
                options = jax.profiler.ProfileOptions()
                options.python_tracer_level = 0  # a hundred thousand calls of Python functions hide the step
                stack.enter_context(jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options))
            else:
                stack.close()

        yield after


def _keep(folder: Path, path: epath.Path) -> None:
    with storage.plain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for pattern, ending in (("perfetto_trace.json.gz", ".json.gz"), ("*.xplane.pb", ".xplane.pb")):
            (found,) = folder.rglob(pattern)
            path.with_name(path.name + ending).write_bytes(found.read_bytes())
    writers.say(f"profile: open {path}.json.gz at {VIEWER}")
