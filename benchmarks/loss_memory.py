"""Memory and time of the training step against the number of classes, with block-wise losses and with losses over whole images.

    python benchmarks/loss_memory.py                                                # memory: batch 24, crop 512; nothing is allocated, only compiled
    python benchmarks/loss_memory.py --set train.crop_size=128 --set train.batch_size=2 --rounds 7      # seconds as well

MiB's step on the config's network with 20 old classes and 1 new, and with 146 and 5 (the last tasks of VOC 15-1 and ADE20K 100-5), compiled once
with blocks of rows and once with one block. Memory is XLA's own account of the compiled step: arguments, results that are not aliases of them,
and temporary buffers. `--rounds` runs the steps in turn, and prints medians.
"""

import argparse
import statistics
import time

import captured_steps
import jax
import numpy as np

from nest_jax import memory, optim, plugins, state, step
from nest_jax import segmenter as seg

TASKS = ((20, 1), (146, 5))  # old classes, background among them, and new ones


def compiled_step(config, num_old: int, num_new: int, *, whole: bool):
    """The compiled step and what its arguments are made of: shapes of (state, frozen, batch)."""
    segmenter = seg.build(config)
    size, batch_size = config.train.crop_size, config.train.batch_size
    method = plugins.load("methods", "mib").build(config.method, num_old=num_old, num_new=num_new)
    optimiser = optim.sgd(optim.poly(0.01, 100, 0.9), momentum=0.9, weight_decay=1e-4)

    def start(classes):
        params, stats = seg.init(segmenter, jax.random.key(0), size)
        kernel = jax.random.normal(jax.random.key(1), (segmenter.channels, classes)) / 16
        return {"network": params, "classifier": {"kernel": kernel, "bias": kernel[0]}, "batch_stats": stats}

    def inputs():
        frozen = {"teacher": start(num_old), "table": np.arange(256, dtype=np.uint8), "key": np.zeros(2, np.uint32)}
        images = np.zeros((batch_size, size, size, 3), np.uint8)
        return state.create(start(num_old + num_new), optimiser), frozen, {"image": images, "label": images[..., 0]}

    made = step.make(segmenter, method, optimiser, block_rows=size if whole else 0)
    with captured_steps.precision(config):
        shapes = jax.eval_shape(inputs)
        lowered = jax.jit(made, donate_argnums=0).lower(*shapes)
    return lowered.compile(), inputs


def gigabytes(compiled) -> float:
    """What the step needs at once."""
    found = compiled.memory_analysis()
    fresh = found.output_size_in_bytes - found.alias_size_in_bytes
    return (found.argument_size_in_bytes + fresh + found.temp_size_in_bytes) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/voc_15_1.py:method=mib,classifier_init=background")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a value of the config"
    )
    parser.add_argument("--rounds", type=int, default=0)
    options = parser.parse_args()
    memory.keep_freed()
    config = captured_steps.resolved(options.config, options.set)
    print(
        f"{config.backbone.name}, batch {config.train.batch_size}, crop {config.train.crop_size}, {config.dtype}, {jax.devices()[0].device_kind}"
    )
    rows = [
        (sum(counts), whole, *compiled_step(config, *counts, whole=whole))
        for counts in TASKS
        for whole in (False, True)
    ]
    seconds: list[list[float]] = [[] for _ in rows]
    placed = [jax.device_put(inputs()) for *_, inputs in rows] if options.rounds else []
    for turn in range(options.rounds + 1 if options.rounds else 0):
        for index, ((_, _, compiled, _), (train_state, frozen, batch)) in enumerate(zip(rows, placed, strict=True)):
            clock = time.perf_counter()
            train_state, _ = jax.block_until_ready(compiled(train_state, frozen, batch))
            if turn:
                seconds[index].append(time.perf_counter() - clock)
            placed[index] = (train_state, frozen, batch)
    first = gigabytes(rows[0][2])
    for spent, (classes, whole, compiled, _) in zip(seconds, rows, strict=True):
        took = gigabytes(compiled)
        line = f"  {classes:4d} classes, {'whole images  ' if whole else 'blocks of rows'} {took:8.2f} GB ({took / first:5.2f} x)"
        if spent:
            line += f" {statistics.median(spent):8.3f} s/step ({statistics.median(spent) / statistics.median(seconds[0]):5.2f} x)"
        print(line)


if __name__ == "__main__":
    main()
