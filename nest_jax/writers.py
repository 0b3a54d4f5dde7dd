"""What a run says while it runs: metrics.jsonl, TensorBoard, a progress bar, warnings. Process 0 speaks, the others are silent."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

import jax
from etils import epath
from tqdm import tqdm

from nest_jax.errors import InputError
from nest_jax.storage import is_remote, json_text, write_text

REMOTE_SECONDS = 60.0  # an object store cannot append: the whole file is written again, at most this often
LINE_SECONDS = 30.0
LINE_SHARE = 0.1

log = logging.getLogger(__name__)
_warned: set[str] = set()


class Writer:
    """Scalars of a run, one JSON object a line in `workdir/metrics.jsonl`, and in TensorBoard if asked.

    A line is {"task", "phase", "step", "time", name: value, ...}; "time" is in seconds since 1970; a value that is not finite
    is null. TensorBoard has one run per task and phase, under `workdir/tensorboard/task-01/training`.

    Raises:
        InputError: TensorBoard is asked for and its writer is not installed, or the disk is full.
    """

    def __init__(self, workdir: epath.PathLike, tensorboard: bool = False) -> None:
        self._speaks = jax.process_index() == 0
        self._workdir = epath.Path(workdir)
        self._path = self._workdir / "metrics.jsonl"
        self._remote = is_remote(workdir)
        self._boards: dict[tuple[int, str], Any] = {}
        self._purge: dict[tuple[int, str], int] = {}
        self._board_type = _summary_writer() if tensorboard else None
        self._lines: list[str] = []  # of a remote file: all of them
        self._written = time.monotonic()
        if self._speaks:
            self._workdir.mkdir(parents=True, exist_ok=True)
            if self._remote and self._path.exists():
                self._lines = self._path.read_text().splitlines()
            _mend_last_line(self._path, self._remote)

    def write(self, task: int, phase: str, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends one line. `scalars`: numbers, or 0-d arrays, which are fetched from the device now."""
        if not self._speaks:
            return
        line = json_text({"task": task, "phase": phase, "step": step, "time": round(time.time(), 3), **scalars})
        if self._remote:
            self._lines.append(line)
            if time.monotonic() - self._written > REMOTE_SECONDS:
                self.flush()
        else:
            try:
                with self._path.open("a") as file:
                    file.write(line + "\n")
            except OSError as error:
                raise InputError(f"{self._path}: cannot be written: {error.strerror or error}") from error
        if self._board_type is not None:
            board = self._board(task, phase)
            for name, value in json.loads(line).items():
                if name not in ("task", "phase", "step", "time") and isinstance(value, (int, float)):
                    board.add_scalar(name, value, step)

    def rewind(self, task: int, phase: str, step: int) -> None:
        """Drops what was logged after a resume point, which is about to be logged again.

        Dropped: later tasks; this phase of this task from `step` on; and of this task's other phases whatever stands in the
        file behind the first line dropped (or, if there is none, behind this phase's last line): it was written later.

        Args:
            step: the first step that will be logged again.
        """
        self._purge[(task, phase)] = step
        if not self._speaks or not (self._remote or self._path.exists()):
            return
        lines = self._lines if self._remote else self._path.read_text().splitlines()
        kept = _lines_before(lines, task, phase, step)
        if len(kept) == len(lines):
            return
        if self._remote:
            self._lines = kept
        write_text(self._path, "".join(line + "\n" for line in kept))

    def flush(self) -> None:
        """Makes everything visible to a reader."""
        if self._speaks and self._remote:
            write_text(self._path, "".join(line + "\n" for line in self._lines))
            self._written = time.monotonic()
        for board in self._boards.values():
            board.flush()

    def close(self) -> None:
        self.flush()
        for board in self._boards.values():
            board.close()
        self._boards.clear()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _board(self, task: int, phase: str) -> Any:
        key = (task, phase)
        if key not in self._boards:
            assert self._board_type is not None
            directory = self._workdir / "tensorboard" / f"task-{task:02d}" / phase
            self._boards[key] = self._board_type(os.fspath(directory), purge_step=self._purge.get(key))
        return self._boards[key]


class Progress:
    """Counts steps, with the loss and the images per second: a bar on a terminal, elsewhere a line every 30 s or 10 %.

    Made by `progress`. Images per second are those since the bar was made, so a resumed run does not count the steps it skipped.
    """

    def __init__(
        self, total: int, initial: int, description: str, enabled: bool, stream: TextIO | io.TextIOBase | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._total, self._initial, self._step, self._description = total, initial, initial, description
        self._images = 0
        self._loss: float | None = None
        self._start = self._line_time = time.monotonic()
        self._line_step = initial
        self._lines = enabled and jax.process_index() == 0
        self._bar = None
        if self._lines and self._stream.isatty():
            self._lines = False
            self._bar = tqdm(
                total=total, initial=initial, desc=description, unit="step", dynamic_ncols=True, file=self._stream
            )

    def update(self, steps: int = 1, *, loss: float | None = None, images: int = 0) -> None:
        """`steps` more are done, with `images` images in all of them.

        `loss`: a Python number that the caller has already fetched; None keeps the last one (a device array would make every
        step wait for the device).
        """
        self._step += steps
        self._images += images
        self._loss = self._loss if loss is None else float(loss)
        if self._bar is not None:
            self._bar.set_postfix_str(self._numbers(), refresh=False)
            self._bar.update(steps)
        elif self._lines:
            now = time.monotonic()
            far = self._step - self._line_step >= max(1, self._total * LINE_SHARE)
            # Many short phases would otherwise print ten lines each within a second.
            late, soon = now - self._line_time >= LINE_SECONDS, now - self._line_time >= 1.0
            if late or (far and soon) or (self._step >= self._total and self._line_step < self._total):
                self._line_time, self._line_step = now, self._step
                share = f"{self._step}/{self._total} steps ({self._step / max(1, self._total):.0%})"
                left = _clock((now - self._start) / max(1, self._step - self._initial) * (self._total - self._step))
                parts = [f"{self._description}: {share}", self._numbers(), f"{left} left"]
                print(", ".join(part for part in parts if part), file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _numbers(self) -> str:
        rate = self._images / max(1e-9, time.monotonic() - self._start)
        loss = "" if self._loss is None else f"loss {self._loss:.4f}"
        return ", ".join(part for part in (loss, f"{rate:.1f} images/s" if self._images else "") if part)


def progress(total: int, initial: int, description: str, enabled: bool = True) -> Progress:
    """A context manager whose `update(steps, loss=..., images=...)` shows how far a phase is; silent unless process 0.

    Args:
        total: steps of the phase; initial: steps done before a resume.
        description: such as "task 1: training".
        enabled: config.log.progress.
    """
    return Progress(total, initial, description, enabled)


def say(text: str) -> None:
    """Prints a text on standard output, on process 0 only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def warn_once(message: str) -> None:
    """Logs a warning, once in the life of this process, and on process 0 only."""
    if message not in _warned:
        _warned.add(message)
        if jax.process_index() == 0:
            log.warning(message)


def _lines_before(lines: list[str], task: int, phase: str, step: int) -> list[str]:
    keys = [_key(line) for line in lines]
    mine = [index for index, key in enumerate(keys) if key and key[:2] == (task, phase)]
    dropped = [index for index in mine if (keys[index] or (0, "", 0))[2] >= step]
    later = dropped[0] if dropped else (mine[-1] + 1 if mine else len(lines))

    def stays(index: int) -> bool:
        key = keys[index]
        if key is None or key[0] > task:
            return False
        if key[0] < task:
            return True
        return key[2] < step if key[1] == phase else index < later

    return [line for index, line in enumerate(lines) if stays(index)]


def _key(line: str) -> tuple[int, str, int] | None:
    """Task, phase and step of a line; None for one that a kill cut off."""
    try:
        record = json.loads(line)
        return int(record["task"]), str(record["phase"]), int(record["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _mend_last_line(path: epath.Path, remote: bool) -> None:
    """A run killed while it wrote leaves half a line; the next one must not be glued to it."""
    if remote or not path.exists() or not path.stat().length:
        return
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        whole = file.read(1) == b"\n"
    if not whole:
        text = path.read_text()
        write_text(path, text[: text.rfind("\n") + 1])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _summary_writer() -> Callable[..., Any]:
    try:
        return importlib.import_module("tensorboardX").SummaryWriter
    except ImportError:
        raise InputError(
            "log.tensorboard: its writer (tensorboardX) is not installed; run: pip install 'nest_jax[tensorboard]'"
        ) from None
