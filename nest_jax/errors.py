"""Exceptions whose message is all that is shown."""


class InputError(Exception):
    """Something outside the program is wrong: a file, a value, a name.

    The message names the file, the value and the choices. The command line prints it without a stack trace and exits with code 2.
    """


class CorruptCheckpoint(InputError):
    """A checkpoint's files are not the ones that were saved; the message names the file."""


class TrainingError(Exception):
    """Training cannot go on: a non-finite loss (the message names the terms, the step and the last good checkpoint), a dead worker; exit code 3."""
