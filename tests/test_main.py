"""The command line: flags, exit codes, messages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nest_jax
from nest_jax import main
from nest_jax.errors import InputError, TrainingError

CHECKOUT = Path(__file__).parents[1]


class Train:
    """In the place of `nest_jax.train`: remembers the call, or raises."""

    def __init__(self, raises=None):
        self.raises = raises
        self.calls = []

    def run(self, config, workdir, *, profile, started):
        self.profile = profile
        self.calls.append((config, workdir))
        if self.raises is not None:
            raise self.raises
        return {}


@pytest.fixture
def train(monkeypatch):
    fake = Train()
    monkeypatch.setitem(sys.modules, "nest_jax.train", fake)
    monkeypatch.setattr(nest_jax, "train", fake, raising=False)
    return fake


def test_a_run_gets_the_config_and_the_workdir(train):
    flags = ["--config=configs/shapes.py:method=finetune", "--config.train.epochs=6,6", "--config.seed", "3"]
    assert main.main(flags) == 0
    assert train.profile == 0
    assert main.main([*flags, "--workdir=elsewhere", "--profile"]) == 0
    assert train.profile == 3
    (config, workdir), (_, other) = train.calls
    assert (config.method.name, config.train.epochs, config.seed) == ("finetune", (6, 6), 3)
    assert (workdir, other) == ("runs/shapes", "elsewhere")
    with pytest.raises((AttributeError, KeyError)):
        config.train.epoch = 3  # locked


@pytest.mark.parametrize(
    ("raises", "code", "text"),
    [
        (InputError("no image x.jpg"), 2, "error: no image x.jpg\n"),
        (TrainingError("unkd is nan"), 3, "training stopped: unkd is nan\n"),
        (KeyboardInterrupt(), 130, "the same command continues"),
    ],
)
def test_exit_codes(train, capsys, raises, code, text):
    train.raises = raises
    assert main.main(["--config=configs/shapes.py"]) == code
    captured = capsys.readouterr()
    assert text in captured.err and "Traceback" not in captured.err and captured.out == ""


def test_a_programming_error_keeps_its_stack_trace(train):
    train.raises = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main.main(["--config=configs/shapes.py"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "--config"),
        (["--config=configs/shapes.py", "--profile=0"], "argument --profile: 0 is not above 0"),
        (["--config=configs/shpes.py"], "did you mean 'configs/shapes.py'"),
        (["--config=configs/shapes.py:method=nets"], "method: unknown value 'nets'"),
        (["--config=configs/shapes.py", "--wrkdir=x"], "did you mean '--workdir'"),
        (["--config=configs/shapes.py", "extra"], "unknown value 'extra'"),
        (["--config=configs/shapes.py", "--config.seed"], "--config.seed needs a value"),
        (["--config=configs/shapes.py", "--config.seed", "--workdir=x"], "--config.seed needs a value"),
        (["--config=configs/shapes.py", "--config.train.epohcs=1,1"], "did you mean 'train.epochs'"),
        (["--config=configs/shapes.py", "--config.train.epochs=1", "--config.train.batch_size=0"], "2 problems"),
    ],
)
def test_bad_input_is_one_message_and_code_2(train, capsys, arguments, text):
    assert main.main(arguments) == 2
    captured = capsys.readouterr()
    assert text in captured.err and captured.err.startswith("error: ") and captured.out == ""
    assert not train.calls


def test_validate_only_prints_the_config_and_the_tasks(train, capsys):
    assert main.main(["--config=configs/ade_100_5.py", "--validate_only"]) == 0
    out = capsys.readouterr().out
    assert '"dtype": "float32"' in out and '"learning_rate": 0.5' in out
    assert "\ntask 0: 100 classes" in out and "\ntask 10: 5 classes" in out
    assert "features 32 x 32 x 256, 151 classes at the end" in out
    assert out.splitlines()[-1].startswith("estimate (1 x cpu): ") and out.endswith(" a step\n")
    assert not train.calls and not Path("runs/ade_100_5").exists()


def test_help_shows_examples_and_configs(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--config.dataset.root=" in out and "configs/voc_15_1.py" in out


def test_the_package_shows_run_and_version():
    import nest_jax.train

    assert nest_jax.run is nest_jax.train.run
    assert nest_jax.__version__.count(".") == 2
    with pytest.raises(AttributeError):
        nest_jax.nothing  # noqa: B018


def test_as_a_command_from_any_directory(tmp_path):
    def call(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        command = [sys.executable, "-m", "nest_jax.main", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    bad = call("--config=configs/shapes.py", "--config.train.batch_size=-1")
    assert bad.returncode == 2 and "train.batch_size=-1" in bad.stderr and "Traceback" not in bad.stderr
    good = call("--config=configs/shapes.py", "--validate_only")
    assert good.returncode == 0 and "task 0: 3 classes" in good.stdout, good.stderr
    assert list(tmp_path.iterdir()) == []
