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
import tempfile
import time

import jax
import numpy as np

from nest_jax import base, loader, memory, phases, sharding, train, writers
from nest_jax import config as configs
from nest_jax import data as task_data
from nest_jax import segmenter as seg
from nest_jax.datasets import Dataset


def measure(config, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round's step, by phase, of the first incremental task."""
    size, batch_size = config.train.crop_size, config.train.batch_size
    rng = np.random.default_rng(0)
    protocol = configs.protocol(config)
    # Labels of the new classes of task 1 on background, as in a real batch.
    labels = rng.choice([0, *protocol.new(1)], size=(batch_size, size, size)).astype(np.uint8)
    batch = {"image": rng.integers(0, 256, (batch_size, size, size, 3)).astype(np.uint8), "label": labels}
    presence = np.ones((batch_size, protocol.raw_classes + 1), bool)
    classes = tuple(protocol.class_names) or tuple(str(c) for c in range(protocol.raw_classes + 1))
    stand_in = Dataset(classes, tuple(str(i) for i in range(batch_size)), presence, lambda index: None)  # type: ignore
    mesh, steps = sharding.mesh(), {}

    def capture(context, phase, step, carry, frozen, batches, count):
        carry = sharding.place(carry, mesh)
        compiled = phases.compile_step(step, carry, mesh)
        placed = sharding.global_batch(batch, mesh)
        frozen = sharding.place(frozen, mesh)
        carry, _ = jax.block_until_ready(compiled(carry, frozen, placed))
        steps[phase] = [compiled, sharding.place(carry, mesh), frozen, placed]
        return carry

    precision = jax.default_matmul_precision("highest" if config.dtype == "float32" else "default")
    with precision, tempfile.TemporaryDirectory() as workdir, writers.Writer(workdir) as writer:
        data = task_data.Data(config, protocol, protocol, stand_in, stand_in)
        run = train.Run(config, workdir, mesh, writer, seg.build(config), data)
        phases.run = capture
        previous = base.model(config, run.segmenter, data, train.task_key(run, 0))
        context = phases.Context(workdir, config, mesh, writer, 1, {}, {})
        student, _ = train.prepared_student(run, context, previous)
        train.train_task(run, context, student, previous)
    seconds = {phase: [] for phase in steps}
    for _ in range(rounds):
        for phase, (compiled, carry, frozen, placed) in steps.items():
            clock = time.perf_counter()
            carry, _ = jax.block_until_ready(compiled(carry, frozen, placed))
            seconds[phase].append(time.perf_counter() - clock)
            steps[phase][1] = carry
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
    config = configs.load(options.config)
    configs.override(config, [("backbone.pretrained", "none"), ("evaluate.pictures", "0")])
    configs.override(config, [tuple(item.split("=", 1)) for item in options.set])
    config = configs.resolve(config)
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
    steps = {
        "statistics": sum(loader.batches_in_pass(count, batch_size) for count in images[1:]),
        "pretuning": config.classifier_init.epochs * sum(later),
        "training": later_epochs * sum(later),
    }
    cost = {phase: steps[phase] * seconds[phase] for phase in steps}
    # The base task has no teacher: its step is dearer here than in truth, by one forward pass in eval mode.
    forward = seconds["statistics"]
    base_cost = base * (seconds["training"] - forward)
    nest = cost["statistics"] + cost["pretuning"]
    print(
        f"{config.name}: batch {config.train.batch_size}, crop {config.train.crop_size}, {config.backbone.name}, {jax.devices()[0].device_kind}"
    )
    for phase in steps:
        print(f"  {phase:12s} {seconds[phase]:8.3f} s/step x {steps[phase]:6d} steps = {cost[phase]:9.1f} s")
    print(
        f"  {'base task':12s} {seconds['training'] - forward:8.3f} s/step x {base:6d} steps = {base_cost:9.1f} s   (training less one forward pass)"
    )
    print(f"NeST / training of the later tasks: {100 * nest / cost['training']:.1f} %")
    print(
        f"NeST / whole run:                   {100 * nest / (nest + cost['training'] + base_cost):.1f} %   (the paper: 2.7 % on VOC 15-1)"
    )


if __name__ == "__main__":
    main()
