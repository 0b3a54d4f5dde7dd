"""Methods, initialisations, backbones, decoders and data sets are modules; this finds them by name."""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from nest_jax.errors import InputError

KINDS = ("methods", "classifier_init", "backbones", "decoders", "datasets")
# A plug-in's section of the config. A ConfigDict is a Mapping in all but name.
Settings = Mapping[str, Any] | ConfigDict


@cache
def modules(kind: str) -> dict[str, ModuleType]:
    """Every plug-in of a kind, by the names it serves (`NAMES`, or else the module's own name)."""
    package = importlib.import_module(f"nest_jax.{kind}")
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"nest_jax.{kind}.{info.name}")
        for name in getattr(module, "NAMES", (info.name,)):
            found[name] = module
    return found


def names(kind: str) -> list[str]:
    """The names that `load` knows, sorted."""
    return sorted(modules(kind))


def load(kind: str, name: str) -> ModuleType:
    """The module that serves `name`.

    Raises:
        InputError: no plug-in of this kind has the name; the message lists those that exist.
    """
    if name not in modules(kind):
        raise InputError(unknown(kind, name, names(kind)))
    return modules(kind)[name]


def unknown(what: str, value: object, choices: Iterable[str]) -> str:
    """`what: unknown value 'x'; did you mean 'y'? Choices: ...`"""
    choices = list(choices)
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return f"{what}: unknown value {value!r};{hint} choices: {', '.join(choices)}"
