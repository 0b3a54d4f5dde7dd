"""The worker of `train_step.py` that runs the trainer's own step: writes what the reference is to load, then answers on a pipe."""

import argparse
import json
import time
from functools import partial
from typing import Any

import captured_steps
import jax
import numpy as np
from captured_steps import Model
from reference import pipe

from nest_jax import config as configs
from nest_jax import memory, plugins, to_torch, torch_weights
from nest_jax import segmenter as seg
from nest_jax.method import Student


def as_if_trained(images: np.ndarray, segmenter: seg.Segmenter, model: Model) -> Model:
    """`model` as trained weights would be: statistics of random `images`, residual branches weak, every tenth factor of the norms negative.

    Untrained, the maps of ResNet-101 grow to 1e5 in eval mode, and its gradient differs by 10 % where its input differs by rounding.
    """
    rng = np.random.default_rng(1)

    def changed(path, leaf):
        if path[-1].key != "scale":
            return leaf
        size = 0.2 if path[-2].key == "bn3" else 1.0
        return leaf * np.where(rng.random(leaf.shape) < 0.1, -size, size).astype(np.float32)

    network = jax.tree_util.tree_map_with_path(changed, model["network"])
    zeros = jax.tree.map(np.zeros_like, model["batch_stats"])
    _, tenth = jax.jit(partial(seg.apply, segmenter, train=True))(network, zeros, images)  # momentum .1
    return {**model, "network": network, "batch_stats": jax.tree.map(lambda leaf: leaf * 10, tenth)}


def without_draws() -> None:
    """No dropout, stochastic depth or random fusion from now on."""
    apply = seg.apply
    seg.apply = lambda *args, key=None, **options: apply(*args, **options)


def inputs(config: Any, captured: captured_steps.Captured, student: Student, batch: dict, check: bool) -> dict:
    """What the reference loads: both models' state dicts, the batch with its labels mapped, and everything else as JSON."""
    state, frozen = captured.carry, captured.frozen
    protocol = configs.protocol(config)
    seen = [len(protocol.seen(task)) for task in (0, 1)]
    leaves = jax.tree_util.tree_leaves_with_path({} if student.trainable is True else student.trainable)
    fixed = [seg.torch_name(config, torch_weights.leaf_path(path)) for path, trains in leaves if not trains]
    if config.train.freeze_old_classifiers:
        fixed += ["cls.0.weight", "cls.0.bias"]
    train = config.train
    about = {
        **{name: _plain(config[name]) for name in ("backbone", "decoder", "method")},
        "output_stride": plugins.load("backbones", config.backbone.name).output_stride(config.backbone),
        "seen": seen,
        "fixed": fixed,
        "deterministic": check,
        "dtype": config.dtype,
        "device": "cuda" if jax.default_backend() == "gpu" else jax.default_backend(),
        "learning_rate": train.learning_rate[1],
        "steps": train.epochs[1],  # the captured epoch is one batch
        **{name: train[name] for name in ("momentum", "weight_decay", "nesterov", "poly_power")},
    }
    models = {
        "student": (_model(state), seen),
        "teacher": (frozen["teacher"], seen[:1]),
    }
    arrays = {
        f"{part}/{name}": value
        for part, (model, counts) in models.items()
        for name, value in to_torch.state_dict(model, config, counts).items()
    }
    arrays |= {
        "image": batch["image"],
        "label": np.asarray(frozen["table"])[batch["label"]],
        "about": json.dumps(about),
    }
    return arrays if state.prepared is None else {**arrays, "prepared": np.asarray(state.prepared)}


def _plain(section: Any) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in section.items()}


def _model(state: Any) -> Model:
    return {**state.params, "batch_stats": state.batch_stats}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--inputs", required=True, help="the file to write")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    memory.keep_freed()  # as the trainer does
    config = captured_steps.resolved(options.config, options.set)
    if options.check:
        without_draws()
    size = config.train.batch_size, config.train.crop_size, config.train.crop_size, 3
    other = np.random.default_rng(2).integers(0, 256, size).astype(np.uint8)
    batch = captured_steps.host_batch(config)
    steps, student = captured_steps.capture(config, batch, change=partial(as_if_trained, other))
    captured = steps["training"]
    arrays = inputs(config, captured, student, batch, options.check)
    np.savez(options.inputs, **arrays)  # pyright: ignore[reportArgumentType]
    seen = [len(configs.protocol(config).seen(task)) for task in (0, 1)]
    del steps, student, arrays
    carry = captured.carry
    captured = captured._replace(carry=None)

    def timed(count: int) -> tuple[float, dict[str, float]]:
        nonlocal carry
        scalars: dict[str, Any] = {}
        clock = time.perf_counter()
        with captured_steps.precision(config):  # the first call traces
            for _ in range(count):
                carry, scalars = captured.compiled(carry, captured.frozen, captured.batch)
            jax.block_until_ready((carry, scalars))
        return time.perf_counter() - clock, {name: float(value) for name, value in scalars.items()}

    def about() -> dict[str, Any]:
        return {
            "what": f"{config.method.name}, {config.backbone.name} + {config.decoder.name}",
            "batch": config.train.batch_size,
            "crop": config.train.crop_size,
            "dtype": config.dtype,
            "device": jax.devices()[0].device_kind,
            "draws": not options.check and (config.backbone.get("drop_path", 0) > 0 or config.method.name == "rcil"),
        }

    def first() -> dict[str, Any]:
        seconds, terms = timed(1)
        return {"seconds": seconds, "terms": terms}

    def parameters(path: str) -> dict[str, Any]:
        arrays = to_torch.state_dict(_model(carry), config, seen)
        np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
        return {}

    def settle() -> dict[str, Any]:
        timed(2)
        pipe.forget_peak()
        return {}

    def run(steps: int) -> dict[str, Any]:
        return {"seconds": timed(steps)[0]}

    def peak() -> dict[str, Any]:
        known = jax.devices()[0].memory_stats()
        return {"bytes": known["peak_bytes_in_use"] if known else pipe.peak_resident_bytes()}

    commands = {"about": about, "first": first, "parameters": parameters, "settle": settle, "run": run, "peak": peak}
    pipe.serve(commands)


if __name__ == "__main__":
    main()
