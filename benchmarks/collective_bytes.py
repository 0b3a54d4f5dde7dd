"""Bytes that devices exchange in a training step: what the compiled step contains beside the formula, and what follows for many chips.

    python benchmarks/collective_bytes.py --config=configs/voc_15_1.py                          # ResNet-101, 8 devices
    python benchmarks/collective_bytes.py --config=configs/voc_15_1.py:backbone=swin_b --fsdp 4

The step is the trainer's own (task 1, with teacher), compiled for simulated devices of the CPU from shapes alone, an image a device: nothing is
computed. The efficiencies are an estimate from published figures; docs/scaling.md says what goes into it.
"""

import argparse
import math
import os
import re
from functools import partial
from typing import Any, NamedTuple

# Published: peak bfloat16 TFLOP/s of a chip (dense); GB/s out of a chip, one direction, inside a node or slice; chips in a node; GB/s out of a chip
# between nodes. Where the figure counts both directions it is halved; so is that of TPUs, because slices below a full torus lack links.
CHIPS = {
    "H100": (989, 450, 8, 50),
    "TPU v4": (275, 150, 0, 0),
    "TPU v5e": (197, 100, 0, 0),
    "TPU v5p": (459, 300, 0, 0),
    "TPU v6e": (918, 224, 0, 0),
}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(")
SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
SMALL = 2**16  # bytes; below it a collective costs its latency and not its size


class Collective(NamedTuple):
    """A collective of a compiled step: bytes of its result on one device, devices that take part, calls in a step."""

    kind: str
    bytes: int
    devices: int
    calls: int

    def sent(self) -> float:
        """Bytes that a device sends in a step, as a ring does it."""
        n = self.devices
        factor = {
            "all-reduce": 2 * (n - 1) / n,
            "all-gather": (n - 1) / n,
            "reduce-scatter": n - 1,  # its result is 1/n of what is reduced
            "all-to-all": (n - 1) / n,
            "collective-permute": 1.0,
        }
        return factor[self.kind] * self.bytes * self.calls


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives in the HLO text of a compiled step; those in loops count as often as the loop runs.

    Raises:
        ValueError: one is in a loop of unknown length.
    """
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            lines = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif line.startswith(" "):
            lines.append(line)

    def of(name: str) -> list[Collective]:
        found = []
        for line in computations[name]:
            if match := COLLECTIVE.search(line):
                found.append(Collective(match[2], _result_bytes(match), _group(line, devices), 1))
            for word, called in re.findall(r"\b(body|calls|to_apply|\w+_computation)=%?([\w.\-]+)", line):
                inner = of(called)
                length = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                if word == "body" and inner and not length:
                    raise ValueError(f"collectives in a loop of unknown length: {line.strip()}")
                times = int(length[1]) if word == "body" and length else 1
                found += [collective._replace(calls=collective.calls * times) for collective in inner]
        return found

    return of(entry)


def _result_bytes(match: re.Match) -> int:
    """Bytes of the shapes before the name. Asynchronous ones but all-reduce repeat their operands in front of their results."""
    sizes = []
    for name, bits, lengths in SHAPE.findall(match[1]):
        size = math.prod(int(length) for length in lengths.split(",") if length)
        sizes.append(size if name == "pred" else size * int(bits) // 8)
    if match[3] and match[2] == "collective-permute":
        return sizes[1]
    if match[3] and match[2] != "all-reduce":
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes)


def _group(line: str, devices: int) -> int:
    """Devices in a group: `replica_groups={{0,1},{2,3}}` or `[2,2]<=[4]`."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    return devices


class Traced(NamedTuple):
    """The abstract step of a config: `step` and its arguments' shapes and places; `model` is what it trains."""

    step: Any
    arguments: tuple[Any, Any, Any]
    model: Any
    mesh: Any


def trace(config: Any, fsdp: int) -> Traced:
    """Task 1's step of the trainer on all devices, an image each."""
    import jax
    import jax.numpy as jnp

    from nest_jax import config as configs
    from nest_jax import optim, plugins, sharding, state, step
    from nest_jax import segmenter as seg

    protocol, segmenter, mesh = configs.protocol(config), seg.build(config), sharding.mesh(fsdp)
    size, devices = config.train.crop_size, jax.device_count()
    num_old, num_new = len(protocol.old(1)), len(protocol.new(1))
    method = plugins.load("methods", config.method.name).build(config.method, num_old=num_old, num_new=num_new)
    assert method.preparation is None, f"{config.method.name} has a pass over the data: take mib"

    def model(key, classes):
        network, batch_stats = seg.init(segmenter, key, size)
        classifier = {"kernel": jnp.zeros((segmenter.channels, classes)), "bias": jnp.zeros(classes)}
        return {"network": network, "classifier": classifier, "batch_stats": batch_stats}

    def placed(tree):
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding.spread(tree, mesh))  # fmt: skip

    key = jax.eval_shape(lambda: jax.random.key(0))
    student = jax.eval_shape(partial(model, classes=num_old + num_new), key)
    teacher = jax.eval_shape(partial(model, classes=num_old), key) if method.teacher else None
    schedule = optim.poly(config.train.learning_rate[1], 100, config.train.poly_power)
    optimiser = optim.sgd(schedule, momentum=config.train.momentum, weight_decay=config.train.weight_decay)
    start = jax.eval_shape(partial(state.create, optimiser=optimiser), student)
    raw_key = jax.eval_shape(jax.random.key_data, key)
    frozen = {"teacher": teacher, "table": jax.ShapeDtypeStruct((256,), jnp.uint8), "key": raw_key}
    shapes = {"image": (devices, size, size, 3), "label": (devices, size, size)}
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding.split(mesh)) for name, shape in shapes.items()}  # fmt: skip
    train_step = step.make(segmenter, method, optimiser, gather=partial(sharding.gathered, mesh=mesh))
    return Traced(train_step, (placed(start), placed(frozen), batch), student, mesh)


class Measured(NamedTuple):
    """What the compiled step holds, the operations of an image in it (XLA's count before it optimises), and the trained model's shapes."""

    collectives: list[Collective]
    operations: float
    model: Any


def measure(config: Any, fsdp: int) -> Measured:
    """Compiles task 1's step for all devices."""
    import jax

    from nest_jax import phases

    traced, devices = trace(config, fsdp), jax.device_count()
    lowered = phases.compile_step(traced.step, traced.arguments[0], traced.mesh).lower(*traced.arguments)
    operations = lowered.cost_analysis()["flops"] / devices
    return Measured(collectives(lowered.compile().as_text(), devices), operations, traced.model)


def norms(model: Any) -> list[int]:
    """Channels of every norm with batch statistics."""
    import jax

    return [leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(model["batch_stats"]) if path[-1].key == "mean"]  # fmt: skip


def efficiency(
    chip: tuple[float, float, int, float],
    chips: int,
    *,
    gradient: float,
    rounds: int,
    operations: float,
    sustained: float,
    latency: float,
) -> float:
    """Time of the computation / time of computation and exchange, nothing overlapped.

    Args:
        chip: a row of CHIPS.
        gradient: bytes all-reduced once a step. rounds: small all-reduces that wait for each other.
        operations: of a chip in a step. sustained: share of the peak that is reached.
        latency: seconds of a small all-reduce per doubling of the chips.
    """
    peak, inside, node, between = chip
    local = min(chips, node) if node else chips
    seconds = 2 * (local - 1) / local * gradient / (inside * 1e9)
    if chips > local:  # every chip of a node exchanges its share with its peers in the other nodes
        others = chips // local
        seconds += 2 * (others - 1) / others * gradient / local / (between * 1e9)
    seconds += rounds * latency * math.log2(chips)
    computing = operations / (sustained * peak * 1e12)
    return computing / (computing + seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="config file; :backbone=... picks the network")
    parser.add_argument("--devices", type=int, default=8, help="simulated devices")
    parser.add_argument("--fsdp", type=int, default=1, help="devices that share the parameters")
    parser.add_argument("--no_estimate", action="store_true", help="leave out the efficiencies")
    parser.add_argument("--sustained", type=float, default=0.3, help="share of the peak that is reached")
    parser.add_argument("--latency", type=float, default=5, help="microseconds of a small all-reduce per doubling of the chips")  # fmt: skip
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = (
        f"{flags} --xla_force_host_platform_device_count={options.devices}"  # before JAX is loaded
    )

    from nest_jax import config as configs
    from nest_jax import segmenter as seg

    config = configs.load(options.config)
    configs.override(config, [("backbone.pretrained", "none")])
    config = configs.resolve(config)
    found, operations, model = measure(config, options.fsdp)
    parameters, channels = seg.num_parameters(model["network"]), norms(model)
    parameters += seg.num_parameters(model["classifier"])
    # A norm adds up two numbers a channel on the way forward; its two on the way back are the gradients of its own parameters.
    gradient, statistics = 4 * parameters, 4 * 2 * sum(channels)
    print(f"{config.name}, {config.backbone.name}, {config.method.name}: {parameters:,} parameters, {len(channels)} norms with {sum(channels):,} channels; {options.devices} devices, fsdp {options.fsdp}")  # fmt: skip
    print(f"formula: gradient 4 x parameters = {gradient / 1e6:.2f} MB, statistics 4 x 2 x channels = {statistics / 1e6:.2f} MB, together {(gradient + statistics) / 1e6:.2f} MB")  # fmt: skip
    print("compiled step:            calls  of them small   MB in results   MB sent by a device")
    for kind in KINDS:
        if rows := [row for row in found if row.kind == kind]:
            calls, small = (sum(row.calls for row in rows if row.bytes < limit) for limit in (math.inf, SMALL))
            total, sent = sum(row.bytes * row.calls for row in rows) / 1e6, sum(row.sent() for row in rows) / 1e6
            print(f"  {kind:20s}{calls:9d}{small:15d}{total:16.2f}{sent:22.2f}")
    if options.no_estimate:
        return
    print(f"operations per image at {config.train.crop_size} x {config.train.crop_size}: {operations / 1e9:.0f} GFLOP")
    print(f"estimated efficiency, {options.sustained:.0%} of the peak, {options.latency:g} us x log2(chips) per round, nothing overlapped")  # fmt: skip
    print("images per chip      3                    24\nchips                8    64   256        8    64   256")
    for name, chip in CHIPS.items():
        cells = [
            efficiency(
                chip,
                chips,
                gradient=gradient,
                rounds=3 * len(channels),  # mean, variance, and the two sums of the gradient at once
                operations=images * operations,
                sustained=options.sustained,
                latency=options.latency * 1e-6,
            )
            for images in (3, 24)
            for chips in (8, 64, 256)
        ]
        print(f"  {name:12s}" + "   ".join("".join(f"{100 * cell:5.0f}%" for cell in part) for part in (cells[:3], cells[3:])))  # fmt: skip


if __name__ == "__main__":
    main()
