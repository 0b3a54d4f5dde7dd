"""Image and mask files -> a TFDS directory (ArrayRecord) -> `Dataset`. No TensorFlow. For the data sets that lie on disk as files.

The files' bytes are stored as they are; decoding happens in `read`. Names and class presence of all images lie beside the
records in `index.npz`, so that a protocol's image lists need no pass over the images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import Image
from tqdm import tqdm

from nest_jax.datasets import Dataset
from nest_jax.errors import InputError

VERSION = "1.0.0"
VOID = 255
SHOWN_PROBLEMS = 20

_source_lock = threading.Lock()


class Pair(NamedTuple):
    """An image, its mask, and the list that names them ("train.txt, line 3"), for messages."""

    name: str
    image: Path
    mask: Path
    origin: str


# ------------------------------------------------------------------------------------------------------------------ one pair


def decode_image(file: Path | io.BytesIO) -> Image.Image:
    """RGB image of an encoded file."""
    with Image.open(file) as image:
        return image.convert("RGB")


def decode_mask(file: Path | io.BytesIO) -> Image.Image:
    """Mask in mode "L" holding raw labels: the indices of a palette image, the values of a grey one.

    Raises:
        ValueError: a mask that holds colours or more than 8 bits.
    """
    with Image.open(file) as mask:
        if mask.mode not in ("P", "L"):
            raise ValueError(
                f"the mask is in mode {mask.mode!r}; it must hold class numbers (8-bit grey or palette), not colours"
            )
        return Image.fromarray(np.asarray(mask))


def check(pair: Pair, classes: Sequence[str]) -> tuple[Bool[np.ndarray, " classes"], list[str]]:
    """Which classes the mask shows, and all that is wrong with the pair."""
    problems, decoded = [], []
    for what, path, decode in (("image", pair.image, decode_image), ("mask", pair.mask, decode_mask)):
        try:
            decoded.append(decode(path))
        except FileNotFoundError:
            problems.append(f"{path}: missing {what}, listed in {pair.origin}")
        except (
            Exception
        ) as error:  # Pillow answers a broken file with OSError, SyntaxError, ValueError, struct.error and others
            problems.append(f"{path}: unreadable {what}, listed in {pair.origin}: {error}")
    presence = np.zeros(len(classes), bool)
    if problems:
        return presence, problems
    image, mask = decoded
    if image.size != mask.size:
        problems.append(f"{pair.mask}: {mask.width} x {mask.height} pixels, its image {image.width} x {image.height}")
    counts = np.bincount(np.asarray(mask).ravel(), minlength=256)
    wrong = [value for value in np.flatnonzero(counts).tolist() if len(classes) <= value != VOID]
    if wrong:
        problems.append(
            f"{pair.mask}: label {', '.join(map(str, wrong))}; allowed are 0 to {len(classes) - 1} and {VOID}"
        )
    return counts[: len(classes)] > 0, problems


# ------------------------------------------------------------------------------------------------------------------ prepare


def prepare(
    name: str,
    config: str,
    splits: Mapping[str, Sequence[Pair]],
    *,
    classes: tuple[str, ...],
    source: Path,
    data_dir: Path,
) -> Path:
    """The TFDS directory `data_dir/name/config/VERSION`, written if it is not there yet.

    Every pair is decoded and checked before anything is written. TFDS writes beside the final place and renames at the end,
    so an interrupted preparation is never taken for a finished one; of two at the same time, the first wins.

    Args:
        source: what to name as the place of the files, in messages and in the directory's metadata.

    Raises:
        InputError: pairs that are missing, unreadable or wrong (the first 20 and their number); a `data_dir` that cannot be written.
    """
    directory = data_dir / name / config / VERSION
    if is_complete(directory):
        return directory
    presence = _check_all(name, splits, classes, source)
    try:
        _write(name, config, splits, presence, classes, source, data_dir)
    except OSError as error:
        if is_complete(directory):  # another process was faster: its rename came first
            return directory
        raise InputError(
            f"{name}: cannot write the prepared data set below {data_dir} ({error}); "
            "choose another place with --config.dataset.data_dir=DIR or the environment variable TFDS_DATA_DIR"
        ) from error
    return directory


def _check_all(
    name: str, splits: Mapping[str, Sequence[Pair]], classes: tuple[str, ...], source: Path
) -> dict[str, Bool[np.ndarray, "images classes"]]:
    """Class presence by split."""
    problems, seen = [], {}
    for pairs in splits.values():
        for pair in pairs:
            if pair.name in seen:
                problems.append(f"{pair.name}: listed in {seen[pair.name]} and again in {pair.origin}")
            seen.setdefault(pair.name, pair.origin)
    presence = {}
    pool = ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1)))
    try:
        for split, pairs in splits.items():
            checks = pool.map(lambda pair: check(pair, classes), pairs)
            rows = list(tqdm(checks, f"{name}: checking {split}", len(pairs), unit=" images", disable=None))
            presence[split] = np.stack([row for row, _ in rows])
            problems += [line for _, lines in rows for line in lines]
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C should not wait for the thousands that are queued
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        raise InputError(
            f"{name}: {len(problems)} problem{'s' if len(problems) > 1 else ''} in {source}; nothing was written\n  "
            + "\n  ".join(problems[:SHOWN_PROBLEMS] + ([f"... and {more} more"] if more > 0 else []))
        )
    return presence


def _write(
    name: str,
    config: str,
    splits: Mapping[str, Sequence[Pair]],
    presence: Mapping[str, Bool[np.ndarray, "images classes"]],
    classes: tuple[str, ...],
    source: Path,
    data_dir: Path,
) -> None:
    with _quiet_tfds() as tfds:
        features = tfds.features.FeaturesDict(
            {
                "name": tfds.features.Text(),
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                # Bytes, not an Image: TFDS decodes a palette image to colours, and the class numbers are lost.
                "mask": tfds.features.Scalar(np.object_),
                "presence": tfds.features.Tensor(shape=(len(classes),), dtype=np.bool_),
            }
        )

        class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore
            """Writes `splits`, in their order."""

            VERSION = tfds.core.Version(VERSION)

            def _info(self) -> Any:
                return tfds.core.DatasetInfo(
                    builder=self,
                    description="Images and masks as their encoded files; the masks' values are class numbers, 255 is void.",
                    features=features,
                    metadata=tfds.core.MetadataDict({"classes": list(classes), "source": str(source)}),
                    disable_shuffling=True,  # rows stay in the order of the lists
                )

            def _split_generators(self, dl_manager: object) -> dict[str, Any]:
                index = {f"{split}/names": np.array([pair.name for pair in pairs]) for split, pairs in splits.items()}
                index |= {f"{split}/presence": rows for split, rows in presence.items()}
                np.savez_compressed(Path(self.data_dir) / "index.npz", **index)  # pyright: ignore[reportArgumentType]
                return {split: self._generate_examples(split) for split in splits}

            def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
                bar = tqdm(splits[split], f"{name}: writing {split}", unit=" images", disable=None)
                for row, pair in enumerate(bar):
                    yield (
                        row,
                        {
                            "name": pair.name,
                            # A path: the file's bytes are stored; an array would need TensorFlow.
                            "image": os.fspath(pair.image),
                            "mask": pair.mask.read_bytes(),
                            "presence": presence[split][row],
                        },
                    )

            def _log_download_bytes(self) -> None:
                """TFDS announces a download here; there is none."""

            def _log_download_done(self) -> None:
                """As `_log_download_bytes`."""

        Builder.name = name
        builder = Builder(
            data_dir=os.fspath(data_dir), config=tfds.core.BuilderConfig(name=config), file_format="array_record"
        )
        with tempfile.TemporaryDirectory() as unused:  # TFDS makes this folder even where nothing is downloaded
            builder.download_and_prepare(download_dir=unused)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[Any]:
    """The `tensorflow_datasets` package, imported late (it is slow) and without its progress bars and log lines."""
    import tensorflow_datasets as tfds
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        yield tfds
    finally:
        logging.set_verbosity(verbosity)


# ------------------------------------------------------------------------------------------------------------------ read


def is_complete(directory: Path) -> bool:
    """Whether `prepare` finished this directory."""
    return (directory / "dataset_info.json").is_file() and (directory / "index.npz").is_file()


def find(name: str, data_dir: Path) -> list[Path]:
    """All finished directories of a data set below `data_dir`; or `data_dir` itself, where it is one."""
    if is_complete(data_dir):
        return [data_dir]
    return sorted(path for path in data_dir.glob(f"{name}/*/{VERSION}") if is_complete(path))


@dataclasses.dataclass(frozen=True)
class Reader:
    """Image and mask number `i` of a prepared split. Only the place is pickled; each process opens the files itself."""

    directory: str
    split: str

    def __call__(self, i: int) -> tuple[Image.Image, Image.Image]:
        record = _source(self.directory, self.split)[i]
        return decode_image(io.BytesIO(record["image"])), decode_mask(io.BytesIO(record["mask"]))


def _source(directory: str, split: str) -> Any:
    with _source_lock:  # importing and opening are not thread-safe; reading is
        return _open(directory, split)


@functools.lru_cache(maxsize=8)
def _open(directory: str, split: str) -> Any:
    """Random access to the records of a split, images undecoded."""
    with _quiet_tfds() as tfds:
        builder = tfds.builder_from_directory(directory)
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def dataset(directory: Path, split: str, classes: tuple[str, ...]) -> Dataset:
    """A split of a directory that `prepare` wrote."""
    with np.load(directory / "index.npz") as index:
        names, presence = index[f"{split}/names"].tolist(), index[f"{split}/presence"]
    return Dataset(classes, tuple(names), presence, Reader(os.fspath(directory), split))
