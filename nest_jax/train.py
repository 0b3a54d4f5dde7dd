"""The training story, top to bottom: the tasks in order; for each one prepare the new classifier, train, evaluate, save."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nest_jax import (
    base,
    checkpoints,
    collected,
    estimate,
    evaluate,
    interruption,
    optim,
    phases,
    pictures,
    plugins,
    results,
    rundir,
    sharding,
    state,
    step,
    storage,
    tasks,
    validation,
    writers,
)
from nest_jax import config as configs
from nest_jax import data as task_data
from nest_jax import segmenter as seg
from nest_jax.data import Data
from nest_jax.errors import InputError
from nest_jax.initialisation import Job
from nest_jax.method import Method, Student
from nest_jax.startup import watched

log = logging.getLogger(__name__)

# {"network": {"body", "head"}, "classifier": {"kernel", "bias"}, "batch_stats": {"body", "head"}}
Model = dict[str, Any]


class Run(NamedTuple):
    """What all tasks of a run share."""

    config: Any
    workdir: Any
    mesh: Any
    writer: writers.Writer
    segmenter: seg.Segmenter
    data: Data
    profile: Mapping[int, int] = {}  # task -> steps of every phase to record
    first_step: Callable[[Any], None] = lambda result: None
    startup: dict[str, Any] = {}  # what the first step told, once it is made


def run(config: Any, workdir: Any, *, profile: int = 0, started: float | None = None) -> dict[str, Any]:
    """Trains all tasks of a config and returns what `workdir/results.json` holds.

    A run that was interrupted continues: call it again with the same workdir.

    Args:
        config: of `nest_jax.config.load("configs/voc_15_1.py:method=mib")`, perhaps changed.
        workdir: local path or gs://...
        profile: so many steps of each phase of the first task that is learnt are recorded under `workdir/profile`.
        started: when the command was given, of `time.monotonic`; default: now.

    Raises:
        InputError: config, data, weights or workdir are not usable; nothing has been overwritten.
        TrainingError: a loss became non-finite, or a data worker died.
        Stopped: a signal asked for it (only where `interruption.listening`); the same call continues.
    """
    started = time.monotonic() if started is None else started
    validation.validate(config)
    config = configs.resolve(config)
    workdir = storage.located(workdir)
    precision = "highest" if config.dtype == "float32" else "default"  # float32 means float32 on accelerators too
    with rundir.lock(workdir), jax.default_matmul_precision(precision), contextlib.ExitStack() as stack:
        storage.on_first_process(lambda: configs.claim(config, workdir, write=False))  # refused if another config's
        writer = stack.enter_context(writers.Writer(workdir, config.log.tensorboard))
        reported = configs.protocol(config)
        joined = getattr(plugins.load("methods", config.method.name), "JOINS_TASKS", False)
        learnt = dataclasses.replace(reported, tasks=(sum(reported.tasks, ()),)) if joined else reported
        data = task_data.load(config, learnt, reported)
        writers.say(tasks.describe(learnt, presence=None if config.extend_from else data.train.presence))
        if config.extend_from:
            writers.say(f"task 0 is {config.extend_from}, taken over as it is")
        first = max(len(rundir.completed_tasks(workdir)), int(bool(config.init_from or config.extend_from)))
        startup: dict[str, Any] = {}
        first_step = stack.enter_context(watched(started, startup))
        mesh, segmenter = sharding.mesh(config.sharding.fsdp), seg.build(config)
        shared = Run(config, workdir, mesh, writer, segmenter, data, {first: profile}, first_step, startup)
        model = {} if continues(workdir) else base.model(config, shared.segmenter, data, task_key(shared, 0))
        # Data, weights and an earlier run's base model are there: from now on the workdir is this config's.
        storage.on_first_process(lambda: configs.claim(config, workdir))
        storage.on_first_process(lambda: task_data.claim(data, workdir))
        if config.log.progress and first < len(learnt) and jax.process_index() == 0:
            images = [image_counts(data, task) for task in range(first, len(learnt))]
            writers.say(estimate.told(config, learnt, first, images))
        outcome = results.new(config.name, config, len(reported.seen(0)))
        for task in range(len(learnt)):
            if interruption.agreed(interruption.requested(), meeting=True)[0]:
                raise interruption.Stopped(f"before task {task}")
            model, report = run_task(shared, task, model)
            outcome["tasks"].append(report)
            storage.on_first_process(lambda: results.write(workdir, outcome))
            writers.say(f"\n{results.table(outcome)}")
        sheet = pictures.sheet(workdir)
        writers.say(f"results: {workdir}/results.json, results.csv" + (f"; pictures: {sheet}" if sheet else ""))
        return outcome if jax.process_index() else results.read(workdir)


def image_counts(data: Data, task: int) -> estimate.Images:
    """Images that a task trains on and is evaluated on."""
    val = tasks.test_indices(data.val.presence, data.protocol, task)
    return estimate.Images(len(task_data.training_images(data, task)), len(val))


def continues(workdir: Any) -> bool:
    """Whether task 0 is complete.

    Raises:
        InputError: a later task is complete and an earlier one is not, from which it was learnt.
    """
    complete = rundir.completed_tasks(workdir)
    if missing := set(range(len(complete))) - set(complete):
        raise InputError(
            f"workdir {workdir}: task {max(complete)} is complete but task {min(missing)}, from which it was learnt, is missing; "
            "put its checkpoint back, or start again in another --workdir"
        )
    return bool(complete)


def run_task(run: Run, task: int, previous: Model) -> tuple[Model, dict[str, Any]]:
    """The model after `task` and the task's report: restored where the task is complete, else learnt from `previous`.

    `previous` is the model after the task before; for task 0 the untrained one, or an earlier run's, which is taken as it is.
    """
    directory = rundir.task_directory(run.workdir, task)
    if checkpoints.exists(directory):
        tree, saved = checkpoints.restore(directory)
        log.info("task %d is complete: %s", task, directory)
        rundir.drop_rolling(run.workdir, task)  # a kill may have come between the save and this
        return tree["model"], saved["report"]
    context = phases.Context(
        run.workdir, run.config, run.mesh, run.writer, task, {}, {}, run.profile.get(task, 0), run.first_step
    )
    started_before = bool(run.startup)
    if task:
        student, details = prepared_student(run, context, previous)
        model, found = train_task(run, context, student, teacher=previous)
        details |= {"method": found} if found is not None else {}
    elif run.config.init_from or run.config.extend_from:
        model, details = previous, {}
    else:
        (model, _), details = train_task(run, context, Student(run.segmenter, previous)), {}

    started = time.monotonic()
    confusion = evaluate.run(run.data, run.segmenter, run.mesh, task, model, run.workdir)
    protocol = run.data.protocol
    report = results.task_entry(
        task,
        run.data.class_names(protocol.new(task)),
        run.data.class_names(protocol.seen(task)),
        confusion,
        num_base=len(run.data.reported.seen(0)),
        seconds={**context.seconds, "evaluation": time.monotonic() - started},
        steps=context.steps,
        images=image_counts(run.data, task)._asdict(),
        peak_memory_bytes=results.peak_memory_bytes(),
    )
    if run.config.extend_from:  # the data need not show what the model knew before
        report["metrics"] |= results.of_those_measured(report["per_class"], len(run.data.reported.seen(0)))
    if run.startup and not started_before:
        report["startup"] = dict(run.startup)
    metadata = {"task": task, "classes": run.data.class_names(protocol.seen(task)), "config": run.config}
    checkpoints.save(directory, {"model": model, "details": details}, {**metadata, "report": report})
    rundir.drop_rolling(run.workdir, task)
    return model, report


def prepared_student(run: Run, context: phases.Context, previous: Model) -> tuple[Student, dict[str, Any]]:
    """The student with classifiers of the new classes, and what their initialisation leaves for inspection. Made once, kept on disk."""
    task, method = context.task, plugins.load("methods", run.config.method.name)
    student = Student(run.segmenter, previous)
    if hasattr(method, "student"):
        student = method.student(run.config.method, run.segmenter, previous)
    directory = rundir.start_directory(run.workdir, task)
    if checkpoints.exists(directory):
        tree, saved = checkpoints.restore(directory)
        context.seconds.update(saved["seconds"])
        context.steps.update(saved["steps"])
        return student._replace(model=tree["model"]), tree.get("details", {})
    newest = rundir.latest_rolling(run.workdir, task)
    if newest and checkpoints.metadata(newest)["phase"] in ("preparation", "training"):
        rundir.drop_rolling(run.workdir, task)  # it continues from a start that is gone: this one may be another
    plugin = plugins.load("classifier_init", run.config.classifier_init.name)
    job = Job(
        settings=run.config.classifier_init,
        key=task_key(run, task),
        segmenter=student.segmenter,
        model=jax.tree.map(jnp.asarray, student.model),  # NumPy where it was restored
        num_new=len(run.data.protocol.new(task)),
        batches=task_data.preparation(run.data, task),
        table=jnp.asarray(tasks.train_table(run.data.protocol, task)),
        run=partial(phases.run, context),
        collect=partial(collected.batches, context, run.data),
        block_rows=run.config.loss.block_rows,
    )
    made = plugin.initialise(job)
    names = run.data.class_names(run.data.protocol.new(task))
    for line in plugin.warnings(made.details, names) if hasattr(plugin, "warnings") else ():
        writers.warn_once(f"task {task}: {line}")
    model = {"network": student.model["network"], "classifier": made.classifier, "batch_stats": made.batch_stats}
    saved = {"seconds": context.seconds, "steps": context.steps}
    checkpoints.save(directory, {"model": model, "details": made.details}, saved)
    return student._replace(model=model), made.details


def train_task(run: Run, context: phases.Context, student: Student, teacher: Model | None = None) -> tuple[Model, Any]:
    """The model after the task's epochs, and what the method's pass over the data found, or None.

    The first task is plain cross entropy, whatever the method.
    """
    config, data, task = run.config.train, run.data, context.task
    later = min(task, 1)  # epochs and learning rate are pairs: task 0, later tasks
    num_old, num_new = len(data.protocol.old(task)), len(data.protocol.new(task))
    plugin = plugins.load("methods", run.config.method.name if task else "finetune")
    method = plugin.build(run.config.method, num_old=num_old, num_new=num_new)
    frozen = {
        "teacher": teacher if method.teacher else None,
        "table": tasks.train_table(data.protocol, task),
        "key": jax.random.key_data(task_key(run, task)),
    }
    prepared = method_pass(run, context, method, frozen, num_old) if method.preparation else None
    steps = task_data.steps(data, task, config.epochs[later])
    optimiser = optim.sgd(
        optim.poly(config.learning_rate[later], steps, config.poly_power),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
    )
    fixed = num_old if config.freeze_old_classifiers and task else 0
    if fixed or student.trainable is not True:
        trains = state.trainable(student.model, network=student.trainable, frozen_classes=fixed)
        optimiser = optim.freeze(optimiser, trains)
    train_step = step.make(
        student.segmenter,
        method,
        optimiser,
        accumulation=config.gradient_accumulation,
        block_rows=run.config.loss.block_rows,
        gather=partial(sharding.gathered, mesh=run.mesh),
        trainable=student.trainable,
    )
    batches = partial(task_data.augmented, data, task, "training", stop=steps)
    start = state.create(student.model, optimiser, prepared)
    final = phases.run(context, "training", train_step, start, frozen, batches, steps)
    return {**final.params, "batch_stats": final.batch_stats}, final.prepared


def method_pass(run: Run, context: phases.Context, method: Method, frozen: Any, num_old: int) -> Any:
    """What the method's pass of the teacher over the task's images finds."""
    assert method.preparation is not None
    data, task = run.data, context.task
    pass_step = step.make_preparation(run.segmenter, method, block_rows=run.config.loss.block_rows)
    batches = partial(task_data.one_pass, data, task, "preparation")
    start, steps = step.no_sums(method, num_old), task_data.pass_steps(data, task)
    sums = phases.run(context, "preparation", pass_step, start, frozen, batches, steps)
    return method.preparation.finish(sums)


def task_key(run: Run, task: int) -> jax.Array:
    """Randomness of a task's initialisation and of stochastic layers."""
    return jax.random.fold_in(jax.random.key(run.config.seed), task)
