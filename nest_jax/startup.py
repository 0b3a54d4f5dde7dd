"""Seconds from the command to the first step, and what JAX compiled or loaded on the way."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"  # loading a kept program counts as well
LOADED = "/jax/compilation_cache/cache_hits"

log = logging.getLogger(__name__)


@contextlib.contextmanager
def watched(started: float, measured: dict[str, Any]) -> Iterator[Callable[[Any], None]]:
    """A function to be called with what every step returned; the first time, it waits for it, logs the seconds and fills `measured`.

    Args:
        started: when the command was given, of `time.monotonic`.
        measured: gets "first_step" and "compiling", seconds; "programs", how many were needed; "loaded", how many of them were
            compiled by an earlier run (`nest_jax.compilation`).
    """
    compiling: list[float] = []
    loaded: list[str] = []

    def duration(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED:
            compiling.append(duration_secs)

    def happened(event: str, **_: Any) -> None:
        if event == LOADED:
            loaded.append(event)

    def first_step(result: Any) -> None:
        if measured:
            return
        jax.block_until_ready(result)
        measured["first_step"] = round(time.monotonic() - started, 2)
        measured["compiling"] = round(sum(compiling), 2)
        measured.update(programs=len(compiling), loaded=len(loaded))
        log.info(
            "first step after %(first_step).1f s, %(compiling).1f s of it compiling: %(programs)d programs, "
            "%(loaded)d of them kept by an earlier run",
            measured,
        )

    jax.monitoring.register_event_duration_secs_listener(duration)
    jax.monitoring.register_event_listener(happened)
    try:
        yield first_step
    finally:
        jax.monitoring.unregister_event_duration_listener(duration)
        jax.monitoring.unregister_event_listener(happened)
