"""One tiny pair of runs, MiB and MiB+NeST from the same task 0, and the page about them."""

import json
import re
import shutil
from html.parser import HTMLParser

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from nest_jax import segmenter as seg
from nest_jax import train
from nest_jax.errors import InputError
from nest_jax.report import cam, runs, strips
from nest_jax.report.__main__ import main, report
from tests import tiny

VOID_TAGS = {"meta", "link", "img", "br", "hr", "input", "source"}
SECTIONS = ["miou", "classes", "learning", "prepared", "predictions", "cam", "cost", "config"]


class Page(HTMLParser):
    """The tags of a page, refusing one that is not closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data + " "

    def values(self, *names):
        return [attrs[name] for _, attrs in self.tags for name in names if name in attrs]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    train.run(
        tiny.config("method=mib,classifier_init=background", evaluate__pictures=4, train__epochs="1,2"), root / "mib"
    )
    settings = {"evaluate__pictures": 4, "train__epochs": "1,2", "init_from": str(root / "mib")}
    train.run(tiny.config("method=mib,classifier_init=nest", **settings), root / "nest")
    return root


@pytest.fixture(scope="module")
def page(pair):
    path = report([f"MiB+NeST={pair / 'nest'}", f"<MiB>={pair / 'mib'}"], pair / "out", cam_classes=1)
    return Page(path.read_text()), path.parent


def copied(pair, tmp_path, name="mib"):
    return epath.Path(shutil.copytree(pair / name, tmp_path / name))


# The page


def test_every_section_is_there_in_order(page):
    headings = [attrs["id"] for tag, attrs in page[0].tags if tag == "h2"]
    assert headings == SECTIONS
    assert not [attrs for _, attrs in page[0].tags if attrs.get("class") == "missing"]
    assert [value for value in page[0].values("href") if value in {f"#{name}" for name in SECTIONS}] == [
        f"#{name}" for name in SECTIONS
    ]


def test_nothing_is_loaded(page):
    tags = {tag for tag, _ in page[0].tags}
    assert not tags & {"script", "link", "iframe", "object", "base", "embed"}
    for value in page[0].values("src", "href", "xlink:href", "srcset", "action"):
        assert value.startswith(("#", "data:image/png;base64,")), value[:80]
    text = (page[1] / "report.html").read_text()
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    policy = next(attrs["content"] for _, attrs in page[0].tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_references_resolve(page):
    ids = page[0].values("id")
    assert len(ids) == len(set(ids))
    text = (page[1] / "report.html").read_text()
    wanted = set(re.findall(r"url\(#([^)]+)\)", text)) | {v[1:] for v in page[0].values("href") if v.startswith("#")}
    assert wanted <= set(ids)


def test_every_picture_is_described_and_tables_have_headers(page):
    pictures = [attrs for tag, attrs in page[0].tags if tag in ("svg", "img")]
    assert len(pictures) > 30
    assert all(len(attrs.get("aria-label", "")) > 8 and attrs["role"] == "img" for attrs in pictures)
    assert all("scope" in attrs for tag, attrs in page[0].tags if tag == "th")


def test_labels_are_text_and_not_html(page):
    assert "<mib>" not in {f"<{tag}>" for tag, _ in page[0].tags}
    assert "<MiB>" in page[0].text


def test_charts_lie_beside_the_page(page):
    names = {path.name for path in page[1].glob("*.png")}
    assert {"miou-all.png", "miou-old.png", "miou-new.png", "classes-mib.png", "loss-task-1.png"} <= names
    assert any(name.startswith("importance-") for name in names) and any(name.startswith("cam-") for name in names)
    for name in names:
        with Image.open(page[1] / name) as picture:
            picture.load()
            assert picture.width >= 32


def test_the_numbers_are_those_of_the_runs(page, pair):
    for name in ("mib", "nest"):
        metrics = json.loads((pair / name / "results.json").read_text())["tasks"][-1]["metrics"]
        assert f" {100 * metrics['miou_all']:.1f} " in page[0].text
    assert "classifier_init.name  ( nest | background )" in page[0].text.replace(
        "(nest | background)", "( nest | background )"
    )


# Curves


def one_run(lines, epochs=(1, 2), steps=8):
    tasks = [{"task": 0, "steps": {"training": 4}}, {"task": 1, "steps": {"training": steps}}]
    results = {"config": {"train": {"epochs": list(epochs)}}, "tasks": tasks}
    log = [{"task": 1, "phase": "training", "time": 0.0, **line} for line in lines]
    return runs.Run("a", epath.Path("a"), results, log)


def test_epoch_means_weigh_lines_by_their_steps():
    """8 steps in 2 epochs, logged after steps 1, 4 and 8: epoch 1 is (1 x 9 + 3 x 1) / 4."""
    found = runs.curve(
        one_run([{"step": 1, "loss": 9.0}, {"step": 4, "loss": 1.0}, {"step": 8, "loss": 0.5}]), 1, "loss"
    )
    assert found is not None
    assert (found.epochs, found.means) == ([1, 2], [3.0, 0.5])
    assert found.steps == pytest.approx([0.125, 0.625, 1.5]) and found.values == [9.0, 1.0, 0.5]


def test_lines_without_the_term_do_not_count():
    lines = [{"step": 4, "loss": 1.0, "similarity": None}, {"step": 8, "loss": 0.5, "similarity": 0.9}]
    found = runs.curve(one_run(lines), 1, "similarity")
    assert found is not None and (found.epochs, found.means) == ([2], [0.9])
    assert runs.curve(one_run(lines), 1, "unkd") is None
    assert runs.curve(one_run(lines), 0, "loss") is None
    assert runs.curve(one_run(lines), 7, "loss") is None


def test_a_line_cut_off_by_a_kill_is_skipped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"task": 0, "phase": "training", "step": 1, "loss": 1.0}\n{"task": 0, "ph')
    assert len(runs.log(epath.Path(tmp_path))) == 1
    assert runs.log(epath.Path(tmp_path) / "nowhere") == []


def test_similarity_to_the_old_model_is_shown_where_it_was_logged(pair, tmp_path):
    run = copied(pair, tmp_path)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    without = [{k: v for k, v in line.items() if not k.startswith("similarity")} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in without))
    path = report([str(run)], tmp_path / "without", cam_classes=0)
    assert "No similarity of features" in path.read_text()
    with_it = [{**line, "similarity": 0.9, "similarity_std": 0.1} for line in without]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in with_it))
    path = report([str(run)], tmp_path / "with", cam_classes=0)
    assert "from 0.900 to 0.900" in path.read_text()
    assert (tmp_path / "with" / "similarity-task-1.png").exists()


# Class activation maps


class Body(nn.Module):
    def __call__(self, images, train):
        return images, ()


class Head(nn.Module):
    def __call__(self, body, train):
        return jnp.stack([body[..., 0] ** 2, body[..., 1]], axis=-1)


def test_class_activation_map_by_hand():
    """Logit 0.5 x0² - 2 x1: channel weights are mean(x0) and -2; the map is the positive part of their sum."""
    segmenter = seg.Segmenter(seg.Network(Body(), Head()), lambda images: images, 2)
    images = np.random.default_rng(0).normal(size=(1, 4, 6, 3)).astype(np.float32)
    found = cam.make(segmenter)({"params": {}, "batch_stats": {}}, images, np.array([0.5, -2.0], np.float32))
    expected = np.maximum(images[..., 0].mean() * images[..., 0] - 2 * images[..., 1], 0)
    np.testing.assert_allclose(found, expected / expected.max(), atol=1e-5)


def test_a_class_that_nothing_speaks_for_is_dark():
    segmenter = seg.Segmenter(seg.Network(Body(), Head()), lambda images: images, 2)
    images = np.ones((1, 2, 2, 3), np.float32)
    found = cam.make(segmenter)({"params": {}, "batch_stats": {}}, images, np.array([0.0, -1.0], np.float32))
    np.testing.assert_array_equal(found, np.zeros((1, 2, 2)))


def test_overlay_is_grey_where_the_map_is_zero_and_bright_where_it_is_one():
    image = np.full((1, 2, 3), (200, 100, 0), np.uint8)
    found = strips.overlay(image, np.array([[0.0, 1.0]], np.float32)).astype(int)
    assert np.ptp(found[0, 0]) <= 3 and found[0, 0].mean() == pytest.approx(75, abs=2)
    assert found[0, 1].mean() > 150 and np.ptp(found[0, 1]) > 30


# What is missing


def test_a_run_of_results_alone_is_still_a_page(pair, tmp_path):
    run = copied(pair, tmp_path, "nest")
    for name in ("pictures", "checkpoints"):
        (run / name).rmtree()
    (run / "metrics.jsonl").unlink()
    path = report([str(run)])
    found = Page(path.read_text())
    assert path == run / "report" / "report.html"
    assert [attrs["id"] for tag, attrs in found.tags if tag == "h2"] == SECTIONS
    for sentence in (
        "holds no training of these tasks",
        "No checkpoint here",
        "stored no pictures",
        "no class activation maps",
    ):
        assert sentence in found.text


def test_a_run_in_its_first_task_is_reported_as_far_as_it_is(pair, tmp_path):
    run = copied(pair, tmp_path)
    results = json.loads((run / "results.json").read_text())
    results["tasks"] = results["tasks"][:1]
    (run / "results.json").write_text(json.dumps(results))
    found = Page(report([str(run)], tmp_path / "out", cam_classes=2).read_text())
    assert "no task after the first one yet" in found.text


def test_a_network_that_is_not_there_leaves_out_the_maps(pair, tmp_path):
    run = copied(pair, tmp_path)
    one = runs.read([str(run)])[0]
    assert strips.places([one], 1)
    with pytest.raises(InputError, match="backbones"):
        cam.build({**one.config, "backbone": {"name": "nobody"}})


# The command line


def test_command_line(pair, tmp_path, capsys):
    arguments = ["--workdir", str(pair / "mib"), "--out", str(tmp_path / "a"), "--cam_classes", "0"]
    assert main(arguments) == 0
    assert (tmp_path / "a" / "report.html").exists() and "report.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir", "{tmp}"], "there are no results here"),
        (["--compare", "{run}"], "--workdir"),
        (["--workdir", "{run}", "--compare", "{run}"], "given twice"),
        (["--workdir", "{run}", "--out", "{run}/results.json", "--cam_classes", "0"], "cannot be written"),
        (["--workdir", "{run}", "--cam_classes", "many"], "invalid int"),
    ],
)
def test_what_the_user_can_mend_is_one_message(pair, tmp_path, capsys, arguments, message):
    filled = [word.format(tmp=tmp_path, run=pair / "mib") for word in arguments]
    assert main(filled) == 2
    assert message in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "python -m nest_jax.report --workdir" in capsys.readouterr().out
