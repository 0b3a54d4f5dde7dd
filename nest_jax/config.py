"""Configs: find, load, override, resolve, store.

`load` gives a locked config from `FILE[:ARG]`; `override` applies `--config.a.b=value`; `resolve` freezes it; `claim` makes a
workdir its own. The schema is `nest_jax.recipes.base`; `nest_jax.validation` checks a config as a whole.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import importlib.util
import json
import os
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict, FrozenConfigDict

from nest_jax import plugins, recipes, tasks
from nest_jax.errors import InputError

if TYPE_CHECKING:
    from etils import epath

PACKAGE = Path(__file__).resolve().parent
FILE = "config.json"  # in the workdir
OWN_TASKS = "dataset"  # the value of tasks.name that means the data set's own tasks
Config = Any  # ConfigDict or FrozenConfigDict; their attributes are known when it runs, not to a type checker

# A run may be continued with other values of these: they change where data lie, what is kept and what is shown, not what is computed.
HARMLESS = (
    "log.*",
    "checkpoint.*",
    "sharding.*",
    "train.workers",
    "evaluate.pictures",
    "evaluate.batch_size",
    "dataset.root",
    "dataset.file",
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


def override(config: ConfigDict, values: Iterable[tuple[str, str]], *, spec: str = "") -> None:
    """Sets `("train.epochs", "6,6")` and the like in place; text becomes the type of the value that stands there.

    `extend_from` goes first: it brings the network of the model that it names. `spec` is what `load` was given; a network that
    its ARG picks must then be that one.

    Raises:
        InputError: unknown keys and values of another type, all in one message.
    """
    problems = []
    for key, text in sorted(values, key=lambda pair: pair[0] != "extend_from"):
        try:
            _override(config, key, text)
            if key == "extend_from" and text:
                from nest_jax import extension

                extension.take_network(config, _split(spec)[1])
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
        choices = nearest_keys(key, flat)
        near = difflib.get_close_matches(key, choices, n=1)
        hint = f" did you mean {near[0]!r}?" if near else ""
        raise InputError(f"--config.{key}: no such key;{hint} choices: {', '.join(choices)}")
    put(config, key, parse_value(flat[key], text, f"--config.{key}"))


def put(config: ConfigDict, key: str, value: Any) -> None:
    """Sets an existing key, whatever the type."""
    *parents, leaf = key.split(".")
    section: Any = config
    for parent in parents:
        section = section[parent]
    with section.ignore_type():
        section[leaf] = value


def nearest_keys(key: str, flat: Mapping[str, Any]) -> list[str]:
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


# -------------------------------------------------------------------------------------------------------------- resolve and store


def resolve(config: Config) -> Config:
    """A frozen copy in which nothing is left to the machine and the moment.

    dtype "auto" becomes bfloat16 on accelerators and float32 on CPU, `extend_from` the checkpoint that it means now.
    """
    values = _plain(config)
    if values["dtype"] == "auto":
        import jax

        values["dtype"] = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if values.get("extend_from"):
        from nest_jax import extension

        values["extend_from"] = str(extension.checkpoint(values["extend_from"]))
    return FrozenConfigDict(values)


def protocol(config: Config) -> tasks.Protocol:
    """The tasks of a config; needs no data on disk, but the model to extend and the file that describes a user's own data.

    The name "dataset" means the tasks that the data set itself has (its `own_tasks`). With `extend_from`, task 0 is what the
    model knows and these tasks come after it.

    Raises:
        InputError: what `nest_jax.tasks.parse` or `nest_jax.extension.protocol` finds wrong.
    """
    dataset = plugins.load("datasets", config.dataset.name)
    own = _named_protocol(config, dataset) if config.tasks.name != OWN_TASKS else _own_protocol(config, dataset)
    known = dataset.known(config.dataset) if hasattr(dataset, "known") else ()
    if config.extend_from:
        from nest_jax import extension

        return extension.protocol(own, config.extend_from, known)
    if known:
        raise InputError(
            f"known: {', '.join(known)}: classes of a model to extend, but there is none; give it by --config.extend_from=WORKDIR"
        )
    return own


def _own_protocol(config: Config, dataset: ModuleType) -> tasks.Protocol:
    if not hasattr(dataset, "own_tasks"):
        name = config.dataset.name
        raise InputError(
            f"tasks.name={OWN_TASKS!r}: the data set {name} has no tasks of its own; examples: {tasks.EXAMPLES}"
        )
    if config.tasks.order != "natural" or len(config.tasks.classes):
        raise InputError(
            f"tasks.order and tasks.classes have no place beside tasks.name={OWN_TASKS!r}: the data set says which classes come when"
        )
    own = dataset.own_tasks(config.dataset)
    everything = tasks.parse("offline", setting=config.tasks.setting, class_names=dataset.classes(config.dataset))
    return dataclasses.replace(everything, tasks=own)


def _named_protocol(config: Config, dataset: ModuleType) -> tasks.Protocol:
    return tasks.parse(
        config.tasks.name,
        setting=config.tasks.setting,
        order=config.tasks.order,
        class_names=dataset.classes(config.dataset),
        classes=config.tasks.classes,
        orders=dataset.class_orders() if hasattr(dataset, "class_orders") else None,
    )


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
