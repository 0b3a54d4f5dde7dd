"""Protocols against the published image lists, label tables by hand, and what a user can get wrong."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from nest_jax import tasks
from nest_jax.datasets import voc2012
from nest_jax.errors import InputError

GOLDEN = pathlib.Path(__file__).parent / "golden" / "protocol.npz"
CLASSES = voc2012.CLASSES
ANIMALS = ("cat", "cow", "dog", "horse", "person", "sheep")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def presence_of(golden: dict[str, np.ndarray], data_set: str, split: str) -> np.ndarray:
    """bool [images, classes]; column 0 is True everywhere, so that a function which looks at it goes wrong."""
    images, classes = golden[f"{data_set}/{split}/shape"]
    rows = np.unpackbits(golden[f"{data_set}/{split}/presence"], axis=1, count=images).astype(bool)
    return np.concatenate([np.ones((images, 1), bool), rows.T], axis=1).reshape(images, classes)


def lists() -> list[str]:
    with np.load(GOLDEN) as file:
        return sorted(key.removeprefix("list/") for key in file if key.startswith("list/"))


def test_lists_of_both_data_sets_and_settings_are_there() -> None:
    assert len(lists()) == 69
    assert {key.rsplit("/", 1)[0] for key in lists()} == {
        "voc/15-1/overlapped",
        "voc/15-1/disjoint",
        "voc/15-5/overlapped",
        "ade/100-5/overlapped",
        "ade/100-50/overlapped",
    }


@pytest.mark.parametrize("key", lists())
def test_published_lists(golden: dict[str, np.ndarray], key: str) -> None:
    data_set, name, setting, part = key.split("/")
    kind, task = part.rsplit("-", 1)
    presence = presence_of(golden, data_set, "train" if kind == "train" else "val")
    protocol = tasks.parse(name, presence.shape[1] - 1, setting)
    rule = {"train": tasks.train_indices, "val": tasks.val_indices, "test_on_val": tasks.test_indices}[kind]
    expected = np.flatnonzero(np.unpackbits(golden["list/" + key], count=len(presence)))
    np.testing.assert_array_equal(rule(presence, protocol, int(task)), expected)


@pytest.mark.parametrize(
    ("data_set", "name", "setting", "order", "sizes"),
    [  # published numbers of training images (methods without published lists here)
        ("voc", "15-5", "disjoint", "natural", (8437, 2145)),
        ("voc", "19-1", "overlapped", "natural", (10410, 548)),
        ("voc", "19-1", "disjoint", "natural", (10034, 548)),
        ("voc", "5-3", "overlapped", "natural", (2836, 2331, 1542, 2095, 4484, 1468)),
        ("voc", "10-1", "overlapped", "natural", (6139, 528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548)),
        ("voc", "10-1", "disjoint", "natural", (3706, 188, 868, 227, 201, 3247, 378, 299, 420, 500, 548)),
        ("voc", "15-1", "overlapped", "A", (9568, 487, 299, 491, 500, 548)),
        ("voc", "15-1", "overlapped", "B", (9277, 299, 698, 385, 491, 264)),
        ("voc", "15-1", "overlapped", "D", (9610, 385, 654, 444, 1081, 461)),
        ("voc", "offline", "overlapped", "natural", (10582,)),
        ("ade", "100-10", "overlapped", "natural", (20192, 1710, 2294, 2747, 4279, 2844)),
        ("ade", "50-50", "overlapped", "natural", (20177, 13186, 9390)),
    ],
)
def test_published_sizes(
    golden: dict[str, np.ndarray], data_set: str, name: str, setting: str, order: str, sizes: tuple[int, ...]
) -> None:
    presence = presence_of(golden, data_set, "train")
    protocol = tasks.parse(name, presence.shape[1] - 1, setting, order)
    assert tuple(len(tasks.train_indices(presence, protocol, t)) for t in range(len(protocol))) == sizes


@pytest.mark.parametrize(
    ("name", "count", "sizes"),
    [
        ("15-1", 20, [15, 1, 1, 1, 1, 1]),
        ("10-1", 20, [10] + [1] * 10),
        ("5-3", 20, [5] * 1 + [3] * 5),
        ("19-1", 20, [19, 1]),
        ("100-50", 150, [100, 50]),
        ("100-5", 150, [100] + [5] * 10),
        ("50-50", 150, [50, 50, 50]),
        ("80-91", 171, [80, 91]),
        ("3-1", 6, [3, 1, 1, 1]),
        ("2-2", 6, [2, 2, 2]),
        ("15-2", 20, [15, 2, 2, 1]),  # the last task takes what is left
        ("offline", 7, [7]),
        ("200-54", 254, [200, 54]),
    ],
)
def test_names(name: str, count: int, sizes: list[int]) -> None:
    protocol = tasks.parse(name, count)
    assert [len(task) for task in protocol.tasks] == sizes
    assert [c for task in protocol.tasks for c in task] == list(range(1, count + 1))
    assert protocol.num_classes == count


def test_old_new_seen() -> None:
    protocol = tasks.parse("3-2", 6, order=(6, 1, 3, 2, 5, 4))
    assert protocol.tasks == ((6, 1, 3), (2, 5), (4,))
    assert [protocol.old(t) for t in range(3)] == [(), (0, 6, 1, 3), (0, 6, 1, 3, 2, 5)]
    assert [protocol.new(t) for t in range(3)] == [(6, 1, 3), (2, 5), (4,)]
    assert [protocol.seen(t) for t in range(3)] == [(0, 6, 1, 3), (0, 6, 1, 3, 2, 5), (0, 6, 1, 3, 2, 5, 4)]
    assert [protocol.future(t) for t in range(3)] == [(2, 5, 4), (4,), ()]


@pytest.mark.parametrize(
    ("order", "new"),
    [
        ("A", (16, 17, 18, 19, 20)),
        ("B", (17, 3, 6, 18, 10)),
        ("C", (12, 14, 6, 1, 2)),
        ("D", (6, 5, 13, 9, 4)),
        ("E", (15, 18, 6, 11, 20)),
    ],
)
def test_published_orders(order: str, new: tuple[int, ...]) -> None:
    protocol = tasks.parse("15-1", 20, order=order)
    assert protocol.tasks[0] == tuple(sorted(set(range(1, 21)) - set(new)))
    assert protocol.tasks[1:] == tuple((c,) for c in new)
    assert voc2012.class_orders()[order] == protocol.seen(5)[1:]


def test_orders_by_name_string_and_of_other_data_sets() -> None:
    assert tasks.parse("1-1", order="3,1,2", num_classes=3).tasks == ((3,), (1,), (2,))
    names = ("background", "a", "b", "c")
    assert tasks.parse("1-1", order=["c", "a", "b"], class_names=names).tasks == ((3,), (1,), (2,))
    assert tasks.parse("1-2", 3, order="mine", orders={"mine": (2, 3, 1)}).tasks == ((2,), (3, 1))


def test_tables() -> None:
    protocol = tasks.parse("2-1", 4, order=(3, 1, 4, 2))  # tasks (3, 1), (4,), (2,)
    np.testing.assert_array_equal(tasks.train_table(protocol, 0)[:5], [0, 2, 0, 1, 0])
    np.testing.assert_array_equal(tasks.train_table(protocol, 1)[:5], [0, 0, 0, 0, 3])
    np.testing.assert_array_equal(tasks.train_table(protocol, 2)[:5], [0, 0, 4, 0, 0])
    np.testing.assert_array_equal(tasks.test_table(protocol, 1)[:5], [0, 2, 0, 1, 3])
    np.testing.assert_array_equal(tasks.test_table(protocol, 2)[:5], [0, 2, 4, 1, 3])
    for table in (tasks.train_table, tasks.test_table):
        for task in range(3):
            assert table(protocol, task).shape == (256,)
            assert table(protocol, task).dtype == np.uint8
            assert (table(protocol, task)[5:] == 255).all()


def test_disjoint_hides_the_future_only() -> None:
    presence = np.zeros((5, 5), bool)
    for row, classes in enumerate([(1,), (1, 2), (1, 3), (2, 3), (4,)]):
        presence[row, list(classes)] = True
    protocol = tasks.parse("1-1", 4, "disjoint")
    assert [tasks.train_indices(presence, protocol, t).tolist() for t in range(4)] == [[0], [1], [2, 3], [4]]
    assert [tasks.test_indices(presence, protocol, t).tolist() for t in range(4)] == [
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
    ]


def test_animals_are_all_there_is() -> None:
    protocol = tasks.parse("3-1", classes=ANIMALS, class_names=CLASSES)
    assert protocol.tasks == ((8, 10, 12), (13,), (15,), (17,))
    assert protocol.num_classes == 6
    expected = np.full(256, 255, np.uint8)
    expected[:21] = 0
    np.testing.assert_array_equal(np.flatnonzero(tasks.train_table(protocol, 1) != expected), [13])
    assert tasks.train_table(protocol, 1)[13] == 4
    expected[[8, 10, 12, 13, 15, 17]] = range(1, 7)
    np.testing.assert_array_equal(tasks.test_table(protocol, 3), expected)
    by_number = tasks.parse("2-2", 20, classes="8,10,12,13,15,17", class_names=CLASSES)
    assert by_number.tasks == ((8, 10), (12, 13), (15, 17))
    reordered = tasks.parse("2-2", order="sheep,person,horse,dog,cow,cat", classes=ANIMALS, class_names=CLASSES)
    assert reordered.tasks == ((17, 15), (13, 12), (10, 8))


def test_animals_disjoint_ignores_what_is_not_learnt() -> None:
    presence = np.zeros((3, 21), bool)
    presence[0, [8, 20]] = True  # a cat and a television: the latter is background
    presence[1, [8, 13]] = True  # a cat and a future horse
    presence[2, [20]] = True
    protocol = tasks.parse("3-1", setting="disjoint", classes=ANIMALS, class_names=CLASSES)
    assert tasks.train_indices(presence, protocol, 0).tolist() == [0]
    assert tasks.test_indices(presence, protocol, 3).tolist() == [0, 1]


def test_void_other_and_background_shift_of_a_wide_protocol() -> None:
    protocol = tasks.parse("100-50", 150)
    np.testing.assert_array_equal(tasks.test_table(protocol, 1)[:151], range(151))
    np.testing.assert_array_equal(tasks.train_table(protocol, 1)[:101], np.zeros(101))
    np.testing.assert_array_equal(tasks.train_table(protocol, 1)[101:151], range(101, 151))
    assert (tasks.test_table(protocol, 1)[151:] == 255).all()


def test_an_empty_task_is_named() -> None:
    presence = np.zeros((4, 21), bool)
    presence[:, 1:16] = True
    protocol = tasks.parse("15-5", class_names=CLASSES)
    assert len(tasks.train_indices(presence, protocol, 0)) == 4
    with pytest.raises(InputError, match=r"task 1 .*4 images.*16 \(pottedplant\), 17 \(sheep\), .* 20 \(tvmonitor\)"):
        tasks.train_indices(presence, protocol, 1)
    assert tasks.val_indices(presence, protocol, 1).size == 0
    presence[:, 16] = True
    with pytest.raises(InputError, match="task 0 .*without any class of a later task"):
        tasks.train_indices(presence, tasks.parse("15-5", 20, "disjoint"), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "15"}, r"'15' is not of the form BASE-INCREMENT or offline; examples: 15-1"),
        ({"name": "15-0"}, "'15-0' is not of the form"),
        ({"name": "15-5s"}, "'15-5s' is not of the form"),
        ({"name": "20-1"}, "needs at least 20 \\+ 1 = 21 classes, there are 20"),
        ({"name": "15-10"}, "needs at least 15 \\+ 10 = 25 classes"),
        ({"setting": "overlap"}, "tasks.setting: unknown value 'overlap'; did you mean 'overlapped'\\?"),
        ({"order": "F"}, "tasks.order: unknown value 'F'.*natural, A, B, C, D, E"),
        ({"order": (1, 2, 3)}, r"not a permutation.*lacks 4 \(boat\)"),
        ({"order": (*range(1, 21), 20)}, r"named more than once: 20 \(tvmonitor\)"),
        ({"order": range(21)}, "no class 0; a class is a number 1 to 20"),
        ({"order": "B", "classes": ANIMALS, "name": "3-1"}, "'B' orders 20 classes, this protocol learns 6"),
        (
            {"order": "cat,cow,dog,horse,person,bird", "classes": ANIMALS, "name": "3-1"},
            r"lacks 17 \(sheep\); has 3 \(",
        ),
        ({"classes": ("cat", "catt")}, "tasks.classes: no class 'catt'; .*aeroplane, bicycle"),
        ({"classes": ("background", "cat")}, "tasks.classes: no class 'background'"),
        ({"classes": (8, "cat", 9)}, r"more than once: 8 \(cat\)"),
        ({"num_classes": 255, "class_names": ()}, "number of classes: 255"),
    ],
)
def test_what_does_not_fit(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tasks.parse(**{"name": "15-1", "class_names": CLASSES, **arguments})


def test_describe() -> None:
    protocol = tasks.parse("3-1", classes=ANIMALS, class_names=CLASSES)
    assert tasks.describe(protocol, CLASSES).splitlines() == [
        "task 0: 3 classes: cat, cow, dog",
        "task 1: 1 class: horse",
        "task 2: 1 class: person",
        "task 3: 1 class: sheep",
    ]
    presence = np.ones((2, 21), bool)
    assert tasks.describe(protocol, presence=presence).splitlines()[1] == "task 1: 1 class, 2 images: horse"
    wide = tasks.describe(tasks.parse("100-50", 150))
    assert wide.splitlines()[1] == "task 1: 50 classes: 101, 102, 103, 104, 105, 106, 107, 108, ..., 150"
