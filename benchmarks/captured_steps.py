"""The trainer's own steps of the first incremental task, taken where it would start its loops, with a random batch to run them on."""

import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from nest_jax import base, phases, sharding, train, writers
from nest_jax import config as configs
from nest_jax import data as task_data
from nest_jax import segmenter as seg
from nest_jax.datasets import Dataset
from nest_jax.method import Student

Model = dict[str, Any]


class Captured(NamedTuple):
    """`compiled(carry, frozen, batch) -> (carry, scalars)`, jitted, and its arguments on the device; the carry is donated."""

    compiled: Callable
    carry: Any
    frozen: Any
    batch: Any


def resolved(spec: str, changes: list[str]) -> Any:
    """The config of a spec with KEY=VALUE changes; random weights."""
    config = configs.load(spec)
    configs.override(config, [("backbone.pretrained", "none"), ("evaluate.pictures", "0")])
    configs.override(config, [(key, value) for key, _, value in (item.partition("=") for item in changes)])
    return configs.resolve(config)


def precision(config: Any) -> Any:
    """The context in which the trainer traces its steps."""
    return jax.default_matmul_precision("highest" if config.dtype == "float32" else "default")


def host_batch(config: Any) -> dict[str, np.ndarray]:
    """Random images, labelled with the new classes of task 1 on background, as in a real batch."""
    size, batch_size, rng = config.train.crop_size, config.train.batch_size, np.random.default_rng(0)
    labels = rng.choice([0, *configs.protocol(config).new(1)], size=(batch_size, size, size)).astype(np.uint8)
    return {"image": rng.integers(0, 256, (batch_size, size, size, 3)).astype(np.uint8), "label": labels}


def capture(
    config: Any,
    batch: dict[str, np.ndarray],
    *,
    change: Callable[[seg.Segmenter, Model], Model] = lambda segmenter, model: model,
) -> tuple[dict[str, Captured], Student]:
    """The steps by phase, and the student. No step of training has run; those of other phases have run once, on `batch`.

    With `classifier_init.features=cached` the phase "features" is the forward pass whose results the other phases of NeST run on.

    `change` is applied to the model of task 0, the teacher, and to the student's, whose weights are otherwise the untrained ones.
    """
    protocol, size = configs.protocol(config), config.train.batch_size
    presence = np.ones((size, protocol.raw_classes + 1), bool)
    classes = tuple(protocol.class_names) or tuple(str(c) for c in range(protocol.raw_classes + 1))
    stand_in = Dataset(classes, tuple(str(i) for i in range(size)), presence, lambda index: None)  # type: ignore
    mesh, steps, made = sharding.mesh(), {}, {}

    def capture_phase(context, phase, step, carry, frozen, batches, count):
        placed = sharding.place(carry, mesh)
        compiled = phases.compile_step(step, placed, mesh)
        kept = {**made, "label": batch["label"]} if made and phase in ("statistics", "pretuning") else batch
        frozen, on_devices = sharding.place(frozen, mesh), sharding.global_batch(kept, mesh)
        steps[phase] = Captured(compiled, placed, frozen, on_devices)
        return carry if phase == "training" else compiled(sharding.place(carry, mesh), frozen, on_devices)[0]

    def capture_outputs(context, phase, function, frozen, batches, count, title):
        compiled = jax.jit(lambda carry, frozen, batch: (carry, function(frozen, batch)))
        steps["features"] = Captured(compiled, (), sharding.place(frozen, mesh), sharding.global_batch(batch, mesh))
        made.update(jax.tree.map(sharding.own_rows, compiled((), *steps["features"][2:])[1]))
        return iter([(batch, made)])

    loops, phases.run, phases.outputs = (phases.run, phases.outputs), capture_phase, capture_outputs
    try:
        with precision(config), tempfile.TemporaryDirectory() as workdir, writers.Writer(workdir) as writer:
            data = task_data.Data(config, protocol, protocol, stand_in, stand_in)
            run = train.Run(config, workdir, mesh, writer, seg.build(config), data)
            previous = change(run.segmenter, base.model(config, run.segmenter, data, train.task_key(run, 0)))
            context = phases.Context(workdir, config, mesh, writer, 1, {}, {})
            student, _ = train.prepared_student(run, context, previous)
            student = student._replace(model=change(student.segmenter, student.model))
            train.train_task(run, context, student, previous)
    finally:
        phases.run, phases.outputs = loops
    return steps, student
