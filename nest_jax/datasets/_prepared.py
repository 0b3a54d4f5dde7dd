"""Image and mask files -> a TFDS directory (ArrayRecord) -> `Dataset`. No TensorFlow. For the data sets that lie on disk as files.

The files' bytes are stored as they are, masks that are no index pictures as PNG; decoding happens in `read`. Names and class
presence of all images lie beside the records in `index.npz`, so that a protocol's image lists need no pass over the images. What
was left out as bad lies in `skipped.json`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import io
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from nest_jax.datasets import Dataset
from nest_jax.datasets._check import Checked, Pair, ReadMask, check_all, decode_image, decode_index_mask
from nest_jax.errors import InputError

VERSION = "1.0.0"
SKIPPED = "skipped.json"
WITHOUT_BAD = "_without_bad"

_log = logging.getLogger(__name__)
_source_lock = threading.Lock()

# ------------------------------------------------------------------------------------------------------------------ prepare


def prepare(
    name: str,
    config: str,
    splits: Mapping[str, Sequence[Pair]],
    *,
    classes: tuple[str, ...],
    source: Path,
    data_dir: Path,
    read_mask: ReadMask | None = None,
    skip_bad: bool = False,
) -> Path:
    """The TFDS directory `data_dir/name/config/VERSION`, written if it is not there yet.

    Every pair is decoded and checked before anything is written. TFDS writes beside the final place and renames at the end,
    so an interrupted preparation is never taken for a finished one; of two at the same time, the first wins.

    Args:
        source: what to name as the place of the files, in messages and in the directory's metadata.
        read_mask: for masks that are no index pictures; their labels are stored as PNG. Left out, the files' bytes are.
        skip_bad: where there are bad pairs, leave them out; the directory then is `data_dir/name/config_without_bad/VERSION`, so
            that the mended files are not taken for prepared later.

    Raises:
        InputError: pairs that are missing, unreadable or wrong (the first 20 and their number); a `data_dir` that cannot be written.
    """
    for candidate in (config, config + WITHOUT_BAD) if skip_bad else (config,):
        if is_complete(data_dir / name / candidate / VERSION):
            return data_dir / name / candidate / VERSION
    checked = check_all(name, splits, classes, source=source, read_mask=read_mask, skip_bad=skip_bad)
    config += WITHOUT_BAD if checked.skipped else ""
    directory = data_dir / name / config / VERSION
    try:
        _write(name, config, checked, classes, source, data_dir, read_mask)
    except (OSError, RuntimeError) as error:  # the latter is ArrayRecord's, on a full disk
        if is_complete(directory):  # another process was faster: its rename came first
            return directory
        raise InputError(
            f"{name}: cannot write the prepared data set below {data_dir} ({error}); "
            "choose another place with --data_dir, --config.dataset.data_dir=DIR or the environment variable TFDS_DATA_DIR"
        ) from error
    for leftover in sorted(directory.parent.glob("incomplete.*")):
        _log.warning("%s: left behind by a preparation that was killed; delete it unless one is running", leftover)
    return directory


def _write(
    name: str,
    config: str,
    checked: Checked,
    classes: tuple[str, ...],
    source: Path,
    data_dir: Path,
    read_mask: ReadMask | None,
) -> None:
    def read(pair: Pair) -> tuple[bytes, bytes]:
        return pair.image.read_bytes(), pair.mask.read_bytes() if read_mask is None else _png(read_mask(pair.mask))

    with _quiet_tfds() as tfds:
        features = tfds.features.FeaturesDict(
            {
                "name": tfds.features.Text(),
                # Encoded bytes are stored as they are; an array would need TensorFlow.
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                # Bytes, not an Image: TFDS decodes a palette image to colours, and the class numbers are lost.
                "mask": tfds.features.Scalar(np.object_),
                "presence": tfds.features.Tensor(shape=(len(classes),), dtype=np.bool_),
            }
        )

        class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore
            """Writes `checked.pairs`, in their order."""

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
                index = {
                    f"{key}/names": np.array([pair.name for pair in pairs]) for key, pairs in checked.pairs.items()
                }
                index |= {f"{key}/presence": rows for key, rows in checked.presence.items()}
                np.savez_compressed(Path(self.data_dir) / "index.npz", **index)  # pyright: ignore[reportArgumentType]
                if checked.skipped:
                    (Path(self.data_dir) / SKIPPED).write_text(
                        json.dumps(checked.skipped, indent=1, ensure_ascii=False)
                    )
                return {split: self._generate_examples(split) for split in checked.pairs}

            def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
                pairs = checked.pairs[split]
                bar = tqdm(_ahead(read, pairs), f"{name}: writing {split}", len(pairs), unit=" images", disable=None)
                for row, (image, mask) in enumerate(bar):
                    presence = checked.presence[split][row]
                    yield row, {"name": pairs[row].name, "image": image, "mask": mask, "presence": presence}

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


def _png(mask: Image.Image) -> bytes:
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()


def _ahead(read: Callable[[Pair], tuple[bytes, bytes]], pairs: Sequence[Pair]) -> Iterator[tuple[bytes, bytes]]:
    """`map` in threads, in order, only so far ahead that little memory is held."""
    count = min(32, 2 * (os.cpu_count() or 1))
    waiting: collections.deque[Future[tuple[bytes, bytes]]] = collections.deque()
    pool = ThreadPoolExecutor(count)
    try:
        for pair in pairs:
            waiting.append(pool.submit(read, pair))
            if len(waiting) > 2 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


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
        source = _source(self.directory, self.split)
        try:
            record = source[i]
            if record["image"] is None or record["mask"] is None:  # what ArrayRecord makes of a file that is cut off
                raise ValueError(f"record {i} of {self.split} is empty")
        except Exception as error:
            raise _damaged(self.directory, error) from error
        return decode_image(record["image"]), decode_index_mask(record["mask"])


def _source(directory: str, split: str) -> Any:
    with _source_lock:  # importing and opening are not thread-safe; reading is
        try:
            return _open(directory, split)
        except Exception as error:  # TFDS, protobuf and ArrayRecord each have their own
            raise _damaged(directory, error) from error


def _damaged(directory: object, error: Exception) -> InputError:
    return InputError(
        f"{directory}: this prepared data set is damaged; delete it and prepare it again ({type(error).__name__}: {error})"
    )


@functools.lru_cache(maxsize=8)
def _open(directory: str, split: str) -> Any:
    """Random access to the records of a split, images undecoded."""
    with _quiet_tfds() as tfds:
        builder = tfds.builder_from_directory(directory)
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def dataset(directory: Path, split: str, classes: tuple[str, ...]) -> Dataset:
    """A split of a directory that `prepare` wrote.

    Raises:
        InputError: a damaged directory, or one of another data set.
    """
    try:
        with (directory / "index.npz").open("rb") as file, np.load(file) as index:
            names, presence = index[f"{split}/names"].tolist(), index[f"{split}/presence"]
        skipped = skipped_images(directory).get(split, {})
    except Exception as error:  # NumPy, zipfile and JSON each have their own
        raise _damaged(directory, error) from error
    if presence.shape[1] != len(classes):
        raise InputError(
            f"{directory}: a prepared set of {presence.shape[1]} classes, background included; wanted is one of {len(classes)}"
        )
    if skipped:
        _log.warning("%s: %d bad %s images were left out; %s names them", directory, len(skipped), split, SKIPPED)
    return Dataset(classes, tuple(names), presence, Reader(os.fspath(directory), split))


def skipped_images(directory: Path) -> dict[str, dict[str, list[str]]]:
    """What `skip_bad` left out of a prepared directory: split -> name -> what is wrong with it."""
    file = directory / SKIPPED
    return json.loads(file.read_text()) if file.is_file() else {}
