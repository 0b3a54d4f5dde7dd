"""Share of the time in which the device waits for input: the trainer's step fed by the loader, and fed with one batch that is already there.

    python benchmarks/device_idle.py --config=configs/voc_15_1.py:method=mib,classifier_init=background --config.dataset.root=/data/VOCdevkit
    python benchmarks/device_idle.py --config=configs/shapes.py --steps 40

Both run the compiled step of task 1 as the trainer does, without waiting for a step before the next one is handed over; in turn, medians of --rounds.
The idle share is 1 - (seconds without loader) / (seconds with it). On a CPU the two share the cores, so that the share also holds the loader's own work.
"""

import argparse
import statistics
import sys
import time

import captured_steps
import jax

from nest_jax import command, memory, sharding
from nest_jax import config as configs
from nest_jax import data as task_data


def main() -> None:
    flags, overrides = command.split_overrides(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="and --config.KEY=VALUE, as for nest_jax.main")
    parser.add_argument("--steps", type=int, default=20, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(flags)
    memory.keep_freed()
    config = configs.load(options.config)
    configs.override(config, [("backbone.pretrained", "none"), *overrides])
    config = configs.resolve(config)
    protocol = configs.protocol(config)
    data = task_data.load(config, protocol, protocol)
    batch = next(task_data.augmented(data, 1, "training", 0, stop=1))
    step, carry, frozen, placed = captured_steps.capture(config, batch)[0]["training"]
    mesh = sharding.mesh()

    def seconds(batches) -> float:
        nonlocal carry
        carry = jax.block_until_ready(step(carry, frozen, next(batches))[0])  # the loader has started
        clock = time.perf_counter()
        for batch in batches:
            carry, _ = step(carry, frozen, batch)
        jax.block_until_ready(carry)
        return (time.perf_counter() - clock) / (options.steps - 1)

    def loaded(start: int):
        for batch in task_data.augmented(data, 1, "training", start, stop=start + options.steps):
            yield sharding.global_batch(batch, mesh)

    found: dict[str, list[float]] = {"one batch": [], "loader": []}
    with captured_steps.precision(config):
        for turn in range(options.rounds + 1):
            for name, batches in (
                ("one batch", iter([placed] * options.steps)),
                ("loader", loaded(turn * options.steps)),
            ):
                took = seconds(batches)
                if turn:
                    found[name].append(took)
    print(
        f"{config.name}, {config.backbone.name}, batch {config.train.batch_size}, crop {config.train.crop_size}, {jax.devices()[0].device_kind}; "
        f"{options.steps} steps a round, median of {options.rounds}"
    )
    for name, values in found.items():
        print(f"  {name:10s} {statistics.median(values):8.4f} s/step (from {min(values):.4f} to {max(values):.4f})")
    idle = statistics.median(1 - a / b for a, b in zip(*found.values(), strict=True))
    print(f"  the device waits {100 * idle:.1f} % of the time")


if __name__ == "__main__":
    main()
