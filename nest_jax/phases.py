"""The loop that every phase of a task runs in: jitted, sharded, shown, checked for non-finite losses, and resumable after a kill."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nest_jax import checkpoints, interruption, profiling, rundir, sharding, writers
from nest_jax.errors import TrainingError

PHASES = ("statistics", "pretuning", "preparation", "training")  # in the order in which they run within a task


class Context(NamedTuple):
    """Where a task runs, the seconds and steps that its phases have taken so far; how many steps of each are recorded, and what the first one tells."""

    workdir: Any
    config: Any
    mesh: Mesh
    writer: writers.Writer
    task: int
    seconds: dict[str, float]
    steps: dict[str, int]
    profile: int = 0
    first_step: Callable[[Any], None] = lambda result: None  # of `startup.watched`


@jax.jit
def _all_finite(tree) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in leaves]))


def run(
    context: Context,
    phase: str,
    step: Callable,
    carry: Any,
    frozen: Any,
    batches: Callable[[int], Iterable[dict[str, np.ndarray]]],
    steps: int,
) -> Any:
    """`carry` after `steps` calls of `step(carry, frozen, batch) -> (carry, scalars)`, compiled once.

    Continues from the newest rolling checkpoint of the task. If that was made in a later phase, this one is over: `carry` comes back as it
    is, and what is derived from it is replaced when the later phase restores its own.

    Args:
        carry: donated; `frozen`: everything else on the device (teacher, label table); both are copied to all devices here.
        batches: first step -> this process's batches from that step on.

    Raises:
        TrainingError: a scalar is not finite; names every scalar, the step and the last good checkpoint.
        Stopped: a signal asked for it; the state after the step in hand is saved.
    """
    config, task = context.config, context.task
    start = 0
    carry = sharding.place(carry, context.mesh)
    if newest := rundir.latest_rolling(context.workdir, task):
        saved = checkpoints.metadata(newest)
        if PHASES.index(saved["phase"]) > PHASES.index(phase):
            return carry
        if saved["phase"] == phase:
            carry, _ = checkpoints.restore(newest, carry)
            start = saved["iteration"]
            context.seconds.update(saved["seconds"])
            context.steps.update(saved["steps"])
    context.writer.rewind(task, phase, start + 1)
    frozen = sharding.place(frozen, context.mesh)
    compiled = compile_step(step, carry, context.mesh)

    clock = last_save = time.monotonic()
    spent = context.seconds.get(phase, 0.0)
    waiting: list[tuple[int, dict[str, jax.Array]]] = []
    recording = profiling.recording(f"{context.workdir}/profile/task-{task:02d}-{phase}", context.profile)
    bar = writers.progress(steps, start, f"task {task} {phase}", enabled=config.log.progress)
    with bar, recording as record:
        for done, batch in enumerate(batches(start), start + 1):
            placed = sharding.global_batch(batch, context.mesh)
            with jax.profiler.StepTraceAnnotation(phase, step_num=done):
                carry, scalars = compiled(carry, frozen, placed)
            context.first_step(carry)
            record(done - start, carry)
            waiting.append((done, scalars))
            # Processes must agree, and their clocks do not: they meet where losses are fetched.
            meeting = done % config.log.every_steps == 0 or done == steps
            by_time = 0 < config.checkpoint.every_seconds <= time.monotonic() - last_save
            stop, by_time = interruption.agreed(interruption.requested(), by_time, meeting=meeting)
            by_steps = config.checkpoint.every_steps > 0 and done % config.checkpoint.every_steps == 0
            due = (by_time or by_steps) and done < steps
            # The end of training is saved, so that a kill during the evaluation costs the evaluation alone.
            due |= stop or (done == steps and phase == PHASES[-1])
            loss = None
            if due or done == steps or done % config.log.every_steps == 0:
                loss = _log(context, phase, waiting)  # the only place that waits for the device
            bar.update(1, loss=loss, images=len(next(iter(batch.values()))) * jax.process_count())
            if due or done == steps:
                _check_state(context, phase, done, carry)
                context.seconds[phase] = spent + time.monotonic() - clock
                context.steps[phase] = done
            if due:
                extra = {"seconds": context.seconds, "steps": context.steps}
                rundir.save_rolling(context.workdir, task, phase, done, carry, extra, keep=config.checkpoint.keep)
                last_save = time.monotonic()
            if stop:
                raise interruption.Stopped(f"task {task}, {phase}, step {done} of {steps}")
    return carry


def outputs(
    context: Context,
    phase: str,
    function: Callable,
    frozen: Any,
    batches: Iterable[dict[str, np.ndarray]],
    steps: int,
    title: str,
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """`(batch, function(frozen, batch))` for this process's rows of all batches; the seconds count for `phase`.

    Raises:
        Stopped: a signal asked for it.
    """
    frozen = sharding.place(frozen, context.mesh)
    compiled = jax.jit(function, out_shardings=sharding.split(context.mesh))
    clock = time.monotonic()
    before = None  # the device works on a batch while the one before is fetched
    with writers.progress(steps, 0, f"task {context.task} {title}", enabled=context.config.log.progress) as bar:
        for done, batch in enumerate(batches, start=1):
            made = compiled(frozen, sharding.global_batch(batch, context.mesh))
            if before:
                yield before[0], jax.tree.map(sharding.own_rows, before[1])
            before = batch, made
            if interruption.agreed(interruption.requested(), meeting=done % context.config.log.every_steps == 0)[0]:
                raise interruption.Stopped(f"task {context.task}, {title}, batch {done} of {steps}")
            bar.update(1, images=len(next(iter(batch.values()))) * jax.process_count())
    if before:
        yield before[0], jax.tree.map(sharding.own_rows, before[1])
    context.seconds[phase] = context.seconds.get(phase, 0.0) + time.monotonic() - clock


def compile_step(step: Callable, carry: Any, mesh: Mesh) -> Callable:
    """`step` jitted: its carry is donated and comes back where it lay, its scalars go to every device."""
    kept = jax.tree.map(lambda leaf: leaf.sharding, carry)
    return jax.jit(step, donate_argnums=0, out_shardings=(kept, sharding.replicated(mesh)))


def _log(context: Context, phase: str, waiting: list) -> float | None:
    """Fetches the scalars of all steps since the last call, checks and logs them (mean over these steps); returns the total loss."""
    fetched = [(done, {k: float(v) for k, v in scalars.items()}) for done, scalars in jax.device_get(waiting)]
    waiting.clear()
    for done, scalars in fetched:
        if not all(np.isfinite(value) for value in scalars.values()):
            terms = ", ".join(f"{name}={value}" for name, value in scalars.items())
            raise TrainingError(
                f"task {context.task}, {phase}, step {done}: not finite: {terms}. {_last_good(context, phase)}"
            )
    if not fetched or not fetched[0][1]:
        return None
    means = {name: float(np.mean([scalars[name] for _, scalars in fetched])) for name in fetched[0][1]}
    context.writer.write(context.task, phase, fetched[-1][0], means)
    return means.get("loss", next(iter(means.values())))


def _check_state(context: Context, phase: str, done: int, carry: Any) -> None:
    if not bool(_all_finite(carry)):
        raise TrainingError(
            f"task {context.task}, {phase}, step {done}: the losses are finite but the update is not. {_last_good(context, phase)}"
        )


def _last_good(context: Context, phase: str) -> str:
    kept = rundir.latest_rolling(context.workdir, context.task)
    if kept is None:
        tasks = rundir.completed_tasks(context.workdir)
        kept = rundir.task_directory(context.workdir, tasks[-1]) if tasks else None
    key = "classifier_init" if phase == "pretuning" else "train"
    hint = f"a lower --config.{key}.learning_rate often helps, in another --workdir"
    if context.task:
        hint += f" that shares task 0: --config.init_from={context.workdir}"
    return f"Last good checkpoint: {kept or 'none yet'}; {hint}."
