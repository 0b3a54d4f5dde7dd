"""A worker process that answers commands: one JSON object a line, in on stdin, out on what was its stdout."""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def serve(commands: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Answers `{"command": NAME, ...arguments}` with what `commands[NAME](**arguments)` returns, until stdin ends.

    What else the process prints goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answer = commands[request.pop("command")](**request)
        print(json.dumps(answer), file=answers, flush=True)


def start(command: Sequence[str], log: Path, **options: Any) -> subprocess.Popen:
    """A worker whose stderr goes to the file `log`."""
    with log.open("w") as errors:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, **options
        )


def ask(worker: subprocess.Popen, log: Path, command: str, **arguments: Any) -> dict[str, Any]:
    """The worker's answer.

    Raises:
        RuntimeError: it ended instead; with the last lines of its `log`.
    """
    assert worker.stdin is not None and worker.stdout is not None
    try:
        print(json.dumps({"command": command, **arguments}), file=worker.stdin, flush=True)
        answer = worker.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        worker.wait()
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise RuntimeError(f"{' '.join(worker.args)} ended with {worker.returncode}:\n{tail}")  # type: ignore
    return json.loads(answer)


def forget_peak() -> None:
    """Gives freed memory back to the system and starts the peak of this process's resident memory anew (Linux)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):
        pass


def peak_resident_bytes() -> int:
    """The most resident memory since `forget_peak`, 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
