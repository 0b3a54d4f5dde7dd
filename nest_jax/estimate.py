"""What a run will take, said before it starts: device memory of its dearest step and time, without compiling a step.

Memory is what is there (parameters, momentum, running statistics, teacher, batch) and what the backward pass needs of the forward pass, every
such array once, beside BLOCK_COPIES of a block's logits. XLA's figure for the compiled step on a CPU (arguments + temporaries, float32) was within
13 % of it for ResNet-50, ResNet-101 and Swin-B with MiB, PLOP and RCIL, and 35 % below it for EfficientNet-Lite0, whose activations XLA computes
again. In bfloat16 a CPU keeps float32 copies as well, twice as much. No accelerator has been compared.

Time is floating-point operations / (those a second in a matrix product x EFFICIENCY), the share of it that whole steps reached on two CPU
cores: 0.3 to 0.6 for ResNets and Swin-B, 0.2 to 0.4 for EfficientNet-Lite0. A training step counts as three forward passes, and one more with a
teacher; XLA's count of the whole step says the same to 1 %. It is a rough figure: without compilation, and input is not waited for.
"""

import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nest_jax import blockwise, loader, plugins
from nest_jax import config as configs
from nest_jax import segmenter as seg
from nest_jax.tasks import Protocol

BLOCK_COPIES = 8  # of a block's logits: both models' upsampled logits, their softmaxes, gradients
EFFICIENCY = (0.2, 0.6)

log = logging.getLogger(__name__)


class Step(NamedTuple):
    """The training step after the last task: bytes on a device; operations of a forward pass over the whole batch; whether there is a teacher."""

    memory: int
    forward: float
    teacher: bool


class Images(NamedTuple):
    """Images of a task to be learnt: for training, for evaluation."""

    train: int
    val: int


def step(config: Any, protocol: Protocol) -> Step:
    """Traces the network forward and backward, abstractly; of a resolved config."""
    train, devices, last = config.train, jax.device_count(), len(protocol) - 1
    num_old, num_new = len(protocol.old(last)), len(protocol.new(last))
    plugin = plugins.load("methods", config.method.name)
    teacher = last > 0 and plugin.build(config.method, num_old=num_old, num_new=num_new).teacher
    parts = train.gradient_accumulation * devices
    rows = train.batch_size // parts  # of the batch, at a time on a device

    segmenter = seg.build(config)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, batch_stats = jax.eval_shape(partial(seg.init, segmenter, size=train.crop_size), key)
    images = jax.ShapeDtypeStruct((rows, train.crop_size, train.crop_size, 3), jnp.uint8)

    def saved(params, batch_stats, images, key):
        def features(params):
            return seg.apply(segmenter, params, batch_stats, images, train=True, key=key)[0]

        found, backward = jax.vjp(features, params)
        return found, jax.tree.leaves(backward)

    traced = jax.jit(saved).trace(params, batch_stats, images, key)
    forward = (traced.lower().cost_analysis() or {}).get("flops", 0.0)
    jaxpr = traced.jaxpr.jaxpr
    inputs = {id(variable) for variable in jaxpr.invars}
    kept = jaxpr.outvars[len(jax.tree.leaves(traced.out_info[0])) :]
    activations = {id(v): v.aval for v in kept if id(v) not in inputs}  # every array once, weights not at all

    classes = num_old + num_new
    weights = _bytes(params) + 4 * classes * (segmenter.channels + 1)
    models = (3 if teacher else 2) * weights + 2 * _bytes(batch_stats)  # parameters, momentum, teacher
    gathered = 0
    if config.sharding.fsdp > 1:  # shared, but whole while they are used
        gathered, models = (2 if teacher else 1) * weights, models // config.sharding.fsdp
    summed = weights if train.gradient_accumulation > 1 else 0
    pixels = rows * train.crop_size
    block = config.loss.block_rows or blockwise.block_rows(train.crop_size, 4 * pixels * classes)
    logits = 4 * pixels * classes * block
    memory = models + gathered + summed + _bytes(list(activations.values())) + BLOCK_COPIES * logits
    return Step(memory + train.batch_size // devices * 4 * train.crop_size**2, forward * parts, teacher)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def forwards(config: Any, teacher: bool, first: int, images: Sequence[Images]) -> tuple[int, float]:
    """Training steps of the tasks from `first` on, and the forward passes over a batch that their phases amount to."""
    train, steps, total = config.train, 0, 0.0
    for task, (count, val) in enumerate(images, first):
        per_epoch = loader.iterations_per_epoch(count, train.batch_size)
        mine = train.epochs[min(task, 1)] * per_epoch
        steps += mine
        total += mine * (4 if teacher and task else 3) + val / train.batch_size
        if task and "epochs" in config.classifier_init:  # a pass over the data, then pre-tuning
            cached = config.classifier_init.get("features") == "cached"
            total += (config.classifier_init.views if cached else 1 + config.classifier_init.epochs) * per_epoch
    return steps, total


def rate(dtype: str) -> float:
    """Floating-point operations a second of one device in a square matrix product, measured in a fraction of a second."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    precision = "highest" if dtype == "float32" else "default"
    product = jax.jit(partial(jnp.matmul, precision=precision))
    matrix = jax.block_until_ready(jnp.ones((size, size), dtype))
    seconds = []
    for _ in range(4):  # the first one is compiled
        clock = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        seconds.append(time.perf_counter() - clock)
    return 2 * size**3 / min(seconds)


def device_memory() -> int:
    """Bytes that JAX may take of a device; on CPUs this machine's memory, shared out among the devices."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def told(config: Any, protocol: Protocol, first: int = 0, images: Sequence[Images] = ()) -> str:
    """The estimate in a line; warns where a step does not fit.

    Args:
        config: resolved or not. protocol: what is learnt.
        first: the first task to be learnt; `images`: of this and the later ones. Without them the line is about one step.
    """
    config = configs.resolve(config)
    found, limit = step(config, protocol), device_memory()
    if found.memory > limit:
        log.warning(
            "a training step is estimated to need %s and a device has %s: a smaller train.batch_size, train.gradient_accumulation, dtype=bfloat16 "
            "or sharding.fsdp help",
            _size(found.memory),
            _size(limit),
        )
    speed, operations = rate(config.dtype) * jax.device_count(), found.forward * (4 if found.teacher else 3)
    kind = jax.devices()[0].device_kind
    line = f"estimate ({jax.device_count()} x {kind}): {_size(found.memory)} of {_size(limit)} device memory, {operations:.1e} FLOP a step"
    if images:
        steps, total = forwards(config, found.teacher, first, images)
        line, operations = f"{line}, {steps:,} steps", found.forward * total
    longest, shortest = (operations / speed / share for share in EFFICIENCY)
    if images and longest < 60:
        return f"{line}, less than a minute"
    return f"{line}, about {_duration(shortest)} to {_duration(longest)}{'' if images else ' a step'}"


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{size / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(round(minutes, -1), 60)
    return f"{hours} h" + (f" {minutes} min" if minutes and hours < 20 else "")
