"""What all command lines share: exit codes, errors as one plain message, overrides of a config."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from nest_jax.errors import InputError, TrainingError

DONE, INPUT_ERROR, TRAINING_ERROR, INTERRUPTED = 0, 2, 3, 130  # exit codes


class Parser(argparse.ArgumentParser):
    """argparse whose errors go the way of all others, and whose texts keep their lines."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help shows examples)")


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Takes `--config.KEY=VALUE` and `--config.KEY VALUE` out of the arguments: the rest, and `("train.epochs", "6,6")` in their order.

    Raises:
        InputError: one without a value.
    """
    flags, overrides, words = [], [], iter(arguments)
    for word in words:
        if not word.startswith("--config."):
            flags.append(word)
            continue
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            following = next(words, "--")
            if following.startswith("--"):
                raise InputError(f"{word} needs a value: {word}=VALUE")
            value = following
        overrides.append((key, value))
    return flags, overrides


def exit_code(
    run: Callable[[list[str]], int | None], arguments: Sequence[str] | None, *, interrupted: str = "interrupted"
) -> int:
    """The exit code of `run(arguments)`, None meaning 0; what a user can mend becomes one plain message, without a stack trace.

    Args:
        arguments: None for the process's own.
        interrupted: said after Ctrl-C.
    """
    try:
        return run(list(sys.argv[1:] if arguments is None else arguments)) or DONE
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return INPUT_ERROR
    except TrainingError as error:
        print(f"training stopped: {error}", file=sys.stderr)
        return TRAINING_ERROR
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
