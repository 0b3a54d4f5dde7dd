"""Configs: find, load, override, check as a whole, resolve, store.

`load` gives a locked config from `FILE[:ARG]`; `override` applies `--config.a.b=value`; `prepare` is what a run calls: it
validates, resolves and claims the workdir. The schema is `nest_jax.recipes.base`.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib.util
import json
import math
import os
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict, FrozenConfigDict

from nest_jax import plugins, recipes, tasks
from nest_jax.errors import InputError

if TYPE_CHECKING:
    from etils import epath

PACKAGE = Path(__file__).resolve().parent
FILE = "config.json"  # in the workdir
Config = Any  # ConfigDict or FrozenConfigDict; their attributes are known when it runs, not to a type checker

# A run may be continued with other values of these: they change where data lie, what is kept and what is shown, not what is computed.
HARMLESS = (
    "log.*",
    "checkpoint.*",
    "train.workers",
    "evaluate.pictures",
    "evaluate.batch_size",
    "dataset.root",
    "dataset.data_dir",
)


# ---------------------------------------------------------------------------------------------------------------- find and load


def available() -> list[str]:
    """The configs that can be named from any directory, as `configs/NAME.py`."""
    found = {path.name for folder in _folders() for path in folder.glob("*.py") if not path.name.startswith("_")}
    return sorted(f"configs/{name}" for name in found)


def _folders() -> tuple[Path, Path]:
    """Of the checkout that holds the package, and of the installed package."""
    return PACKAGE.parent / "configs", PACKAGE / "configs"


def resolve_path(name: str) -> Path:
    """The file that `name` means: seen from here, else among the project's configs. `.py` may be left out.

    Raises:
        InputError: there is none; the message lists the project's configs.
    """
    path = Path(name).expanduser()
    if path.suffix != ".py":
        path = path.with_name(path.name + ".py")
    places = [path]
    if not path.is_absolute() and path.parent.name in ("", "configs"):
        places += [folder / path.name for folder in _folders()]
    for place in places:
        if place.is_file():
            return place.resolve()
    near = difflib.get_close_matches(path.name, [Path(choice).name for choice in available()], n=1)
    hint = f" did you mean 'configs/{near[0]}'?" if near else ""
    raise InputError(f"--config={name}: no such file;{hint} configs: {', '.join(available())}")


def load(spec: str) -> Config:
    """The locked config of `FILE` or `FILE:ARG`.

    Raises:
        InputError: no such file, not a config file, or a bad ARG.
    """
    name, arg = _split(spec)
    path = resolve_path(name)
    try:
        module_spec = importlib.util.spec_from_file_location(f"nest_jax_config_{path.stem}", path)
        assert module_spec is not None and module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        config = module.get_config(arg)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # whatever the user's file does wrong
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        lines = [error.lineno] if isinstance(error, SyntaxError) else lines
        at = f", line {lines[-1]}" if lines else ""
        raise InputError(
            f"{path}{at}: {type(error).__name__}: {error}. A config file defines get_config(arg='')."
        ) from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"{path}: get_config returned {type(config).__name__}, not a ConfigDict")
    return config.lock()


def _split(spec: str) -> tuple[str, str]:
    """`a.py:b` -> (`a.py`, `b`). A drive letter's colon is not the separator."""
    start = 2 if spec[1:3] in (":\\", ":/") else 0
    colon = spec.find(":", start)
    return (spec, "") if colon < 0 else (spec[:colon], spec[colon + 1 :])


# ------------------------------------------------------------------------------------------------------------------- overrides


def override(config: ConfigDict, values: Iterable[tuple[str, str]]) -> None:
    """Sets `("train.epochs", "6,6")` and the like in place; text becomes the type of the value that stands there.

    Raises:
        InputError: unknown keys and values of another type, all in one message.
    """
    problems = []
    for key, text in values:
        try:
            _override(config, key, text)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))


def _override(config: ConfigDict, key: str, text: str) -> None:
    section, _, leaf = key.partition(".")
    if section in recipes.PICKS and leaf == "name":
        raise InputError(
            f"--config.{key}={text}: it brings its own settings; pick it with --config=FILE:{section}={text}"
        )
    flat = flatten(config)
    if key not in flat:
        if key in recipes.PICKS:
            raise InputError(f"--config.{key}={text}: a section has no value; pick it with --config=FILE:{key}={text}")
        choices = _nearest_keys(key, flat)
        near = difflib.get_close_matches(key, choices, n=1)
        hint = f" did you mean {near[0]!r}?" if near else ""
        raise InputError(f"--config.{key}: no such key;{hint} choices: {', '.join(choices)}")
    _put(config, key, parse_value(flat[key], text, f"--config.{key}"))


def _put(config: ConfigDict, key: str, value: Any) -> None:
    """Sets an existing key, whatever the type."""
    *parents, leaf = key.split(".")
    section: Any = config
    for parent in parents:
        section = section[parent]
    with section.ignore_type():
        section[leaf] = value


def _nearest_keys(key: str, flat: Mapping[str, Any]) -> list[str]:
    """The keys of the same section when there is one, else all."""
    section = key.rpartition(".")[0]
    return [known for known in flat if known.rpartition(".")[0] == section] or list(flat)


def parse_value(like: Any, text: str, name: str) -> Any:
    """`text` as a value of the type of `like`: bool, int, float, str, or a tuple of these written `a,b`.

    Raises:
        InputError: it is not such a value; the message shows the form.
    """
    text = text.strip()
    if isinstance(like, tuple):
        inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
        items = [item for item in (part.strip().strip("'\"") for part in inner.split(",")) if item]
        kind = like[0] if like else (0 if all(item.lstrip("-").isdigit() for item in items) else "")
        return tuple(parse_value(kind, item, name) for item in items)
    if isinstance(like, bool):
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in words:
            raise InputError(f"{name}={text}: not true or false")
        return words[text.lower()]
    if isinstance(like, int | float):
        kind = int if isinstance(like, int) else float
        try:
            return kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise InputError(f"{name}={text}: not {wanted} (now {like})") from None
    return text


def flatten(config: Config | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections -> {"train.epochs": (30, 30), ...}."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | FrozenConfigDict | dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# --------------------------------------------------------------------------------------------------------------------- validate

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
    "distillation": FINITE,
    "channels": POSITIVE,
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
    reference, given = flatten(checked), flatten(config)
    for key in sorted(reference.keys() | given.keys()):
        if key.partition(".")[0] in broken:
            continue
        if key not in given:
            wrong = [f"{key} is missing (default: {reference[key]!r})"]
        elif key not in reference:
            wrong = [plugins.unknown("key", key, _nearest_keys(key, reference))]
        else:
            wrong = _type(key, given[key], reference[key])
            if not wrong:
                _put(checked, key, given[key])
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
    for key, value in flatten(config).items():
        rule = RULES.get(key) or RULES.get(key.rpartition(".")[2])
        if rule is None:
            continue
        items = value if isinstance(value, tuple | list) else (value,)
        if not all(rule[0](item) for item in items):
            problems.append(f"{key}={value!r}: must be {rule[1]}")
    return problems


def _tasks(config: Config) -> list[str]:
    try:
        protocol(config)
    except InputError as error:
        return [str(error)]
    return []


def protocol(config: Config) -> tasks.Protocol:
    """The tasks of a config; needs no data on disk.

    Raises:
        InputError: what `nest_jax.tasks.parse` finds wrong.
    """
    dataset = plugins.load("datasets", config.dataset.name)
    return tasks.parse(
        config.tasks.name,
        setting=config.tasks.setting,
        order=config.tasks.order,
        class_names=dataset.classes(config.dataset),
        classes=config.tasks.classes,
        orders=dataset.class_orders() if hasattr(dataset, "class_orders") else None,
    )


def _plugins(config: Any) -> list[str]:
    """What the plug-ins themselves find."""
    found = []
    for section, kind in recipes.SECTIONS.items():
        check = getattr(plugins.load(kind, config[section].name), "problems", None)
        found += [f"{section}.{line.removeprefix(section + '.')}" for line in (check(config[section]) if check else [])]
    if not found:
        from nest_jax import segmenter

        try:  # modules are made without compiling anything
            segmenter.build(resolve(config))
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
    if not config.evaluate.full_images and config.evaluate.batch_size >= 1 and config.evaluate.batch_size % devices:
        problems.append(f"evaluate.batch_size={config.evaluate.batch_size}: not divisible by the {devices} devices")
    stride = plugins.load("backbones", config.backbone.name).output_stride(config.backbone)
    if train.crop_size % stride:
        low = train.crop_size // stride * stride
        problems.append(
            f"train.crop_size={train.crop_size}: not divisible by the output stride {stride} of {config.backbone.name}; "
            f"the nearest are {low} and {low + stride}"
        )
    if config.loss.block_rows > train.crop_size:
        problems.append(f"loss.block_rows={config.loss.block_rows}: more than train.crop_size={train.crop_size}")
    root, data_dir = config.dataset.get("root", ""), config.dataset.get("data_dir", "")
    if root and not Path(root).expanduser().is_dir():
        problems.append(f"dataset.root={root!r}: no such directory")
    if data_dir and not root and "://" not in data_dir and not Path(data_dir).expanduser().is_dir():
        problems.append(
            f"dataset.data_dir={data_dir!r}: no such directory, and there is no dataset.root to prepare it from"
        )
    if config.init_from and "://" not in config.init_from and not Path(config.init_from).expanduser().is_dir():
        problems.append(f"init_from={config.init_from!r}: no such directory; give the --workdir of an earlier run")
    return problems


# -------------------------------------------------------------------------------------------------------------- resolve and store


def resolve(config: Config) -> Config:
    """A frozen copy in which nothing is left to the machine: dtype "auto" becomes bfloat16 on accelerators and float32 on CPU."""
    values = _plain(config)
    if values["dtype"] == "auto":
        import jax

        values["dtype"] = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return FrozenConfigDict(values)


def to_json(config: Config) -> str:
    """The config as JSON text; tuples become lists."""
    return json.dumps(_plain(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """The locked config that `to_json` wrote; lists become tuples."""
    return ConfigDict(_tuples(json.loads(text))).lock()


def _plain(config: Config) -> dict[str, Any]:
    return {
        key: _plain(value) if isinstance(value, ConfigDict | FrozenConfigDict) else value
        for key, value in config.items()
    }


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def prepare(config: Config, workdir: str | os.PathLike, *, write: bool = True) -> Config:
    """What a run starts with: `config` validated and resolved, and `workdir` claimed for it.

    Raises:
        InputError: as `validate` and `claim`.
    """
    validate(config)
    resolved = resolve(config)
    claim(resolved, workdir, write=write)
    return resolved


def claim(config: Config, workdir: str | os.PathLike, *, write: bool = True) -> None:
    """Makes `workdir` with the resolved config in it, or checks that it belongs to this config already.

    Values of `HARMLESS` may differ; the file then stays as the run began. With `write` False nothing is made (all processes but one).

    Raises:
        InputError: not a directory, not writable, or it holds the run of another config: both values of every key that differs.
    """
    from etils import epath

    folder = epath.Path(workdir).expanduser()  # gs://... too
    path = folder / FILE
    try:
        if path.exists():
            _same(from_json(path.read_text()), config, path)
        elif write:
            folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{FILE}.{os.getpid()}.part")
            part.write_text(to_json(config))
            part.replace(path)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--workdir={workdir}: there is a file where a directory should be") from None
    except OSError as error:
        raise InputError(f"--workdir={workdir}: {error.strerror or error}") from None
    except ValueError as error:  # not JSON
        raise InputError(f"{path}: not a config written by nest_jax ({error}); choose another --workdir") from None


def _same(old: Config, new: Config, path: epath.Path) -> None:
    before, now = flatten(old), flatten(new)
    other = {section for section in recipes.SECTIONS if before.get(f"{section}.name") != now.get(f"{section}.name")}
    differs = []
    for key in sorted(before.keys() | now.keys()):
        section, _, leaf = key.partition(".")
        if _harmless(key) or (section in other and leaf != "name"):  # another plug-in has other settings anyway
            continue
        there, here = (repr(values[key]) if key in values else "absent" for values in (before, now))
        if there != here:
            differs.append(f"  {key}: {there} there, {here} now")
    if differs:
        raise InputError(
            "\n".join(
                [
                    f"{path.parent} holds a run of another config ({path.name}); choose another --workdir, or its values:",
                    *differs,
                ]
            )
        )


def _harmless(key: str) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in HARMLESS)


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

    resolved = resolve(config)
    size, last = resolved.train.crop_size, protocol(resolved)
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
