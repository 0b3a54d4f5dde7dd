"""SIGTERM and SIGINT as a wish: the run finishes its step, saves and ends, so that nothing is lost."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_received: list[int] = []


class Stopped(Exception):
    """The run was asked to stop and has saved; the message says where it was."""


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """While it holds, the first signal is noted and a second one interrupts at once (KeyboardInterrupt)."""

    def note(number: int, frame: FrameType | None) -> None:
        if _received:
            raise KeyboardInterrupt
        _received.append(number)
        os.write(
            2, b"stopping after the step in hand; the same again interrupts at once\n"
        )  # print is not safe in a handler

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield
    finally:
        _received.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def requested() -> bool:
    """Whether this process was asked to stop."""
    return bool(_received)


def agreed(*wishes: bool, meeting: bool) -> tuple[bool, ...]:
    """For every wish, whether any process has it, in which case all must follow.

    Processes exchange them only where `meeting` holds, which must be so for all of them at once (it waits for the slowest); elsewhere none holds.
    """
    import jax  # late: the command line answers a bad flag before it loads JAX
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return wishes
    if not meeting:
        return (False,) * len(wishes)
    return tuple(multihost_utils.process_allgather(np.array(wishes)).any(axis=0).tolist())
