"""The YAML file of `folder.py`: what it may say, and everything that is wrong with it in one message. Images are not looked at.

docs/your_own_data.md explains the keys; configs/folder.yaml is a template.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nest_jax.errors import InputError
from nest_jax.tasks import VOID

KEYS = ("classes", "tasks", "encoding", "background", "void", "unlisted", "known", "train", "val")
SPLIT_KEYS = {"train": ("images", "masks", "list"), "val": ("images", "masks", "list", "fraction")}
ENCODINGS = ("index", "colours", "files")
UNLISTED = ("error", "background", "void")
CLASS = "{class}"  # in mask globs: stands for a class's name

# What a class is in the masks: a number (index), three (colours), or the word that stands for `{class}` (files).
Value = int | tuple[int, int, int] | str
FORMS = {"index": "a number 0 to 255", "colours": "three numbers 0 to 255: [red, green, blue]", "files": "a word"}


@dataclasses.dataclass(frozen=True)
class Files:
    """Where the images and masks of a split lie: globs, and the file that lists names ("" where all that match belong)."""

    images: tuple[str, ...]
    masks: tuple[str, ...]
    listed: str = ""


@dataclasses.dataclass(frozen=True)
class Description:
    """A data set as its YAML file describes it.

    Attributes:
        classes: names by label: "background", those to learn, then the known ones.
        tasks: labels by task; () where the file has no `tasks`.
        known: names of classes that the model to extend knows already: in the masks, to be evaluated, never learnt.
        values: label -> what it is in the masks; 0 background and 255 void where they are something.
        unlisted: what becomes of values that no class has: an "error", "background" or "void".
        train, val: val's globs are train's where it has none of its own.
        fraction: of the training images that become val; 0 where `val` says which.
    """

    file: Path
    classes: tuple[str, ...]
    tasks: tuple[tuple[int, ...], ...]
    known: tuple[str, ...]
    encoding: str
    values: Mapping[int, Value]
    unlisted: str
    train: Files
    val: Files
    fraction: float

    @property
    def folder(self) -> Path:
        """What relative paths are relative to."""
        return self.file.parent


def read(file: Path) -> Description:
    """The description in `file`.

    Raises:
        InputError: no such file, not YAML (with the line), or what it says is wrong: all problems, by key.
    """
    file = file.expanduser().absolute()
    problems: list[str] = []
    document = _document(file, problems)
    _known_keys("", document, KEYS, problems)
    encoding = _choice(document, "encoding", ENCODINGS, problems)
    learnt = _classes(document, "classes", encoding, problems)
    known = _classes(document, "known", encoding, problems, first=len(learnt) + 1)
    names = ("background", *(name for name, _ in learnt), *(name for name, _ in known))
    for name in sorted({name for name in names if names.count(name) > 1} - {"background"}):
        problems.append(f"classes: {name!r} is given twice" + (" (in classes and known)" if known else ""))
    if len(names) > VOID:
        problems.append(f"classes: {len(names) - 1} classes do not fit masks of 8 bits; at most {VOID - 1}")
    values = _values(document, encoding, learnt, known, problems)
    description = Description(
        file=file,
        classes=names,
        tasks=_tasks(document, [name for name, _ in learnt], problems),
        known=tuple(name for name, _ in known),
        encoding=encoding,
        values=values,
        unlisted=_choice(document, "unlisted", UNLISTED, problems),
        train=(train := _files(document, "train", encoding, None, problems)),
        val=_files(document, "val", encoding, train, problems),
        fraction=_fraction(document, problems),
    )
    if problems:
        raise InputError(report(f"{file}", problems))
    return description


def report(subject: str, problems: Sequence[str]) -> str:
    """`subject: 2 problems`, then one a line."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{subject}: {count}", *(f"    {line}" for line in problems)])


# --------------------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys; here they are a problem, with both lines."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            key = tuple(key) if isinstance(key, list) else key
            if isinstance(key, dict):
                continue  # unhashable; PyYAML says so
            if key in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"{key!r} is given twice (first in line {lines[key]})", problem_mark=key_node.start_mark
                )
            lines[key] = line
        return super().construct_mapping(node, deep)


def _document(file: Path, problems: list[str]) -> dict:
    try:
        document = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise InputError(f"dataset.file={file}: no such file; configs/folder.yaml is a template") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"dataset.file={file}: cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{file}{at}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{file}: not YAML: {error}") from None
    if not isinstance(document, dict):
        raise InputError(f"{file}: not a mapping; it needs the keys {', '.join(KEYS)}")
    for key in ("classes", "train", "val"):
        if document.get(key) is None:
            problems.append(f"{key} is missing" + (" or empty" if key in document else ""))
    return document


def _known_keys(section: str, found: Mapping, keys: Iterable[str], problems: list[str]) -> None:
    for key in found:
        if key not in (keys := list(keys)):
            near = difflib.get_close_matches(str(key), keys, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            problems.append(f"{section}{key}: no such key{hint} keys: {', '.join(keys)}")


def _choice(document: Mapping, key: str, choices: tuple[str, ...], problems: list[str]) -> str:
    """The value of `key`, or the first choice."""
    value = document.get(key, choices[0])
    if value in choices:
        return value
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    problems.append(f"{key}: unknown value {value!r};{hint} choices: {', '.join(choices)}")
    return choices[0]


# ------------------------------------------------------------------------------------------------------------ classes and tasks


def _classes(document: Mapping, key: str, encoding: str, problems: list[str], first: int = 1) -> list[tuple[str, Any]]:
    """Names with what the file says they are in the masks."""
    given = document.get(key)
    if given is None:
        return []
    if isinstance(given, list) and encoding == "colours":
        problems.append(f"{key}: a list; with encoding colours every class needs its colour: NAME: [red, green, blue]")
        pairs = [(name, None) for name in given]
    elif isinstance(given, list):
        pairs = [(name, name if encoding == "files" else label) for label, name in enumerate(given, first)]
    elif isinstance(given, dict):
        pairs = list(given.items())
        problems.extend(f"{key}.{name}: {FORMS[encoding]} is missing" for name, value in pairs if value is None)
    else:
        problems.append(f"{key}: {given!r} is neither a list of names nor a mapping from names to {FORMS[encoding]}")
        return []
    if not pairs:
        problems.append(f"{key} is empty")
    for name, _ in pairs:
        if not isinstance(name, str):
            problems.append(f"{key}: {name!r} is not text; put quotes around it")
        elif name == "background":
            problems.append(f"{key}: 'background' is class 0 always; leave it out (key background says what it is)")
    return [(str(name), value) for name, value in pairs]


def _values(
    document: Mapping,
    encoding: str,
    learnt: Sequence[tuple[str, Any]],
    known: Sequence[tuple[str, Any]],
    problems: list[str],
) -> dict[int, Value]:
    """What every label is in the masks."""
    background, void = {"index": (0, VOID), "colours": ([0, 0, 0], None), "files": (None, None)}[encoding]
    background, void = document.get("background", background), document.get("void", void)
    if encoding == "files" and background is not None:
        problems.append("background: with encoding files it is what no class's file covers; leave the key out")
        background = None
    keys = [*(f"classes.{name}" for name, _ in learnt), *(f"known.{name}" for name, _ in known)]
    wanted = [("background", 0, background), ("void", VOID, void)]
    wanted += [
        (key, label, value) for label, (key, (_, value)) in enumerate(zip(keys, [*learnt, *known], strict=True), 1)
    ]
    values: dict[int, Value] = {}
    owners: dict[Value, str] = {}
    for key, label, given in wanted:
        if given is None:
            continue
        value = _value(given, encoding)
        if value is None:
            problems.append(f"{key}: {given!r} is not {FORMS[encoding]}")
            continue
        if value in owners:
            problems.append(f"{key}: {given!r} is {owners[value]} already")
        values[label] = value
        owners.setdefault(value, key)
    return values


def _value(given: Any, encoding: str) -> Value | None:
    """None where it is not of the encoding's form."""
    if encoding == "files":
        return given if isinstance(given, str) and given else None
    parts = given if encoding == "colours" and isinstance(given, list) else [given]
    fits = all(isinstance(part, int) and not isinstance(part, bool) and 0 <= part <= 255 for part in parts)
    if not fits or len(parts) != (3 if encoding == "colours" else 1):
        return None
    return (parts[0], parts[1], parts[2]) if encoding == "colours" else parts[0]


def _tasks(document: Mapping, names: list[str], problems: list[str]) -> tuple[tuple[int, ...], ...]:
    given = document.get("tasks")
    if given is None:
        return ()
    if not isinstance(given, list) or not given:
        problems.append(f"tasks: {given!r} is not a list of tasks such as [[{', '.join(names[:2])}], ...]")
        return ()
    tasks, first = [], {}
    for number, task in enumerate(given):
        if not isinstance(task, list) or not task:
            problems.append(f"tasks, task {number}: {task!r} is not a list of classes such as [{', '.join(names[:2])}]")
            continue
        labels = []
        for name in task:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, n=1)
                hint = f" did you mean {near[0]!r}?" if near else ""
                problems.append(f"tasks, task {number}: no class {name!r};{hint} classes: {', '.join(names)}")
                continue
            if name in first:
                problems.append(f"tasks, task {number}: {name!r} is learnt in task {first[name]} already")
            first.setdefault(name, number)
            labels.append(1 + names.index(name))
        tasks.append(tuple(labels))
    if missing := [name for name in names if name not in first]:
        problems.append(f"tasks: {', '.join(missing)}: in classes, but in no task")
    return tuple(tasks)


# ------------------------------------------------------------------------------------------------------------------------ files


def _files(document: Mapping, split: str, encoding: str, default: Files | None, problems: list[str]) -> Files:
    """The globs of a split. `default` has those of a split that says nothing of its own."""
    given = document.get(split)
    nothing = Files((), ())
    if given is None:
        return nothing
    if not isinstance(given, dict):
        problems.append(f"{split}: {given!r} is not a mapping with the keys {', '.join(SPLIT_KEYS[split])}")
        return nothing
    _known_keys(f"{split}.", given, SPLIT_KEYS[split], problems)
    globs = {key: _globs(f"{split}.{key}", given[key], problems) for key in ("images", "masks") if key in given}
    for pattern in globs.get("masks", ()):
        if (CLASS in pattern) != (encoding == "files"):
            rule = "needs" if encoding == "files" else "has"
            problems.append(f"{split}.masks: {pattern!r} {rule} {CLASS}, with encoding {encoding}")
    listed = given.get("list", "")
    if not isinstance(listed, str):
        problems.append(f"{split}.list: {listed!r} is not the path of a text file")
        listed = ""
    if default is None or globs:
        missing = [key for key in ("images", "masks") if key not in globs]
        problems.extend(f"{split}.{key} is missing" for key in missing)
        return nothing if missing else Files(globs["images"], globs["masks"], listed)
    if not listed and "fraction" not in given:
        problems.append(f"{split}: needs images and masks, or a list, or a fraction of the training images")
    return dataclasses.replace(default, listed=listed)


def _globs(key: str, given: object, problems: list[str]) -> tuple[str, ...]:
    patterns = given if isinstance(given, list) else [given]
    wrong = [pattern for pattern in patterns if not isinstance(pattern, str) or not pattern]
    if wrong or not patterns:
        problems.append(f"{key}: {wrong[0] if wrong else given!r} is not a glob such as {key.split('.')[1]}/*.png")
    return tuple(pattern for pattern in patterns if isinstance(pattern, str))


def _fraction(document: Mapping, problems: list[str]) -> float:
    val = document.get("val")
    if not isinstance(val, dict) or "fraction" not in val:
        return 0.0
    fraction = val["fraction"]
    if others := [key for key in ("images", "masks", "list") if key in val]:
        problems.append(f"val.fraction: it takes training images, so val.{others[0]} has no place beside it")
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        problems.append(f"val.fraction: {fraction!r} is not a number between 0 and 1")
        return 0.0
    return float(fraction)
