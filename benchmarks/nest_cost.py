"""What NeST costs: seconds per step of statistics, pre-tuning and training, side by side, and their shares of a whole run.

    python benchmarks/nest_cost.py --config=configs/voc_animals_3_1.py
    python benchmarks/nest_cost.py --config=configs/voc_15_1.py --images 9568,487,299,491,500,548      # needs an accelerator
    python benchmarks/nest_cost.py --config=configs/voc_15_1.py:backbone=resnet50 --images 9568,487,299,491,500,548 \
        --set train.batch_size=2 --set train.crop_size=128 --batch 24                                  # its shares, on a CPU

The steps are the trainer's own, compiled once, run on random batches of the config's size in turn, round after round; medians. The run's cost is
steps of the protocol x seconds per step, without evaluation, input and compilation. `--images` gives the training images per task; without it
the data set is asked. The backbone's weights are random: they do not change the time.
"""

import argparse
import statistics
import time

import captured_steps
import jax
from ml_collections import ConfigDict

from nest_jax import config as configs
from nest_jax import data as task_data
from nest_jax import loader, memory


def measure(config, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round's step, by phase, of the first incremental task; those of cached features are "cached: ..."."""
    batch = captured_steps.host_batch(config)
    steps, _ = captured_steps.capture(config, batch)
    cached = ConfigDict(config)
    cached.classifier_init.features = "cached"
    for phase, step in captured_steps.capture(cached, batch)[0].items():
        if phase != "training":
            steps[f"cached: {phase}"] = step
    seconds: dict[str, list[float]] = {phase: [] for phase in steps}
    for counted in [False, *[True] * rounds]:
        for phase, (compiled, carry, frozen, batch) in steps.items():
            clock = time.perf_counter()
            with captured_steps.precision(config):  # the first call traces
                carry, _ = jax.block_until_ready(compiled(carry, frozen, batch))
            if counted:
                seconds[phase].append(time.perf_counter() - clock)
            steps[phase] = steps[phase]._replace(carry=carry)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="config file, with classifier_init=nest")
    parser.add_argument("--images", help="training images per task, comma separated; default: of the data set")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a value of the config"
    )
    parser.add_argument("--batch", type=int, help="batch size that steps are counted with (default: the measured one)")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    memory.keep_freed()  # as the trainer does
    config = captured_steps.resolved(options.config, options.set)
    if options.images:
        images = [int(count) for count in options.images.split(",")]
    else:
        protocol = configs.protocol(config)
        data = task_data.load(config, protocol, protocol)
        images = [len(task_data.training_images(data, task)) for task in range(len(protocol))]
    seconds = {phase: statistics.median(values) for phase, values in measure(config, options.rounds).items()}

    batch_size, (base_epochs, later_epochs) = options.batch or config.train.batch_size, config.train.epochs
    base = base_epochs * loader.iterations_per_epoch(images[0], batch_size)
    later = [loader.iterations_per_epoch(count, batch_size) for count in images[1:]]
    passes = sum(loader.batches_in_pass(count, batch_size) for count in images[1:])
    tuning = config.classifier_init.epochs * sum(later)
    steps = {
        "statistics": passes,
        "pretuning": tuning,
        "training": later_epochs * sum(later),
        "cached: features": passes,
        "cached: statistics": passes,
        "cached: pretuning": tuning,
    }
    cost = {phase: steps[phase] * seconds[phase] for phase in steps}
    # The base task has no teacher: its step is dearer here than in truth, by one forward pass in eval mode.
    base_cost = base * (seconds["training"] - seconds["cached: features"])
    print(
        f"{config.name}: batch {config.train.batch_size}, crop {config.train.crop_size}, {config.backbone.name}, {jax.devices()[0].device_kind}"
    )
    for phase in steps:
        print(f"  {phase:18s} {seconds[phase]:8.3f} s/step x {steps[phase]:6d} steps = {cost[phase]:9.1f} s")
    print(
        f"  {'base task':18s} {base_cost / base:8.3f} s/step x {base:6d} steps = {base_cost:9.1f} s   (training less one forward pass)"
    )
    online = cost["statistics"] + cost["pretuning"]
    cached = cost["cached: features"] + cost["cached: statistics"] + cost["cached: pretuning"]
    for name, nest in (("online", online), ("cached", cached)):
        later_share, share = (100 * nest / (rest + cost["training"]) for rest in (0, nest + base_cost))
        print(
            f"NeST, features {name}: {later_share:.1f} % of the training of later tasks, {share:.2f} % of the whole run"
        )
    print("(the paper: 2.7 % of the whole run on VOC 15-1)")


if __name__ == "__main__":
    main()
