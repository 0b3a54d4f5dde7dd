"""The SHA-256 of every file of a checkpoint directory, in the directory's `digests.json`. Orbax does not notice a flipped byte."""

import hashlib
import json

from etils import epath

from nest_jax.errors import CorruptCheckpoint, InputError
from nest_jax.storage import json_text

FILE = "digests.json"
ADVICE = "Copy the checkpoint from elsewhere, or delete this directory so that it is made again."


def write(directory: epath.Path) -> None:
    """Writes `digests.json`, the last file of a checkpoint: a directory without it is half-written."""
    digests = {name: _digest(path) for name, path in _files(directory).items()}
    (directory / FILE).write_text(json_text(digests))


def present(directory: epath.Path) -> bool:
    """Whether the directory was written to its end; no byte is compared."""
    return (directory / FILE).exists()


def check(directory: epath.Path, name: str, *, others: bool = True) -> None:
    """Compares the file `name`, which every checkpoint has, and with `others` every other file with its digest.

    Raises:
        CorruptCheckpoint: a file is missing, cut off or altered; the message names it.
        InputError: no such directory.
    """
    if not directory.exists():
        raise InputError(f"checkpoint {directory}: there is none")
    if not present(directory):
        raise CorruptCheckpoint(f"checkpoint {directory}: half-written, {FILE} is missing. {ADVICE}")
    try:
        digests = json.loads((directory / FILE).read_text())
        if not isinstance(digests, dict) or name not in digests:
            raise ValueError
    except (ValueError, OSError):
        raise CorruptCheckpoint(f"checkpoint {directory}: {directory / FILE} is damaged. {ADVICE}") from None
    for each in digests if others else (name,):
        try:
            same = _digest(directory / each) == digests[each]
        except (OSError, ValueError):  # ValueError: a damaged digests.json may give a name no file can have
            same = False
        if not same:
            raise CorruptCheckpoint(
                f"checkpoint {directory}: {directory / each} is missing or not the file that was saved. {ADVICE}"
            )


def _digest(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _files(directory: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
    found: dict[str, epath.Path] = {}
    for path in sorted(directory.iterdir()):
        name = prefix + path.name
        if path.is_dir():
            found |= _files(path, name + "/")
        else:
            found[name] = path
    return found
