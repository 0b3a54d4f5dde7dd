"""A user's own data: what the YAML file may say, three encodings of the same masks, and everything that can be wrong."""

import copy
import json
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import nest_jax
from nest_jax import config as configs
from nest_jax import main, validation
from nest_jax.datasets import _folder_file, _folder_pairs, folder, shapes
from nest_jax.errors import InputError

NAMES = shapes.classes({})[1:]
COLOURS = [[200, 10 * label, 0] for label in range(1, 8)]
TASKS = [["circle", "square", "dotted triangle"], ["striped circle", "striped square", "triangle", "dotted circle"]]
SIZE = 40
VOID_COLOUR = [1, 2, 3]
FILES = {"images": "images/{}/*.jpg", "index": "index/{}/*.png", "colours": "colours/{}/*.png"}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def document(encoding="index"):
    """What the YAML file of `tree` says."""
    masks = "files/{}/*-{{class}}.png" if encoding == "files" else FILES[encoding]
    splits = {split: {"images": FILES["images"].format(split), "masks": masks.format(split)} for split in folder.SPLITS}
    values = {"index": dict(zip(NAMES, range(11, 18), strict=True)), "colours": dict(zip(NAMES, COLOURS, strict=True))}
    said = {"classes": values.get(encoding, list(NAMES)), "tasks": TASKS, "encoding": encoding, **splits}
    return said | {"void": {"index": 9, "colours": VOID_COLOUR, "files": "edge"}[encoding]}


def tree(where: Path, encoding="index", train=14, val=7) -> Path:
    """Synthetic images with their masks in one encoding, and the YAML file."""
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            image, mask = shapes.draw(0, split, number, SIZE)
            save(Image.fromarray(image), where / "images" / split / f"{number:03d}.jpg")
            if encoding == "index":
                save(Image.fromarray(index_mask(mask)), where / "index" / split / f"{number:03d}.png")
            elif encoding == "colours":
                table = np.array([[0, 0, 0], *COLOURS] + [VOID_COLOUR] * 248, np.uint8)
                save(Image.fromarray(table[mask]), where / "colours" / split / f"{number:03d}.png")
            else:
                for label, word in [*enumerate(NAMES, 1), (255, "edge")]:
                    if (mask == label).any():
                        one = Image.fromarray(np.where(mask == label, np.uint8(200), np.uint8(0)))
                        save(one, where / "files" / split / f"{number:03d}-{word}.png")
    return say(where, document(encoding))


def index_mask(mask):
    return np.where(mask == 255, 9, np.where(mask > 0, mask + 10, 0)).astype(np.uint8)


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def say(where: Path, said: object) -> Path:
    (where / "data.yaml").write_text(said if isinstance(said, str) else yaml.safe_dump(said, sort_keys=False))
    return where / "data.yaml"


def load(file: Path, split="train", **settings):
    return folder.load({"file": str(file), **settings}, split)


def message(call, *arguments, **keywords) -> str:
    with pytest.raises(InputError) as error:
        call(*arguments, **keywords)
    return str(error.value)


# ----------------------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("encoding", _folder_file.ENCODINGS)
def test_three_encodings_of_the_same_masks(tmp_path, encoding):
    file = tree(tmp_path, encoding)
    for split, count in (("train", 14), ("val", 7)):
        dataset = load(file, split)
        assert dataset.classes == ("background", *NAMES) == folder.classes({"file": str(file)})
        assert dataset.names == tuple(
            f"images/{split}/{number:03d}.jpg" for number in range(count)
        )  # 000 is in both splits
        again = pickle.loads(pickle.dumps(dataset.read))
        with ThreadPoolExecutor() as pool:
            pairs = list(pool.map(again, range(count)))
        for number, (image, mask) in enumerate(pairs):
            pixels, labels = shapes.draw(0, split, number, SIZE)
            np.testing.assert_array_equal(mask, labels)
            assert (image.mode, mask.mode, image.size) == ("RGB", "L", (SIZE, SIZE))
            assert abs(np.asarray(image, int) - pixels).mean() < 20  # JPEG
            np.testing.assert_array_equal(dataset.presence[number], [(labels == c).any() for c in range(8)])


def test_a_later_class_covers_an_earlier_one(tmp_path):
    file = tree(tmp_path, "files")
    (path,) = (tmp_path / "files" / "train").glob("000-circle.png")
    save(Image.new("1", (SIZE, SIZE), 1), tmp_path / "files" / "train" / "000-triangle.png")
    mask = np.asarray(load(file).read(0)[1])
    void, later = (
        np.asarray(Image.open(tmp_path / "files" / "train" / f"000-{word}.png")) for word in ("edge", "circle")
    )
    assert set(np.unique(mask[(void == 0) & (later != 0)])) == {6}  # the triangle is listed behind the circle
    assert set(np.unique(mask[void != 0])) == {255}
    path.unlink()


def test_tasks_become_the_protocol(tmp_path):
    protocol = configs.protocol(config(tree(tmp_path)))
    assert protocol.tasks == ((1, 5, 3), (4, 2, 6, 7))
    assert protocol.class_names == ("background", *NAMES)
    loaded = config(tmp_path / "data.yaml", tasks__name="3-2")
    assert configs.protocol(loaded).tasks == ((1, 2, 3), (4, 5), (6, 7))
    assert "offline" in message(configs.protocol, config_of_shapes())
    said = document()
    del said["tasks"]
    assert "tasks is missing" in message(configs.protocol, config(say(tmp_path, said)))
    assert configs.protocol(loaded).tasks == ((1, 2, 3), (4, 5), (6, 7))


@pytest.mark.parametrize(("unlisted", "label"), [("background", 0), ("void", 255)])
def test_values_that_no_class_has(tmp_path, unlisted, label):
    said = document() | {"unlisted": unlisted, "tasks": [[name] for name in NAMES[1:]]}
    del said["classes"]["circle"]
    tree(tmp_path)
    mask = np.asarray(load(say(tmp_path, said)).read(0)[1])
    _, labels = shapes.draw(0, "train", 0, SIZE)
    assert set(np.unique(mask[labels == 1])) == {label}
    assert set(np.unique(mask[labels == 0])) == {0} and set(np.unique(mask[labels == 255])) == {255}


@pytest.mark.parametrize("lines", [["001", "003.jpg"], ["/elsewhere/images/001.jpg", "", "images/train/003.jpg"]])
def test_lists_choose(tmp_path, lines):
    """val takes its images from those of train."""
    said = document() | {"val": {"list": "val.txt"}}
    tree(tmp_path)
    (tmp_path / "val.txt").write_text("\n".join(lines))
    file = say(tmp_path, said)
    assert load(file, "val").names == ("001", "003")
    assert load(file, "train").names == tuple(f"{number:03d}" for number in range(14) if number not in (1, 3))
    said["train"]["list"] = "train.txt"
    (tmp_path / "train.txt").write_text("\n".join(f"{number:03d}" for number in range(7, 14)))
    file = say(tmp_path, said)
    assert load(file, "train").names == tuple(f"{number:03d}" for number in range(7, 14))


def test_a_fraction_is_held_out(tmp_path):
    tree(tmp_path)
    train, val = (load(say(tmp_path, document() | {"val": {"fraction": 0.25}}), split).names for split in folder.SPLITS)
    assert len(val) == 4 and sorted(train + val) == [f"{number:03d}" for number in range(14)]
    assert val != train[:4]


@pytest.mark.parametrize(
    ("pattern", "path", "key"),
    [
        ("images/*.jpg", "images/a.b.jpg", "a.b"),
        ("images/*.*", "images/a.b.jpg", "a.b"),
        ("images/*.jp*g", "images/a.b.jpg", "a.b"),
        ("images/*", "images/a.jpg", "a"),
        ("left/*/*_left.png", "left/town/town_01_left.png", "town_01"),
        ("**/x?_*.png", "a/b/x1_7.png", "7"),
        ("scenes/*/photo.png", "scenes/12/photo.png", "12"),
        ("i[mn]g/[!.]*-a+b.png", "img/001-a+b.png", "01"),
    ],
)
def test_the_last_star_is_the_shared_name(pattern, path, key):
    match = _folder_pairs._expression(pattern).fullmatch(path)
    assert match is not None and match["key"] == key


def test_the_cache_is_used_until_something_changes(tmp_path, monkeypatch):
    file, cache = tree(tmp_path), tmp_path / "elsewhere" / "folder"
    (tmp_path / "elsewhere").mkdir()
    first = load(file, data_dir=str(tmp_path / "elsewhere"))
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patched:
        patched.setattr(folder, "labels", None)  # nothing is looked at
        second = load(file, data_dir=str(tmp_path / "elsewhere"))
    assert first.names == second.names and np.array_equal(first.presence, second.presence)
    mask = tmp_path / "index" / "train" / "000.png"
    save(Image.fromarray(np.full((SIZE, SIZE), 17, np.uint8)), mask)
    third = load(file, data_dir=str(tmp_path / "elsewhere"))
    assert third.presence[0].tolist() == [False] * 7 + [True] and len(list(cache.iterdir())) == 2
    assert set(np.unique(np.asarray(third.read(0)[1]))) == {7}
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written(tmp_path):
    file = tree(tmp_path)
    (tmp_path / "cache").write_text("a file")
    assert "--config.dataset.data_dir=DIR" in message(load, file)


# --------------------------------------------------------------------------------------------------- what is wrong with the file


def without(key):
    return lambda said: said.pop(key)


def put(value, *keys):
    def change(said):
        for key in keys[:-1]:
            said = said[key]
        said[keys[-1]] = value

    return change


# what is changed -> what the message says
BAD_FILE = {
    "unknown key": (put(1, "clases"), "clases: no such key; did you mean 'classes'?"),
    "unknown key of a split": (put("x", "train", "mask"), "train.mask: no such key; did you mean 'masks'?"),
    "missing classes": (without("classes"), "classes is missing"),
    "missing masks": (lambda said: said["train"].pop("masks"), "train.masks is missing"),
    "nothing about val": (put({}, "val"), "val: needs images and masks, or a list, or a fraction"),
    "unknown encoding": (put("colour", "encoding"), "encoding: unknown value 'colour'; did you mean 'colours'?"),
    "background as a class": (put(3, "classes", "background"), "'background' is class 0 always"),
    "a name that is no text": (put(3, "classes", False), "classes: False is not text"),
    "a number twice": (put(17, "classes", "circle"), "classes.dotted circle: 17 is classes.circle already"),
    "the number of void": (put(9, "classes", "circle"), "classes.circle: 9 is void already"),
    "no number": (put(None, "classes", "circle"), "classes.circle: a number 0 to 255 is missing"),
    "no 8-bit number": (put(300, "classes", "circle"), "classes.circle: 300 is not a number 0 to 255"),
    "a colour among numbers": (put([1, 2, 3], "classes", "circle"), "classes.circle: [1, 2, 3] is not a number"),
    "classes in a word": (put("circle", "classes"), "neither a list of names nor a mapping"),
    "never learnt": (put([*TASKS[:1], TASKS[1][1:]], "tasks"), "tasks: striped circle: in classes, but in no task"),
    "learnt twice": (put([*TASKS, ["circle"]], "tasks"), "task 2: 'circle' is learnt in task 0 already"),
    "unknown class": (put([["cirkle"], *TASKS], "tasks"), "task 0: no class 'cirkle'; did you mean 'circle'?"),
    "an empty task": (put([*TASKS, []], "tasks"), "task 2: [] is not a list of classes"),
    "tasks in words": (put("circle", "tasks"), "tasks: 'circle' is not a list of tasks"),
    "{class} with one file": (put("m/{class}/*.png", "train", "masks"), "has {class}, with encoding index"),
    "a list that is none": (put(7, "train", "list"), "train.list: 7 is not the path"),
    "a glob that is none": (put(7, "train", "images"), "train.images: 7 is not a glob"),
    "fraction": (put({"fraction": 20}, "val"), "val.fraction: 20 is not a number between 0 and 1"),
    "fraction and images": (put(0.2, "val", "fraction"), "val.images has no place beside it"),
    "unlisted": (put("ignore", "unlisted"), "unlisted: unknown value 'ignore'; choices: error, background, void"),
    "known and learnt": (put({"circle": 99}, "known"), "classes: 'circle' is given twice (in classes and known)"),
}


@pytest.mark.parametrize("case", BAD_FILE)
def test_what_the_file_says_wrong(tmp_path, case):
    change, part = BAD_FILE[case]
    said = copy.deepcopy(document())
    change(said)
    text = message(_folder_file.read, say(tmp_path, said))
    assert text.startswith(f"{tmp_path / 'data.yaml'}: ") and part in text, text


def test_all_of_it_is_said_at_once(tmp_path):
    said = copy.deepcopy(document())
    cases = ("unknown key", "never learnt", "a number twice", "unknown encoding", "fraction")
    for case in cases:
        BAD_FILE[case][0](said)
    text = message(_folder_file.read, say(tmp_path, said))
    assert "5 problems" in text and all(BAD_FILE[case][1] in text for case in cases), text


@pytest.mark.parametrize(
    ("encoding", "change", "part"),
    [
        ("colours", put([200, 10], "classes", "circle"), "[200, 10] is not three numbers"),
        ("colours", put([200, 20, 0], "classes", "circle"), "[200, 20, 0] is classes.circle already"),
        ("colours", put(list(NAMES), "classes"), "every class needs its colour"),
        ("files", put("masks/*.png", "val", "masks"), "'masks/*.png' needs {class}, with encoding files"),
        ("files", put("rest", "background"), "background: with encoding files it is what no class's file covers"),
        ("files", put([*NAMES, "circle"], "classes"), "'circle' is given twice"),
    ],
)
def test_what_the_file_says_wrong_of_other_encodings(tmp_path, encoding, change, part):
    said = copy.deepcopy(document(encoding))
    change(said)
    assert part in message(_folder_file.read, say(tmp_path, said))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("classes: [a, b\ntasks: [", ("data.yaml, line 2: ",)),
        ("classes:\n  cat: 1\n  dog: 2\n  cat: 3\n", ("data.yaml, line 4: 'cat' is given twice (first in line 2)",)),
        ("just words", ("not a mapping", "classes, tasks, encoding")),
        ("a: \x07", ("data.yaml: not YAML",)),
    ],
)
def test_yaml_that_cannot_be_read(tmp_path, text, parts):
    error = message(_folder_file.read, say(tmp_path, text))
    assert all(part in error for part in parts), error


def test_a_file_that_is_not_there(tmp_path):
    assert "no such file" in message(_folder_file.read, tmp_path / "none.yaml")
    assert "cannot be read" in message(_folder_file.read, tmp_path)
    assert "--config.dataset.file=FILE" in message(folder.classes, {"file": ""})


# ------------------------------------------------------------------------------------------------- what is wrong with the folders


def rewrite(path, change):
    def spoil(where):
        with Image.open(where / path) as picture:
            changed = change(picture.copy())
        save(changed, where / path)

    return spoil


def cut(where):
    path = where / "images" / "train" / "001.jpg"
    path.write_bytes(path.read_bytes()[:300])


MASK = "index/train/001.png"
# what is done to the folder -> what the message says; the first group can be left out with skip_bad
BAD_PAIRS = {
    "truncated image": (cut, "images/train/001.jpg: unreadable image"),
    "no mask": (lambda where: (where / MASK).unlink(), f"{MASK}: missing mask, listed in train.images"),
    "no image": (
        lambda where: (where / "images/train/001.jpg").unlink(),
        f"images/train/001.jp*g: missing image, listed in train.masks ({MASK})",
    ),
    "sizes": (
        rewrite(MASK, lambda mask: mask.resize((SIZE, 30), Image.Resampling.NEAREST)),
        f"{MASK}: 40 x 30 pixels, its image 40 x 40",
    ),
    "colours": (rewrite(MASK, lambda mask: mask.convert("RGB")), "in mode 'RGB'; it must hold class numbers"),
    "16 bits": (rewrite(MASK, lambda mask: mask.convert("I;16")), "in mode 'I;16'"),
    "unlisted value": (
        rewrite(MASK, lambda mask: Image.new("L", mask.size, 77)),
        "no class has it",
    ),
    "name twice": (
        lambda where: save(Image.new("RGB", (SIZE, SIZE)), where / "images" / "train" / "001.jpeg"),
        "listed in train.images (images/train/001.jpeg) and again in images/train/001.jpg",
    ),
}
BAD_FOLDERS = {
    "glob without files": (put("photos/*.jpg", "train", "images"), "train.images: no file matches 'photos/*.jpg' in"),
    "suffix in capitals": (put("images/val/*.JPG", "val", "images"), "holds 7 files such as '000.jpg'"),
    "list": (put("none.txt", "train", "list"), "none.txt cannot be read: No such file"),
    "in both splits": (lambda said: said.update(val=dict(said["train"])), "train: no image is left for it"),
    "val in train": (
        lambda said: said["val"].update(
            images=["images/val/*.jpg", "images/train/00[01].jpg"], masks="index/train/*.png"
        ),
        "listed in train.images and again in val.images",
    ),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_what_is_wrong_with_files(tmp_path, caplog, case):
    spoil, part = BAD_PAIRS[case]
    said = document()
    said["train"]["images"] = "images/train/*.jp*g"
    tree(tmp_path)
    file = say(tmp_path, said)
    spoil(tmp_path)
    text = message(load, file)
    assert part in text and "1 problem" in text, text
    assert ("unlisted: background" if case == "unlisted value" else "dataset.skip_bad") in text, text
    assert not list((tmp_path / "cache" / "nest_jax" / "folder").iterdir())  # nothing half-written
    with caplog.at_level(logging.WARNING, "nest_jax"):
        kept = load(file, skip_bad=True)
    assert len(kept) == (14 if case == "name twice" else 13)
    assert ("images/train/001.jpg" in kept.names) == (case == "name twice") or "001.jpeg" in str(kept.names)
    (record,) = [entry for entry in caplog.records if "left out" in entry.getMessage()]
    skipped = json.loads(Path(record.args[-1]).read_text())  # type: ignore[index]
    assert part in str(skipped["train"]), skipped
    for number in range(len(kept)):
        kept.read(number)


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_what_is_wrong_with_globs_and_lists(tmp_path, case):
    change, part = BAD_FOLDERS[case]
    tree(tmp_path)
    said = copy.deepcopy(document())
    change(said)
    text = message(load, say(tmp_path, said))
    assert part in text, text


def test_a_list_that_names_what_is_not_there(tmp_path):
    tree(tmp_path)
    (tmp_path / "list.txt").write_text("001\n\n099\n")
    said = document()
    said["train"]["list"] = "list.txt"
    assert "train.images has no such image: line 3: '099'" in message(load, say(tmp_path, said))


def test_a_class_that_no_training_mask_shows(tmp_path):
    file = tree(tmp_path)
    for path in (tmp_path / "index" / "train").iterdir():
        mask = np.asarray(Image.open(path))
        save(Image.fromarray(np.where(mask == 16, np.uint8(0), mask)), path)
    assert "'triangle' has no pixel in any of the training masks" in message(load, file)


def test_masks_that_are_no_black_and_white_files(tmp_path):
    file = tree(tmp_path, "files")
    save(
        Image.fromarray(np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE)),
        tmp_path / "files/train/000-circle.png",
    )
    save(Image.new("L", (SIZE, 7)), tmp_path / "files/train/001-circle.png")
    text = message(load, file)
    assert "000-circle.png holds 256 values; a mask of one class holds 0 and one other" in text
    assert "001-" in text and f"{SIZE} x 7" in text


def test_colours_that_are_not_listed(tmp_path):
    file = tree(tmp_path, "colours")
    save(Image.new("RGB", (SIZE, SIZE), (7, 8, 9)), tmp_path / "colours/train/003.png")
    (tmp_path / "colours/train/005.png").unlink()
    noise = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    save(Image.fromarray(noise), tmp_path / "colours/train/005.png")
    text = message(load, file)
    assert text.count("in 1 mask, such as") == 20 and "stored as JPEG" in text, text
    rewrite("colours/train/005.png", lambda mask: Image.new("RGB", mask.size))(tmp_path)
    text = message(load, file)
    assert (
        f"1 problem\n    colour [7, 8, 9] in 1 mask, such as {tmp_path / 'colours/train/003.png'}: no class has it"
        in text
    )


# --------------------------------------------------------------------------------------------------------------------------- runs


QUICK = {
    "train.crop_size": "32",
    "train.batch_size": "4",
    "train.epochs": "1,1",
    "classifier_init.epochs": "1",
    "evaluate.batch_size": "4",
    "evaluate.pictures": "2",
    "log.progress": "False",
    "decoder.channels": "16",
}


def config(file, pick="backbone=tiny,decoder=plain", **overrides):
    loaded = configs.load(f"configs/folder.py:{pick}")
    quick = {key: value for key, value in QUICK.items() if key in configs.flatten(loaded)}
    values = {"dataset.file": str(file), **quick, **{key.replace("__", "."): str(v) for key, v in overrides.items()}}
    configs.override(loaded, list(values.items()))
    return loaded


def config_of_shapes():
    loaded = configs.load("configs/shapes.py")
    configs.override(loaded, [("tasks.name", "dataset")])
    return loaded


def test_a_run_of_two_tasks(tmp_path):
    file = tree(tmp_path, "colours")
    outcome = nest_jax.run(config(file), tmp_path / "run")
    assert [task["new_classes"] for task in outcome["tasks"]] == TASKS
    assert (tmp_path / "run" / "pictures" / "sheet.png").exists()
    # The same command in another order of tasks is another run, although the config is the same.
    say(tmp_path, document("colours") | {"tasks": TASKS[::-1]})
    assert "its run began with the tasks (circle, square, dotted triangle), (striped" in message(
        nest_jax.run, config(file), tmp_path / "run"
    )


def test_the_template_validates_and_says_what_to_do(capsys):
    assert main.main(["--config=configs/folder.py", "--validate_only"]) == 0
    assert "task 1: 1 class: sheep" in capsys.readouterr().out
    template = configs.load("configs/folder.py")
    assert "no file matches 'images/*.jpg'" in message(folder.load, template.dataset, "train")


def test_validation_shows_all_that_the_file_says_wrong(tmp_path):
    said = document() | {"void": "white", "unlisted": "no"}
    text = message(validation.validate, config(say(tmp_path, said)))
    assert "void: 'white' is not a number" in text and "unlisted: unknown value 'no'" in text
    assert text.count("void: 'white'") == 1
    assert "tasks.order" in message(validation.validate, config(tree(tmp_path), tasks__classes="circle,square"))
    known = document() | {"known": {"cat": 99}}
    assert "extend_from" in message(validation.validate, config(say(tmp_path, known)))


def test_voc_as_a_folder(voc_root, tmp_path):
    """Real images: some of those with sheep or cats, the lists as VOC has them."""
    voc = voc_root / "VOC2012"
    chosen = {"train": [], "val": []}
    for split, lists in (("train", "train_aug.txt"), ("val", "val.txt")):
        for name in (voc / "ImageSets" / "Segmentation" / lists).read_text().split()[:120]:
            shown = np.unique(np.asarray(Image.open(voc / "SegmentationClassAug" / f"{name}.png")))
            if {8, 17} & set(shown.tolist()):
                chosen[split].append(name)
        (tmp_path / f"{split}.txt").write_text("\n".join(chosen[split]))
    said = {
        "classes": {"cat": 8, "sheep": 17},
        "tasks": [["cat"], ["sheep"]],
        "unlisted": "background",
        "train": {
            "images": f"{voc}/JPEGImages/*.jpg",
            "masks": f"{voc}/SegmentationClassAug/*.png",
            "list": "train.txt",
        },
        "val": {"list": "val.txt"},
    }
    pick = "backbone=tiny,decoder=plain,classifier_init=background"
    outcome = nest_jax.run(config(say(tmp_path, said), pick, train__crop_size="64"), tmp_path / "run")
    assert [task["new_classes"] for task in outcome["tasks"]] == [["cat"], ["sheep"]]
    assert sum(task["images"]["train"] for task in outcome["tasks"]) >= len(chosen["train"])
    assert outcome["tasks"][1]["images"]["val"] == len(chosen["val"])
