"""Task protocols: "15-1" -> which classes come when, which images each task sees, which labels they keep. Pure numpy.

A *task* is one increment of classes; task 0 is the base. A raw class is a label value of the masks (0 background, 255 void).
A network that has learnt task t has one output per entry of `Protocol.seen(t)`, in that order; the tables map raw labels to it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt8

from nest_jax.errors import InputError
from nest_jax.plugins import unknown

VOID = 255
SETTINGS = ("overlapped", "disjoint")
EXAMPLES = "15-1, 10-1, 15-5, 19-1, 5-3 (VOC), 100-50, 100-10, 100-5, 50-50 (ADE20K), 80-91 (COCO-Stuff), offline"


def _base_then(*new: int) -> tuple[int, ...]:
    """All 20 VOC classes: those not named in natural order, then the named ones."""
    return (*(c for c in range(1, 21) if c not in new), *new)


# The five class orders of VOC 15-1 (NeST, eq. 14 and table 7) name only the new classes; the base keeps the natural order.
VOC_ORDERS: dict[str, tuple[int, ...]] = {
    "A": _base_then(16, 17, 18, 19, 20),
    "B": _base_then(17, 3, 6, 18, 10),
    "C": _base_then(12, 14, 6, 1, 2),
    "D": _base_then(6, 5, 13, 9, 4),
    "E": _base_then(15, 18, 6, 11, 20),
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Which raw classes are learnt in which task.

    Attributes:
        tasks: the new raw classes of every task, in learnt order; background (0) is not listed.
        setting: "overlapped" or "disjoint".
        raw_classes: how many classes the masks hold, background excluded. Those that no task lists count as background.
        class_names: name by raw class, background first; () where unknown. Used in messages only.
    """

    tasks: tuple[tuple[int, ...], ...]
    setting: str
    raw_classes: int
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of tasks."""
        return len(self.tasks)

    @property
    def num_classes(self) -> int:
        """Classes learnt over all tasks, background excluded."""
        return sum(len(task) for task in self.tasks)

    def new(self, task: int) -> tuple[int, ...]:
        """Raw classes that come with `task`; never background."""
        return self.tasks[task]

    def old(self, task: int) -> tuple[int, ...]:
        """Raw classes that the previous task's model knows, background first; () for task 0, which has no previous model."""
        return self.seen(task - 1) if task > 0 else ()

    def seen(self, task: int) -> tuple[int, ...]:
        """Background and all raw classes up to and including `task`, in learnt order: the outputs of its model."""
        return (0, *(c for classes in self.tasks[: task + 1] for c in classes))

    def future(self, task: int) -> tuple[int, ...]:
        """Raw classes that come after `task`."""
        return tuple(c for classes in self.tasks[task + 1 :] for c in classes)


def parse(
    name: str,
    num_classes: int | None = None,
    setting: str = "overlapped",
    order: str | Sequence[int | str] = "natural",
    class_names: Sequence[str] = (),
    *,
    classes: str | Sequence[int | str] = (),
    orders: Mapping[str, Sequence[int]] | None = None,
) -> Protocol:
    """The protocol called `name`: "BASE-INCREMENT" classes, or "offline" (everything in one task).

    At least one whole increment must fit. If the increments do not use up the classes evenly, the last task takes the
    few that are left ("15-2" on 20 classes: 15, 2, 2, 1).

    Args:
        name: for example "15-1": 15 classes first, then one at a time.
        num_classes: classes of the data set, background excluded; left out, `class_names` tells.
        setting: "overlapped" or "disjoint", see `train_indices`.
        order: "natural" (of `classes`, where given); a key of `orders`; or every class to learn, once: raw numbers or
            names, as a sequence or as one string with commas.
        class_names: name by raw class; `class_names[0]` is background.
        classes: learn only these raw classes (numbers or names, sequence or string with commas), in this order. All others
            are background in training and test. Empty: all of them.
        orders: named class orders of the data set, default the published ones of VOC (A to E; they need its 20 classes).

    Raises:
        InputError: a name, number, setting, class or order that does not fit.
    """
    if num_classes is None:
        if not class_names:
            raise ValueError("parse needs num_classes or class_names")
        num_classes = len(class_names) - 1
    if class_names and len(class_names) != num_classes + 1:
        raise ValueError(f"{len(class_names)} class names, background included, for {num_classes} classes")
    if not 1 <= num_classes < VOID:
        raise InputError(f"number of classes: {num_classes} does not fit masks of 8 bits; it must be 1 to {VOID - 1}")
    if setting not in SETTINGS:
        raise InputError(unknown("tasks.setting", setting, SETTINGS))

    learnt = tuple(range(1, num_classes + 1))
    if len(classes):
        learnt = _class_list("tasks.classes", classes, num_classes, class_names)
    learnt = _ordered(order, learnt, num_classes, class_names, VOC_ORDERS if orders is None else orders)

    tasks, begin = [], 0
    for count in _sizes(name, len(learnt)):
        tasks.append(learnt[begin : begin + count])
        begin += count
    return Protocol(tuple(tasks), setting, num_classes, tuple(class_names))


def _sizes(name: str, count: int) -> list[int]:
    """Classes per task."""
    if name == "offline":
        return [count]
    match = re.fullmatch(r"([1-9][0-9]*)-([1-9][0-9]*)", name)
    if not match:
        raise InputError(f"tasks.name: {name!r} is not of the form BASE-INCREMENT or offline; examples: {EXAMPLES}")
    base, increment = int(match[1]), int(match[2])
    if base + increment > count:
        raise InputError(
            f"tasks.name: {name!r} needs at least {base} + {increment} = {base + increment} classes, there are {count}; "
            f"examples: {EXAMPLES}"
        )
    return [base, *(min(increment, count - begin) for begin in range(base, count, increment))]


def _items(value: str | Sequence[int | str]) -> list[int | str]:
    return [item.strip() for item in value.split(",")] if isinstance(value, str) else list(value)


def _class_list(
    key: str, value: str | Sequence[int | str], num_classes: int, class_names: Sequence[str]
) -> tuple[int, ...]:
    """Raw numbers of classes given by number or name, each at most once."""
    found, wrong = [], []
    for item in _items(value):
        if isinstance(item, str) and item in class_names[1:]:
            found.append(class_names.index(item, 1))
        elif re.fullmatch("[0-9]+", str(item)) and 1 <= int(item) <= num_classes:
            found.append(int(item))
        else:
            wrong.append(item)
    if wrong:
        named = f" or a name: {', '.join(class_names[1:])}" if class_names else ""
        raise InputError(
            f"{key}: no class {', '.join(map(repr, wrong))}; a class is a number 1 to {num_classes}{named}"
        )
    twice = sorted({c for c in found if found.count(c) > 1})
    if twice:
        raise InputError(f"{key}: named more than once: {_names(twice, class_names)}")
    return tuple(found)


def _ordered(
    order: str | Sequence[int | str],
    learnt: tuple[int, ...],
    num_classes: int,
    class_names: Sequence[str],
    orders: Mapping[str, Sequence[int]],
) -> tuple[int, ...]:
    """`learnt`, rearranged."""
    if order == "natural":
        return learnt
    if isinstance(order, str) and order in orders:
        chosen = tuple(orders[order])
        if set(chosen) != set(learnt):
            raise InputError(
                f"tasks.order: {order!r} orders {len(chosen)} classes, this protocol learns {len(learnt)} classes; "
                "use natural, or list every class once"
            )
        return chosen
    if isinstance(order, str) and "," not in order and num_classes > 1:
        raise InputError(unknown("tasks.order", order, ["natural", *orders]) + ", or every class once, as 3,1,2")
    chosen = _class_list("tasks.order", order, num_classes, class_names)
    missing, extra = [c for c in learnt if c not in chosen], [c for c in chosen if c not in learnt]
    if missing or extra:
        parts = [f"lacks {_names(missing, class_names)}"] if missing else []
        parts += [f"has {_names(extra, class_names)}, not to be learnt" if extra else ""]
        raise InputError(f"tasks.order: not a permutation of the classes to learn: {'; '.join(filter(None, parts))}")
    return chosen


def _names(classes: Sequence[int], class_names: Sequence[str]) -> str:
    """`16 (pottedplant), 17 (sheep)`, or numbers only."""
    return ", ".join(f"{c} ({class_names[c]})" if class_names else str(c) for c in classes)


def _contains(presence: Bool[np.ndarray, "images classes"], classes: Sequence[int]) -> Bool[np.ndarray, " images"]:
    return np.asarray(np.asarray(presence, bool)[:, list(classes)].any(axis=1))


def train_indices(
    presence: Bool[np.ndarray, "images classes"], protocol: Protocol, task: int
) -> Int[np.ndarray, " chosen"]:
    """Training images of `task`, ascending.

    overlapped: at least one pixel of a class new in `task`. disjoint: moreover no pixel of a class that comes later.
    Column 0 of `presence` is not looked at; classes that no task lists count as background.

    Raises:
        InputError: no image is left; the message names the task and its classes.
    """
    chosen = _contains(presence, protocol.new(task))
    if protocol.setting == "disjoint":
        chosen &= ~_contains(presence, protocol.future(task))
    if not chosen.any():
        raise InputError(
            f"task {task} ({protocol.setting}) has no training image: none of the {len(presence)} images shows "
            f"{_names(protocol.new(task), protocol.class_names)}"
            + (" without any class of a later task" if protocol.setting == "disjoint" else "")
        )
    return np.flatnonzero(chosen)


def val_indices(
    presence: Bool[np.ndarray, "images classes"], protocol: Protocol, task: int
) -> Int[np.ndarray, " chosen"]:
    """Images with at least one class new in `task`, ascending; may be empty. The same in both settings."""
    return np.flatnonzero(_contains(presence, protocol.new(task)))


def test_indices(
    presence: Bool[np.ndarray, "images classes"], protocol: Protocol, task: int
) -> Int[np.ndarray, " chosen"]:
    """Images with at least one class learnt up to and including `task`, ascending; may be empty. The same in both settings."""
    return np.flatnonzero(_contains(presence, protocol.seen(task)[1:]))


test_indices.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it where it is imported


def train_table(protocol: Protocol, task: int) -> UInt8[np.ndarray, " 256"]:
    """Raw label -> training target of `task`: an index into `seen(task)` for its new classes.

    Background, old, future and unlisted classes become 0: this is the background shift. Void stays 255, and so become
    label values that are no class. (The rule of the NeST, PLOP and RCIL code; the original MiB turns void into background.)
    ADE20K's label 0, "other", is background.
    """
    return _table(protocol, protocol.seen(task), protocol.new(task))


def test_table(protocol: Protocol, task: int) -> UInt8[np.ndarray, " 256"]:
    """Raw label -> test target: an index into `seen(task)`. Future and unlisted classes are background, void stays 255.

    (The rule of the NeST, PLOP and RCIL code; the original MiB does not score future classes.)
    """
    return _table(protocol, protocol.seen(task), protocol.seen(task))


test_table.__test__ = False  # type: ignore[attr-defined]


def _table(protocol: Protocol, seen: tuple[int, ...], kept: tuple[int, ...]) -> UInt8[np.ndarray, " 256"]:
    table = np.full(256, VOID, np.uint8)
    table[: protocol.raw_classes + 1] = 0
    for raw in kept:
        table[raw] = seen.index(raw)
    return table


def describe(
    protocol: Protocol,
    class_names: Sequence[str] = (),
    presence: Bool[np.ndarray, "images classes"] | None = None,
) -> str:
    """One line per task for the console: its classes and, if `presence` of the training images is given, its images."""
    class_names = tuple(class_names) or protocol.class_names
    lines = []
    for task, classes in enumerate(protocol.tasks):
        shown = [class_names[c] if class_names else str(c) for c in classes]
        if len(shown) > 20:
            shown = [*shown[:8], "...", shown[-1]]
        count = f"{len(classes)} class" + ("es" if len(classes) > 1 else "")
        images = "" if presence is None else f", {len(train_indices(presence, protocol, task))} images"
        lines.append(f"task {task}: {count}{images}: {', '.join(shown)}")
    return "\n".join(lines)
