import json
import os
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from nest_jax import checkpoints, evaluate, photographs, pictures, predict, restored, rundir, sharding, upsample
from nest_jax.errors import InputError
from nest_jax.predict import Picture
from tests import tiny, untrained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    untrained.workdir(folder, 0)
    return untrained.workdir(folder, 1)


@pytest.fixture(scope="module")
def found(run):
    return restored.load(run)


def image(height, width, seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def logits_of(found, pixels, **settings):
    ((picture, logits),) = predict.segment(found, [Picture("a", pixels)], **settings)
    assert picture.key == "a"
    return logits


# --- restored -------------------------------------------------------------------------------------------------------------------------


def test_the_last_task_is_restored_unless_told_otherwise(run):
    assert (restored.load(run).task, len(restored.load(run).class_names)) == (1, 8)
    assert (restored.load(run, 0).task, len(restored.load(run, 0).class_names)) == (0, 6)
    with pytest.raises(InputError, match="no completed task 7 there; complete: 0, 1"):
        restored.load(run, 7)
    with pytest.raises(InputError, match="no completed task there; give the --workdir"):
        restored.load(run / "checkpoints")


def test_a_config_older_than_todays_keys_gets_their_defaults(run):
    saved = checkpoints.metadata(rundir.task_directory(run, 1))["config"]
    del saved["sharding"], saved["extend_from"], saved["train"]["workers"]
    saved["train"]["crop_size"] = 48
    saved["gone"] = 1
    config: Any = restored.complete_config(saved)
    assert (config.sharding.fsdp, config.extend_from, config.train.workers, config.train.crop_size) == (1, "", 0, 48)
    assert "gone" not in config and config.train.epochs == (1, 1)


# --- logits ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "settings"), [(32, {"mode": "sliding"}), (64, {"mode": "whole", "short_side": 0})])
def test_a_picture_that_needs_no_resizing_gets_the_predictions_of_the_evaluation(found, side, settings):
    pixels = image(side, side)
    step = evaluate.make_step(found.segmenter, sharding.mesh())
    batch = {"image": jnp.asarray(pixels)[None], "label": jnp.zeros((1, side, side), jnp.uint8)}
    _, expected = step(found.model, jnp.zeros(256, jnp.uint8), batch)
    assert_array_equal(predict.labels(logits_of(found, pixels, **settings), (side, side)), np.asarray(expected)[0])
    assert len(np.unique(np.asarray(expected))) > 2


def test_windows_cover_everything_and_overlapping_logits_are_averaged(found):
    pixels = image(32, 80)
    parts = predict.sliding(pixels, 32)
    lefts = [left for _, (_, left) in parts]
    assert lefts == [0, 16, 32, 48]
    logits = logits_of(found, pixels, batch_size=3)
    alone = [logits_of(found, np.ascontiguousarray(part)) for part, _ in parts]
    assert logits.shape == (32, 80, 8)
    assert_allclose(logits[:, :16], alone[0][:, :16], atol=1e-5)
    assert_allclose(logits[:, 64:], alone[3][:, 16:], atol=1e-5)
    assert_allclose(logits[:, 20], (alone[0][:, 20] + alone[1][:, 4]) / 2, atol=1e-5)


@pytest.mark.parametrize(("side", "size"), [(32, 32), (33, 32), (53, 32), (54, 32), (1000, 32)])
def test_windows_are_spread_evenly(side, size):
    found = predict.starts(side, size)
    gaps = np.diff(found)
    assert found[0] == 0 and found[-1] == side - size
    assert len(gaps) == 0 or (gaps.max() <= size * predict.STEP + 1 and gaps.max() - gaps.min() <= 1)


def test_pictures_of_all_sizes_come_back_in_order_whatever_the_batch(found):
    sizes = [(32, 32), (70, 40), (20, 90), (9, 9), (33, 64)]
    given = [Picture(index, image(*size, seed=index)) for index, size in enumerate(sizes)]
    for mode in predict.MODES:
        many = list(predict.segment(found, given, mode=mode, batch_size=4))
        assert [picture.key for picture, _ in many] == [0, 1, 2, 3, 4]
        for picture, logits in many:
            assert_allclose(logits, logits_of(found, picture.image, mode=mode), atol=1e-5)


def test_whole_pictures_are_compiled_for_few_shapes(found):
    padded = {predict.whole(image(height, 40), 64)[0][0].shape for height in range(3, 70, 3)}
    assert padded == {(64, 64, 3), (128, 64, 3)}
    part, corner = predict.whole(image(60, 50), 64)[0]
    assert corner == (0, 0)
    assert_array_equal(part[60:], part[59:55:-1])  # mirrored
    assert logits_of(found, image(60, 50), mode="whole", short_side=0).shape == (60, 50, 8)


def test_the_shorter_side_becomes_the_crops_and_strips_do_not_explode():
    assert predict.resized(image(100, 133), 32).shape == (32, 42, 3)  # int(32 * 1.33)
    assert predict.resized(image(20, 10), 32).shape == (64, 32, 3)
    assert predict.resized(image(20, 10), 0).shape == (20, 10, 3)
    assert predict.resized(image(2, 100), 32).shape == (5, 256, 3)


@pytest.mark.parametrize("size", [(5, 7), (64, 200), (3, 4), (1, 1)])
def test_labels_and_probabilities_are_those_of_upsampled_logits(size):
    logits = np.random.default_rng(0).normal(size=(5, 7, 3)).astype(np.float32)
    full = np.asarray(upsample.bilinear(jnp.asarray(logits)[None], size))[0]
    assert_allclose(np.concatenate(list(predict.upsampled(logits, size))), full, atol=1e-6)
    assert_array_equal(predict.labels(logits, size), full.argmax(-1))
    found = predict.probabilities(logits, size)
    powers = np.exp(full)
    assert found.dtype == np.float16
    assert_allclose(found, powers / powers.sum(-1, keepdims=True), atol=1e-3)


# --- files ----------------------------------------------------------------------------------------------------------------------------


def test_files_are_found_once_and_missing_ones_named_together(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    text = str(tmp_path)
    assert [path.name for path in photographs.find([text, f"{text}/b.jpg"])] == ["a.PNG", "b.jpg"]
    assert [path.name for path in photographs.find([f"{text}/**/*.jpg"])] == ["b.jpg", "c.jpg"]
    assert [path.name for path in photographs.find([f"{text}/notes.txt"])] == ["notes.txt"]
    with pytest.raises(InputError, match=r"(?s)nowhere\.jpg: no such file.*\*\.gif: no such file"):
        photographs.find([text, "nowhere.jpg", f"{text}/*.gif"])


def test_no_two_files_get_one_name(tmp_path):
    paths = [
        tmp_path / name
        for name in ("x/a.jpg", "x/a.png", "y/a.jpg", "y/b.jpg", "y/B.png", "c.jpg", "a_b/d.e", "a/b_d.e")
    ]
    names = photographs.names(paths)
    assert len({name.casefold() for name in names}) == len(paths)
    assert names[5] == "c" and names[1] == "a.png" and names[0] == "x_a.jpg" and names[2] == "y_a.jpg"
    assert photographs.names([tmp_path / "a_b" / "d.e", tmp_path / "a" / "b_d.e"]) == ["d", "b_d"]


def test_every_kind_of_picture_becomes_upright_rgb(tmp_path):
    colour = image(6, 8)
    grey = np.asarray(Image.fromarray(colour).convert("L"))

    def read(picture, name, **settings):
        picture.save(tmp_path / name, **settings)
        return photographs.read(tmp_path / name)

    assert_array_equal(read(Image.fromarray(colour), "rgb.png"), colour)
    assert_array_equal(read(Image.fromarray(grey), "grey.png"), np.repeat(grey[..., None], 3, -1))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert deep.mode.startswith("I")
    assert_array_equal(read(deep, "deep.png"), np.repeat(grey[..., None], 3, -1))
    alpha = np.concatenate([colour, np.full((6, 8, 1), 255, np.uint8)], -1)
    alpha[:3, :, 3] = 0
    seen = read(Image.fromarray(alpha), "alpha.png")
    assert (seen[:3] == 255).all()
    assert_array_equal(seen[3:], colour[3:])
    palette = Image.fromarray(colour).quantize(8)
    assert_array_equal(read(palette, "palette.png"), np.asarray(palette.convert("RGB")))
    clear = read(palette, "clear.gif", transparency=int(np.asarray(palette)[0, 0]))
    assert (clear[0, 0] == 255).all()
    assert read(Image.fromarray(colour).convert("CMYK"), "cmyk.jpg").shape == (6, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    assert_array_equal(read(Image.fromarray(colour), "turned.png", exif=exif), np.rot90(colour, -1))
    with pytest.raises(ValueError, match="floating-point"):
        read(Image.fromarray(np.ones((2, 2), np.float32)), "float.tiff")


def test_overlays_tint_all_but_the_background_and_name_the_classes():
    pixels = np.full((60, 300, 3), 100, np.uint8)
    labels = np.zeros((60, 300), np.uint8)
    labels[:, 150:] = 2
    shown = np.asarray(pictures.overlay(pixels, labels, ("background", "cat", "dog")))
    inside = shown[pictures.GAP : pictures.GAP + 60, pictures.GAP : pictures.GAP + 300]
    assert_array_equal(inside[:, :149], pixels[:, :149])
    assert (inside[:, 149] == 255).all()  # the border
    tint = (1 - pictures.OPACITY) * 100 + pictures.OPACITY * pictures.palette()[2]
    assert_allclose(inside[2, -1].astype(float), tint, atol=1)
    assert (inside[:, 150:].min(-1) > 200).any()  # the number
    assert shown.shape[0] > 60 + 3 * pictures.GAP  # the legend
    large = pictures.overlay(image(400, 2000), np.zeros((400, 2000), np.uint8), ("background",))
    assert large.width == pictures.OVERLAY + 2 * pictures.GAP


# --- the command ----------------------------------------------------------------------------------------------------------------------


def test_the_command_writes_all_it_can_and_reports_the_rest(run, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    Image.fromarray(image(50, 70)).save(source / "a.png")
    Image.fromarray(image(40, 30, seed=1)).save(source / "a.jpg")
    (source / "broken.jpg").write_bytes((source / "a.jpg").read_bytes()[:300])
    (source / "empty.png").touch()
    Image.fromarray(image(32, 32, seed=2)).save(source / "c.png")
    code = predict.main(["--workdir", str(run), str(source), "--out", str(out), "--probabilities", "--batch_size", "2"])
    told = capsys.readouterr()
    assert code == predict.UNREADABLE
    assert "not read: 2" in told.err and "broken.jpg: " in told.err and "empty.png: " in told.err
    assert "3 pictures segmented" in told.out
    assert sorted(os.listdir(out / "masks")) == ["a.jpg.png", "a.png.png", "c.png"]
    assert sorted(os.listdir(out / "overlays")) == ["a.jpg.jpg", "a.png.jpg", "c.jpg"]
    names = json.loads((out / "classes.json").read_text())
    assert names["0"] == "background" and len(names) == 8
    with Image.open(out / "masks" / "a.png.png") as mask:
        assert mask.mode == "P" and mask.size == (70, 50)
        labels = np.asarray(mask)
        assert_array_equal(np.asarray(mask.convert("RGB")), pictures.palette()[labels])
    found = np.load(out / "probabilities" / "a.png.npz")["probabilities"]
    assert found.shape == (50, 70, 8) and found.dtype == np.float16
    assert_allclose(found.astype(np.float32).sum(-1), 1, atol=5e-3)
    assert (np.take_along_axis(found, labels[..., None], -1)[..., 0] == found.max(-1)).all()
    again = ["--task", "0", "--mode", "whole", "--short_side", "0", str(source / "c.png"), "--workdir", str(run)]
    assert predict.main([*again, "--out", str(out)]) == 0
    assert len(json.loads((out / "classes.json").read_text())) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png", "--out", "out"], "nowhere.png: no such file"),
        (["{masks}", "--out", "{folder}"], "would be overwritten"),
        (["{masks}", "--out", "out", "--batch_size", "0"], "at least 1"),
        (["{masks}", "--out", "out", "--short_side", "-1"], "at least 1, or 0"),
        (["{masks}", "--out", "out", "--mode", "tiles"], "--help shows examples"),
        (["{masks}", "--out", "out", "--task", "9"], "complete: 0, 1"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(run, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "masks").mkdir()
    Image.fromarray(image(8, 8)).save(tmp_path / "masks" / "a.png")
    before = (tmp_path / "masks" / "a.png").read_bytes()
    filled = [word.format(masks=tmp_path / "masks", folder=tmp_path) for word in arguments]
    assert predict.main(["--workdir", str(run), *filled]) == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["masks"] and (tmp_path / "masks" / "a.png").read_bytes() == before


def test_every_example_in_the_help_is_understood(capsys):
    for line in predict.EXAMPLES.splitlines():
        if line.startswith("  python -m nest_jax.predict "):
            assert predict.parse(line.split("nest_jax.predict ")[1].split()).images
    with pytest.raises(SystemExit):
        predict.parse(["--help"])
    assert "Exit codes" in capsys.readouterr().out
    assert tiny.OVERRIDES["train.crop_size"] == "32"  # what the sizes above count on
