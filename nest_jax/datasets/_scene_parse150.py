"""The records of TFDS's `scene_parse150` as image and mask pairs, read without TensorFlow from TFRecord or ArrayRecord files."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nest_jax.datasets._check import Pair, decode_index_mask
from nest_jax.errors import InputError

_SPLITS = {"train": "train", "val": "test"}
_PROBED = 50
_INSTANCES = (
    "the three channels of an annotation differ: these are the instance annotations of the 2017 challenge (class of 100, "
    "instance), not the 150 classes; take ADEChallengeData2016"
)


def directory(root: Path) -> Path | None:
    """The prepared scene_parse150 at or below `root`, if there is one."""
    for pattern in (".", "*", "scene_parse150/*"):
        for info in sorted(root.glob(f"{pattern}/dataset_info.json")):
            try:
                if json.loads(info.read_text()).get("name") == "scene_parse150":
                    return info.parent
            except (OSError, ValueError):
                continue
    return None


def pairs(directory: Path) -> dict[str, list[Pair]]:
    """Both splits in the order of the records, which is not that of the file numbers: TFDS shuffled them and kept no names.

    Raises:
        InputError: shards that are missing or damaged; instance annotations.
    """
    found = {}
    for split, name in _SPLITS.items():
        files = _shards(directory, name)
        records = [(file, i) for file in files for i in range(len(_records(file)))]
        found[split] = [
            Pair(
                f"scene_parse150_{name}_{row:05d}",
                Record(file, i, "image"),
                Record(file, i, "annotation"),
                str(directory),
            )
            for row, (file, i) in enumerate(records)
        ]
    for pair in found["train"][:_PROBED]:  # not left to the check: an image without an instance would pass there
        with Image.open(io.BytesIO(pair.mask.read_bytes())) as mask:
            if mask.mode == "RGB" and not _grey(mask):
                raise InputError(f"ade20k: {pair.mask}: {_INSTANCES}")
    return found


@dataclasses.dataclass(frozen=True)
class Record:
    """One encoded image of a record."""

    file: Path
    row: int
    feature: str

    def read_bytes(self) -> bytes:
        from tensorflow_datasets.proto import tf_example_pb2

        example = tf_example_pb2.Example.FromString(_records(self.file)[self.row])  # pyright: ignore[reportAttributeAccessIssue]
        return example.features.feature[self.feature].bytes_list.value[0]

    def __str__(self) -> str:
        return f"{self.file}, record {self.row} ({self.feature})"


def read_mask(place: Record) -> Image.Image:
    """The labels: of a grey or palette picture, or of one with three equal channels.

    Raises:
        ValueError: another picture.
    """
    encoded = place.read_bytes()
    with Image.open(io.BytesIO(encoded)) as mask:
        if mask.mode != "RGB":
            return decode_index_mask(encoded)
        if not _grey(mask):
            raise ValueError(_INSTANCES)
        return mask.getchannel(0)


def _grey(mask: Image.Image) -> bool:
    red, green, blue = (np.asarray(channel) for channel in mask.split())
    return np.array_equal(red, green) and np.array_equal(red, blue)


# ------------------------------------------------------------------------------------------------------------------ shards


def _shards(directory: Path, split: str) -> list[Path]:
    """The files of a split, in order."""
    files = sorted(directory.glob(f"scene_parse150-{split}.*record-*-of-*"))
    wanted = int(files[0].name[-5:]) if files else 1
    if len(files) != wanted:
        raise InputError(f"ade20k: {directory}: {len(files)} scene_parse150-{split} files, there should be {wanted}")
    return files


@functools.cache
def _records(file: Path) -> Any:
    """Random access to the serialised examples of a shard."""
    if ".array_record-" in file.name:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return ArrayRecordDataSource(str(file))
    return _TFRecord(file)


class _TFRecord:
    """A TFRecord file: length (8 bytes, little-endian), its checksum (4), content, its checksum (4), and so on."""

    def __init__(self, file: Path) -> None:
        self.file, self.places = file, []
        size, at = file.stat().st_size, 0
        with file.open("rb") as stream:
            while at < size:
                stream.seek(at)
                header = stream.read(12)
                length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
                if at + 16 + length > size:
                    raise InputError(f"ade20k: {file} is cut off or damaged after {len(self.places)} records")
                self.places.append((at + 12, length))
                at += 16 + length

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: int) -> bytes:
        start, length = self.places[row]
        with self.file.open("rb") as stream:
            stream.seek(start)
            return stream.read(length)
