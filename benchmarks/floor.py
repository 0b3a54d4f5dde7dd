"""How far the parts of the training step are from what the machine allows.

    python benchmarks/floor.py --config=configs/voc_15_1.py:method=mib,classifier_init=background                         # an accelerator
    python benchmarks/floor.py --config=configs/voc_15_1.py:method=mib,classifier_init=background --set train.crop_size=128 --set train.batch_size=2

The machine's two ceilings are measured first: FLOP/s of a large matrix product in the config's dtype, bytes/s of adding one to a large array. Then
the parts of MiB's step: teacher forward, student forward in train mode, the same with its gradient, losses with their gradient, update; and the step. FLOPs
"by hand" are 2 x kernel x outputs of every convolution and dense layer, without what falls on padding (three times that with gradients: one product forward, two backward);
"XLA" is the compiler's count before it optimises, in which a loop's body counts once. Bytes are those of the compiled program. The floor of a part is the larger of FLOPs by hand / FLOP ceiling
and the bytes that cannot be avoided / byte ceiling: the outputs of those layers written and read once forward, twice more with gradients; parameters, momenta and gradients
read and written in the update. Medians of --rounds, all parts in turn.
"""

import argparse
import math
import statistics
import time
from typing import Any, NamedTuple

import captured_steps
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nest_jax import blockwise, layers, memory, optim, plugins
from nest_jax import segmenter as seg


def ceilings(dtype: Any, rounds: int = 5) -> tuple[float, float]:
    """FLOP/s and bytes/s: the best of a few rounds, because a ceiling is what was reached."""
    big = 8192 if jax.default_backend() != "cpu" else 2048
    square = jnp.ones((big, big), dtype)
    long = jnp.zeros(2**28 if jax.default_backend() != "cpu" else 2**26, jnp.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x))
    add = jax.jit(lambda x: x + 1)
    best = {}
    for name, function, argument in (("product", product, square), ("add", add, long)):
        seconds = []
        for _ in range(rounds + 1):
            clock = time.perf_counter()
            jax.block_until_ready(function(argument))
            seconds.append(time.perf_counter() - clock)
        best[name] = min(seconds)
    return 2 * big**3 / best["product"], 2 * long.nbytes / best["add"]


def met(size: int, module: nn.Module) -> float:
    """How many taps of a kernel's row meet the map, as a mean over `size` outputs: those on the padding are no work."""
    if not isinstance(module, layers.Conv):
        return 1.0
    taps, stride, dilation = module.kernel_size, module.stride, module.dilation
    places = np.arange(size)[:, None] * stride + (np.arange(taps) - taps // 2)[None] * dilation
    return float(np.mean(np.sum((places >= 0) & (places < size * stride), axis=1)))


def by_hand(segmenter: seg.Segmenter, variables: Any, images: Any) -> tuple[float, float]:
    """FLOPs of a forward pass, and the numbers that its convolutions and dense layers put out."""
    modules = {}

    def keep(module, name):
        modules[module.path] = module
        return isinstance(module, layers.Conv | nn.Dense)

    def outputs(variables, images):
        images = segmenter.normalise(images)
        _, found = segmenter.network.apply(
            variables, images, train=False, mutable=["intermediates"], capture_intermediates=keep
        )
        return found["intermediates"]

    flops, numbers = 0.0, 0
    for path, output in jax.tree_util.tree_leaves_with_path(jax.eval_shape(outputs, variables, images)):
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))[:-1]  # without "__call__"
        kernel = variables["params"]
        for name in names:
            kernel = kernel[name]
        inputs = kernel["kernel"].shape[-2]
        taps = math.prod(met(size, modules[names]) for size in output.shape[1:-1])
        flops += 2 * output.size * inputs * taps
        numbers += output.size
    return flops, numbers


class Part(NamedTuple):
    """A jitted function of `arguments`; `flops` by hand; bytes that cannot be avoided. The step donates its first argument and returns the next."""

    function: Any
    arguments: tuple
    flops: float
    least_bytes: float


def parts(config: Any) -> dict[str, Part]:
    """Of the step of the first incremental task."""
    steps, student = captured_steps.capture(config, captured_steps.host_batch(config))
    step, carry, frozen, batch = steps["training"]
    segmenter, images, teacher = student.segmenter, batch["image"], frozen["teacher"]
    network, stats, optimiser = (
        carry.params["network"],
        carry.batch_stats,
        optim.sgd(optim.poly(0.01, 100, 0.9), momentum=0.9, weight_decay=1e-4),
    )
    flops, numbers = by_hand(segmenter, {"params": network, "batch_stats": stats}, images)
    outputs = numbers * jnp.dtype(config.dtype).itemsize
    num_old, num_seen = (model["classifier"]["bias"].shape[0] for model in (teacher, carry.params))
    plugin = plugins.load("methods", config.method.name)
    method = plugin.build(config.method, num_old=num_old, num_new=num_seen - num_old)

    def teacher_forward(teacher, images):
        found, _ = seg.apply(segmenter, teacher["network"], teacher["batch_stats"], images, train=False)
        return seg.logits(found.pre_logits, teacher["classifier"])

    def student_forward(params, stats, images):
        found, stats = seg.apply(segmenter, params["network"], stats, images, train=True, key=jax.random.key(0))
        return seg.logits(found.pre_logits, params["classifier"]), stats

    def student_gradient(params, stats, images):
        return jax.grad(lambda params: jnp.sum(student_forward(params, stats, images)[0]))(params)

    def losses(logits, old_logits, labels):
        labels = frozen["table"][labels.astype(jnp.int32)].astype(jnp.int32)

        def total(logits):
            sums = blockwise.sums_per_image(method.pixel_terms, logits, old_logits, labels)
            return sum(jnp.sum(term) for term in sums.values())

        return jax.grad(total)(logits)

    def update(params, opt_state, gradients):
        updates, opt_state = optimiser.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    trained = (carry.params, stats, images)
    old_logits = jax.jit(teacher_forward)(teacher, images)
    logits = jax.jit(lambda *arguments: student_forward(*arguments)[0])(*trained)
    logit_bytes = 2 * logits.nbytes + old_logits.nbytes
    update_bytes = 5 * 4 * seg.num_parameters(carry.params)
    copies = jax.tree.map(jnp.copy, (carry.params, carry.opt_state))  # the step donates the others
    return {
        "teacher forward": Part(jax.jit(teacher_forward), (teacher, images), flops, 2 * outputs),
        "student forward": Part(
            jax.jit(student_forward), (copies[0], *jax.tree.map(jnp.copy, trained[1:])), flops, 2 * outputs
        ),
        "student with gradient": Part(
            jax.jit(student_gradient), (copies[0], *jax.tree.map(jnp.copy, trained[1:])), 3 * flops, 6 * outputs
        ),
        "losses with gradient": Part(jax.jit(losses), (logits, old_logits, batch["label"]), 0, logit_bytes),
        "update": Part(jax.jit(update), (*copies, copies[0]), 0, update_bytes),
        "step": Part(step, (carry, frozen, batch), 4 * flops, 8 * outputs + logit_bytes + update_bytes),
    }


def measure(config: Any, rounds: int) -> None:
    """Prints the table."""
    peak, bandwidth = ceilings(jnp.dtype(config.dtype))
    print(
        f"{config.backbone.name}, {config.method.name}, batch {config.train.batch_size}, crop {config.train.crop_size}, {config.dtype}, "
        f"{jax.devices()[0].device_kind}: {peak / 1e9:,.0f} GFLOP/s, {bandwidth / 1e9:,.1f} GB/s"
    )
    found = parts(config)
    counts = {}
    for name, part in found.items():
        lowered = part.function.lower(*part.arguments)
        counts[name] = lowered.cost_analysis()["flops"], lowered.compile().cost_analysis()["bytes accessed"]
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(rounds + 1):
        for name, part in found.items():
            clock = time.perf_counter()
            result = jax.block_until_ready(part.function(*part.arguments))
            if turn:
                seconds[name].append(time.perf_counter() - clock)
            if name == "step":
                found[name] = part._replace(arguments=(result[0], *part.arguments[1:]))
    print(
        f"{'':24s}{'GFLOP':>9s}{'by XLA':>9s}{'GB least':>10s}{'by XLA':>9s}{'seconds':>10s}{'floor':>9s}{'reached':>9s}"
    )
    for name, part in found.items():
        floor, took = max(part.flops / peak, part.least_bytes / bandwidth), statistics.median(seconds[name])
        print(
            f"  {name:22s}{part.flops / 1e9:9.1f}{counts[name][0] / 1e9:9.1f}{part.least_bytes / 1e9:10.3f}{counts[name][1] / 1e9:9.2f}"
            f"{took:10.3f}{floor:9.3f}{100 * floor / took:8.0f} %"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a value of the config"
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    memory.keep_freed()
    config = captured_steps.resolved(options.config, options.set)
    with captured_steps.precision(config):
        measure(config, options.rounds)


if __name__ == "__main__":
    main()
