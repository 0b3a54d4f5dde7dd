"""Checks of a config as a whole, before anything is read or computed: `validate`, and `shape_check` of its network."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from nest_jax import config as configs
from nest_jax import plugins, recipes
from nest_jax.config import Config
from nest_jax.errors import InputError

Rule = tuple[Callable[[Any], bool], str]
POSITIVE: Rule = (lambda value: value >= 1, "at least 1")
NATURAL: Rule = (lambda value: value >= 0, "0 or more")
FINITE: Rule = (lambda value: math.isfinite(value) and value >= 0, "a finite number, 0 or more")
FRACTION: Rule = (lambda value: 0 <= value < 1, "at least 0 and below 1")


def choice(*names: str) -> Rule:
    return (lambda value: value in names, f"one of: {', '.join(names)}")


# By full key, or by the last part of it, in whichever section it stands. For a tuple it holds for every element.
RULES: dict[str, Rule] = {
    "seed": (lambda value: 0 <= value < 2**32, "at least 0 and below 2**32"),
    "dtype": choice("auto", "float32", "bfloat16"),
    "batch_size": POSITIVE,
    "crop_size": (lambda value: value >= 16, "at least 16"),
    "train.epochs": POSITIVE,
    "epochs": NATURAL,
    "learning_rate": FINITE,
    "momentum": FRACTION,
    "weight_decay": FINITE,
    "poly_power": FINITE,
    "gradient_accumulation": POSITIVE,
    "workers": NATURAL,
    "pictures": NATURAL,
    "every_seconds": NATURAL,
    "every_steps": NATURAL,
    "log.every_steps": POSITIVE,
    "keep": POSITIVE,
    "block_rows": NATURAL,
    "fsdp": POSITIVE,
    "distillation": FINITE,
    "channels": POSITIVE,
    "output_stride": POSITIVE,
    "dilations": POSITIVE,
    "blocks": POSITIVE,
    "depths": POSITIVE,
    "drop_path": FRACTION,
    "dropout": FRACTION,
    "pod": FINITE,
    "pod_logits": FINITE,
    "pooled_cube": FINITE,
    "pooled_cube_last": FINITE,
    "threshold_floor": FINITE,
    "widths": POSITIVE,
    "dataset.size": POSITIVE,
    "train_images": POSITIVE,
    "val_images": POSITIVE,
}
FALLBACK = {
    "dataset": "shapes",
    "method": "finetune",
    "classifier_init": "random",
    "backbone": "tiny",
    "decoder": "plain",
}
PAIRS = ("train.epochs", "train.learning_rate")  # (task 0, later tasks)


def validate(config: Config) -> None:
    """Checks the whole config.

    A plug-in may add its own checks: `problems(settings) -> list[str]`, lines that begin with a key.

    Raises:
        InputError: one message with every problem, one a line.
    """
    problems, checked = _structure(config)
    problems += _ranges(checked)
    if not any(line.startswith(tuple(f"{section}.name" for section in recipes.SECTIONS)) for line in problems):
        problems += [*_tasks(checked), *_together(checked), *_plugins(checked)]
    problems = list(dict.fromkeys(problems))  # one cause may be noticed in two places
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError("\n".join([f"config {config.get('name', '')}: {count}", *(f"  {line}" for line in problems)]))


def _structure(config: Config) -> tuple[list[str], Config]:
    """Keys, types, names of plug-ins, lengths of tuples; and the config with defaults in the place of what is wrong there."""
    picked: dict[str, Any] = dict(FALLBACK)
    problems, broken = [], []
    for section, kind in recipes.SECTIONS.items():
        values = config.get(section)
        name = values.get("name") if isinstance(values, ConfigDict | FrozenConfigDict) else None
        if name in plugins.names(kind):
            picked[section] = name
        else:
            problems.append(plugins.unknown(f"{section}.name", name, plugins.names(kind)))
            broken.append(section)
    checked = recipes.base(name="", tasks="offline", **picked)
    reference, given = configs.flatten(checked), configs.flatten(config)
    for key in sorted(reference.keys() | given.keys()):
        if key.partition(".")[0] in broken:
            continue
        if key not in given:
            wrong = [f"{key} is missing (default: {reference[key]!r})"]
        elif key not in reference:
            wrong = [plugins.unknown("key", key, configs.nearest_keys(key, reference))]
        else:
            wrong = _type(key, given[key], reference[key])
            if not wrong:
                configs.put(checked, key, given[key])
        problems += wrong
    return problems, checked


ANY = object()  # the elements of a tuple whose default is empty


def _type(key: str, value: Any, like: Any) -> list[str]:
    if key == "tasks.order" and isinstance(value, tuple | list):  # its default is a word
        like = ()
    if like is ANY:
        return [] if isinstance(value, int | float | str) else [f"{key}: {value!r} is neither a number nor text"]
    if isinstance(like, tuple):
        if not isinstance(value, tuple | list):
            return [f"{key}={value!r}: not a tuple such as {like!r}"]
        length = f"{len(value)} values, not 2 (task 0, later tasks)"
        wrong = [f"{key}={value!r}: {length}"] if key in PAIRS and len(value) != 2 else []
        return wrong + [line for item in value for line in _type(key, item, like[0] if like else ANY)]
    kinds: tuple[type, ...] = (int, float) if isinstance(like, float) else (type(like),)
    if not isinstance(value, kinds) or (isinstance(value, bool) and not isinstance(like, bool)):
        return [f"{key}={value!r}: {type(value).__name__}, not {type(like).__name__}"]
    return []


def _ranges(config: Config) -> list[str]:
    problems = []
    for key, value in configs.flatten(config).items():
        rule = RULES.get(key) or RULES.get(key.rpartition(".")[2])
        if rule is None:
            continue
        items = value if isinstance(value, tuple | list) else (value,)
        if not all(rule[0](item) for item in items):
            problems.append(f"{key}={value!r}: must be {rule[1]}")
    return problems


def _tasks(config: Config) -> list[str]:
    try:
        configs.protocol(config)
    except InputError as error:
        return [str(error)]
    return []


def _plugins(config: Any) -> list[str]:
    """What the plug-ins themselves find."""
    found = []
    for section, kind in recipes.SECTIONS.items():
        check = getattr(plugins.load(kind, config[section].name), "problems", None)
        found += [f"{section}.{line.removeprefix(section + '.')}" for line in (check(config[section]) if check else [])]
    if not found:
        from nest_jax import segmenter

        try:  # modules are made without compiling anything
            segmenter.build(configs.resolve(config))
        except InputError as error:
            found.append(str(error))
    return found


def _together(config: Config) -> list[str]:
    """Values that are right alone and wrong together, and the folders that must exist."""
    import jax  # late: a bad name should be answered at once

    problems = []
    train, devices = config.train, jax.device_count()
    parts = train.gradient_accumulation * devices
    if train.batch_size >= 1 and train.gradient_accumulation >= 1 and train.batch_size % parts:
        problems.append(
            f"train.batch_size={train.batch_size}: not divisible by train.gradient_accumulation x devices "
            f"= {train.gradient_accumulation} x {devices}"
        )
    if config.sharding.fsdp >= 1 and devices % config.sharding.fsdp:
        problems.append(f"sharding.fsdp={config.sharding.fsdp}: does not divide the {devices} devices")
    if not config.evaluate.full_images and config.evaluate.batch_size >= 1 and config.evaluate.batch_size % devices:
        problems.append(f"evaluate.batch_size={config.evaluate.batch_size}: not divisible by the {devices} devices")
    method, backbone = plugins.load("methods", config.method.name), plugins.load("backbones", config.backbone.name)
    stride = backbone.output_stride(config.backbone)
    if stride > 0 and train.crop_size % stride:
        low = train.crop_size // stride * stride
        problems.append(
            f"train.crop_size={train.crop_size}: not divisible by the output stride {stride} of {config.backbone.name}; "
            f"the nearest are {low} and {low + stride}"
        )
    for section, variants in getattr(method, "NEEDS", {}).items():
        if (name := config[section].name) not in variants.values():
            choices = ", ".join(variants.values())
            problems.append(f"{section}.name={name!r}: method {config.method.name} needs one of: {choices}")
    if getattr(method, "NEEDS_MAPS", False) and not getattr(backbone, "HAS_MAPS", True):
        problems.append(
            f"method.name={config.method.name!r}: it compares maps of the backbone, and {config.backbone.name} has none; "
            "choose another method or another backbone"
        )
    dividing = {"loss.block_rows": config.loss.block_rows}
    dividing["classifier_init.statistics_stride"] = config.classifier_init.get("statistics_stride", 0)
    for key, value in dividing.items():
        if value > 0 and train.crop_size % value:
            problems.append(f"{key}={value}: does not divide train.crop_size={train.crop_size}")
    root, data_dir = config.dataset.get("root", ""), config.dataset.get("data_dir", "")
    if root and not Path(root).expanduser().is_dir():
        problems.append(f"dataset.root={root!r}: no such directory")
    if (
        data_dir
        and not (root or config.dataset.get("file"))
        and "://" not in data_dir
        and not Path(data_dir).expanduser().is_dir()
    ):
        problems.append(
            f"dataset.data_dir={data_dir!r}: no such directory, and there is no dataset.root to prepare it from"
        )
    if config.init_from and "://" not in config.init_from and not Path(config.init_from).expanduser().exists():
        problems.append(
            f"init_from={config.init_from!r}: no such directory or file; give the --workdir of an earlier run, or a published checkpoint"
        )
    if config.extend_from:
        from nest_jax import extension

        problems += extension.problems(config)
    return problems


# ------------------------------------------------------------------------------------------------------------------ shape check


def shape_check(config: Config) -> dict[str, Any]:
    """Traces the network of `config` at its crop size and with all its classes, abstractly: nothing is computed or allocated.

    Returns:
        "parameters": of the network, "pre_logits" and "logits": shapes for one image, after the last task.

    Raises:
        InputError: the parts do not fit together.
    """
    import jax
    import jax.numpy as jnp

    from nest_jax import segmenter

    resolved = configs.resolve(config)
    size, last = resolved.train.crop_size, configs.protocol(resolved)
    model = segmenter.build(resolved)
    classes = 1 + last.num_classes

    def forward(key, images):
        params, batch_stats = segmenter.init(model, key, size)
        features, _ = segmenter.apply(model, params, batch_stats, images, train=True, key=key)
        classifier = {"kernel": jnp.zeros((model.channels, classes)), "bias": jnp.zeros(classes)}
        return params, features, segmenter.logits(features.pre_logits, classifier)

    key = jax.eval_shape(lambda: jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    try:
        params, features, logits = jax.eval_shape(forward, key, images)
    except (TypeError, ValueError) as error:
        names = f"backbone {config.backbone.name} with decoder {config.decoder.name} at crop {size}"
        raise InputError(f"{names}: the shapes do not fit: {error}") from error
    return {
        "parameters": segmenter.num_parameters(params),
        "pre_logits": features.pre_logits.shape,
        "logits": logits.shape,
    }
