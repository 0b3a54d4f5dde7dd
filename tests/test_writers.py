import io
import json
import sys
import types

import jax
import numpy as np
import pytest

from nest_jax import writers
from nest_jax.errors import InputError


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def keys(workdir):
    return [(line["task"], line["phase"], line["step"]) for line in lines(workdir)]


def write_all(workdir, records):
    with writers.Writer(workdir) as writer:
        for task, phase, step in records:
            writer.write(task, phase, step, {"loss": step / 10})


# metrics.jsonl


def test_a_line_holds_everything_and_is_there_at_once(tmp_path):
    writer = writers.Writer(tmp_path)
    writer.write(1, "training", 20, {"loss": jax.numpy.float32(0.25), "lr": np.float64(0.001), "bad": float("nan")})
    (line,) = lines(tmp_path)
    assert line.pop("time") > 1.7e9
    assert line == {"task": 1, "phase": "training", "step": 20, "loss": 0.25, "lr": 0.001, "bad": None}


def test_a_second_writer_appends(tmp_path):
    write_all(tmp_path, [(0, "training", 1)])
    write_all(tmp_path, [(0, "training", 2)])
    assert keys(tmp_path) == [(0, "training", 1), (0, "training", 2)]


def test_half_a_line_of_a_killed_run_is_cut(tmp_path):
    write_all(tmp_path, [(0, "training", 1)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"task": 0, "phase": "trai')
    write_all(tmp_path, [(0, "training", 2)])
    assert keys(tmp_path) == [(0, "training", 1), (0, "training", 2)]


RECORDS = [
    (0, "training", 0),
    (0, "training", 10),
    (0, "evaluation", 10),
    (1, "statistics", 0),
    (1, "pretuning", 0),
    (1, "pretuning", 10),
    (1, "training", 0),
    (1, "validation", 0),
    (1, "training", 10),
    (1, "validation", 10),
    (1, "training", 20),
    (1, "evaluation", 20),
    (2, "statistics", 0),
]


@pytest.mark.parametrize(
    ("point", "kept"),
    [
        ((1, "training", 20), 10),
        ((1, "training", 15), 10),
        ((1, "training", 10), 8),
        ((1, "training", 0), 6),
        ((1, "pretuning", 5), 5),
        ((1, "pretuning", 0), 4),
        ((1, "statistics", 0), 3),
        ((0, "training", 10), 1),
        ((0, "training", 0), 0),
        ((1, "training", 21), 11),
        ((2, "statistics", 0), 12),
        ((2, "training", 0), 13),
        ((3, "statistics", 0), 13),
    ],
)
def test_rewind_drops_what_comes_after_the_resume_point(tmp_path, point, kept):
    write_all(tmp_path, RECORDS)
    with writers.Writer(tmp_path) as writer:
        writer.rewind(*point)
        task, phase, step = point
        found = keys(tmp_path)
        writer.write(task, phase, step, {})
    expected = RECORDS[:kept]
    assert found == expected
    assert keys(tmp_path) == [*expected, point]


def test_rewind_before_anything_was_written(tmp_path):
    with writers.Writer(tmp_path) as writer:
        writer.rewind(0, "training", 0)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_other_processes_are_silent(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with writers.Writer(tmp_path / "run") as writer:
        writer.write(0, "training", 1, {"loss": 1.0})
        writer.rewind(0, "training", 0)
    assert not (tmp_path / "run").exists()
    with writers.progress(10, 0, "training") as bar:
        bar.update(10, loss=1.0, images=5)
    writers.warn_once("said by process 1 only")
    assert capsys.readouterr().err == "" and caplog.text == ""


def test_full_disk_is_an_input_error(tmp_path):
    writer = writers.Writer(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match="metrics.jsonl: cannot be written"):
        writer.write(0, "training", 1, {})


def test_remote_files_are_written_whole(tmp_path, monkeypatch):
    write_all(tmp_path, [(0, "training", 1), (0, "training", 2)])
    monkeypatch.setattr(writers, "is_remote", lambda path: True)
    with writers.Writer(tmp_path) as writer:
        writer.rewind(0, "training", 2)
        writer.write(0, "training", 2, {"loss": 1.0})
        writer.write(0, "training", 3, {"loss": 1.0})
        assert keys(tmp_path) == [(0, "training", 1)]
    assert keys(tmp_path) == [(0, "training", 1), (0, "training", 2), (0, "training", 3)]


# TensorBoard


def test_tensorboard_missing_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"pip install 'nest_jax\[tensorboard\]'"):
        writers.Writer(tmp_path, tensorboard=True)


def test_tensorboard_gets_every_number_and_forgets_what_is_rewound(tmp_path, monkeypatch):
    made = []

    class Board:
        def __init__(self, directory, purge_step=None):
            self.directory, self.purge_step, self.scalars, self.closed = directory, purge_step, [], False
            made.append(self)

        def add_scalar(self, name, value, step):
            self.scalars.append((name, value, step))

        def flush(self):
            pass

        def close(self):
            self.closed = True

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Board))
    with writers.Writer(tmp_path, tensorboard=True) as writer:
        writer.rewind(1, "training", 7)
        writer.write(1, "training", 7, {"loss": 0.5, "nothing": float("inf")})
        writer.write(2, "training", 0, {"loss": 0.25})
    assert [board.directory for board in made] == [
        str(tmp_path / "tensorboard" / "task-01" / "training"),
        str(tmp_path / "tensorboard" / "task-02" / "training"),
    ]
    assert [board.purge_step for board in made] == [7, None]
    assert [board.scalars for board in made] == [[("loss", 0.5, 7)], [("loss", 0.25, 0)]]
    assert all(board.closed for board in made)


# Progress


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(writers.time, "monotonic", lambda: self.now)


def test_lines_every_tenth_where_there_is_no_terminal(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    with writers.Progress(200, 100, "task 1: training", True, stream) as bar:
        for _ in range(100):
            clock.now += 2.0
            bar.update(1, loss=0.125, images=8)
    printed = stream.getvalue().splitlines()
    # 2 s a step: 30 s pass before 20 steps do.
    assert len(printed) == 7
    assert printed[0] == "task 1: training: 115/200 steps (57%), loss 0.1250, 4.0 images/s, 0:02:50 left"
    assert printed[-1].startswith("task 1: training: 200/200 steps (100%)") and printed[-1].endswith("0:00:00 left")


def test_fast_phases_do_not_flood_the_log(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    with writers.Progress(1000, 0, "statistics", True, stream) as bar:
        for _ in range(1000):
            clock.now += 0.0005
            bar.update(1)
    assert stream.getvalue().splitlines() == ["statistics: 1000/1000 steps (100%), 0:00:00 left"]


def test_slow_steps_speak_every_tenth(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    with writers.Progress(50, 0, "x", True, stream) as bar:
        for _ in range(50):
            clock.now += 1.0
            bar.update(1)
    assert len(stream.getvalue().splitlines()) == 10


def test_a_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with writers.Progress(10, 4, "task 0: training", True, stream) as bar:
        bar.update(6, loss=0.5, images=48)
    text = stream.getvalue()
    assert "task 0: training" in text and "10/10" in text and "loss 0.5000" in text and "images/s" in text


def test_disabled_and_empty_phases_say_nothing(capsys):
    with writers.progress(10, 0, "x", enabled=False) as bar:
        bar.update(10)
    with writers.progress(0, 0, "empty"):
        pass
    assert capsys.readouterr().err == ""


def test_warn_once(caplog):
    for _ in range(3):
        writers.warn_once("class 3 has no pixels")
    writers.warn_once("class 4 has no pixels, 100%s")
    assert [record.getMessage() for record in caplog.records] == [
        "class 3 has no pixels",
        "class 4 has no pixels, 100%s",
    ]
