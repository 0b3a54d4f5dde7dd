"""Batches of uint8 images and raw labels, made ahead of time by threads or processes (Grain).

Every batch is a pure function of (seed, number of the batch): a random-access source makes it whole, Grain only spreads
the batches over threads or processes and hands them out in order. So neither the number of workers, nor a restart in
the middle, nor the number of hosts changes a number. The labels are the masks' own; what they mean for a task is
decided on the device.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import os
import signal
import weakref
from collections.abc import Callable, Generator, Sequence

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from nest_jax.datasets import Dataset
from nest_jax.errors import InputError, TrainingError
from nest_jax.transforms import eval_transform, full_image, train_transform

VOID = 255
Batch = dict[str, np.ndarray]
_ENDLESS = 2**62


def train_batches(
    dataset: Dataset,
    indices: Sequence[int] | Int[np.ndarray, " images"],
    *,
    size: int,
    batch_size: int,
    seed: tuple[int, ...],
    start: int = 0,
    stop: int | None = None,
    workers: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Generator[Batch, None, None]:
    """Shuffled, augmented batches, epoch after epoch; the images that do not fill a batch are left out of an epoch.

    The order of epoch e and the randomness of the sample at position p in it depend on (seed, e, p) only.

    Args:
        dataset: what is read.
        indices: the images of `dataset` that take part.
        size: side of the crops in pixels.
        batch_size: images in a batch over all processes.
        seed: non-negative integers; runs, tasks and phases differ in them.
        start: number of the first batch, counted over all epochs (where a resumed run goes on).
        stop: one past the last batch; endless if None.
        workers: 0: threads of this process; otherwise this many Grain processes.
        process: (index, count): yield the rows [index * b / count, (index + 1) * b / count) of the global batch of b.

    Yields:
        {"image": uint8 [rows, size, size, 3], "label": uint8 [rows, size, size]}.

    Raises:
        InputError: at the call for arguments that do not fit together (fewer images than `batch_size`, ...); while
            iterating for an unreadable image or mask, with its name.
    """
    iterations_per_epoch(len(indices), batch_size)
    source = _Epochs(_Samples(dataset, _checked(dataset, indices), size, _seed(seed)), batch_size, process)
    return _stream(source, start, _ENDLESS if stop is None else stop, workers)


def one_pass_batches(
    dataset: Dataset,
    indices: Sequence[int] | Int[np.ndarray, " images"],
    *,
    size: int,
    batch_size: int,
    seed: tuple[int, ...],
    start: int = 0,
    workers: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Generator[Batch, None, None]:
    """Every image once, in order, with the training augmentation: for statistics over a task's images.

    The last batch is filled up with black images labelled 255. Arguments, items and errors are as in `train_batches`;
    there are `batches_in_pass(len(indices), batch_size)` batches.
    """
    samples = _Samples(dataset, _checked(dataset, indices), size, _seed(seed))
    source = _Pass(samples, batch_size, process, with_index=False)
    return _stream(source, start, batches_in_pass(len(indices), batch_size), workers)


def eval_batches(
    dataset: Dataset,
    indices: Sequence[int] | Int[np.ndarray, " images"],
    *,
    size: int | None,
    batch_size: int,
    start: int = 0,
    workers: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Generator[Batch, None, None]:
    """Every image once, in order: the central square of side `size`, or the full image if `size` is None.

    The last batch is filled up with black images labelled 255. Full images come in batches of one, whatever
    `batch_size` says.

    Yields:
        {"image": uint8 [rows, h, w, 3], "label": uint8 [rows, h, w], "valid": bool [rows], "index": int64 [rows]};
        `index` counts in `dataset`, -1 where not valid.

    Raises:
        InputError: as `train_batches`; also for full images in more than one process.
    """
    if size is None:
        batch_size = 1
        if process[1] != 1:
            raise InputError(
                f"full-size evaluation runs in one process, got {process[1]} processes; set evaluate.full_images=False"
            )
    source = _Pass(_Samples(dataset, _checked(dataset, indices), size, None), batch_size, process, with_index=True)
    return _stream(source, start, batches_in_pass(len(indices), batch_size), workers)


def iterations_per_epoch(images: int, batch_size: int) -> int:
    """Full batches in an epoch.

    Raises:
        InputError: there is not one.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: must be at least 1, got {batch_size}")
    if images < batch_size:
        raise InputError(
            f"batch_size: {batch_size} is more than the {images} training images of this task; choose at most {images}"
        )
    return images // batch_size


def batches_in_pass(images: int, batch_size: int) -> int:
    """Batches that hold every image once, the last one perhaps not full.

    Raises:
        InputError: `batch_size` is not positive.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: must be at least 1, got {batch_size}")
    return -(-images // batch_size)


@dataclasses.dataclass(frozen=True, eq=False)
class _Samples:
    """The chosen images of a data set, each with the view that its place in an epoch gives it."""

    dataset: Dataset
    indices: np.ndarray
    size: int | None
    seed: tuple[int, ...] | None  # None: the evaluation view

    def __len__(self) -> int:
        return len(self.indices)

    def read(
        self, number: int, epoch: int, position: int
    ) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        index = int(self.indices[number])
        name = self.dataset.names[index]
        try:
            image, mask = self.dataset.read(index)
            _check(name, image, mask)
            if self.size is None:
                return full_image(image, mask)
            if self.seed is None:
                return eval_transform(image, mask, self.size)
            return train_transform(image, mask, generator(self.seed, epoch, position), self.size)
        # What Pillow raises for damaged files, at opening or only when the pixels are wanted.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{name}: the image or its mask cannot be read ({error})") from error


@dataclasses.dataclass(frozen=True, eq=False)
class _Epochs:
    """Batch n of the endless shuffled stream."""

    samples: _Samples
    batch_size: int
    process: tuple[int, int]

    def __post_init__(self) -> None:
        _rows(self.batch_size, self.process)

    def batch(self, number: int) -> Batch:
        assert self.samples.seed is not None and self.samples.size is not None
        epoch, first = divmod(number, len(self.samples) // self.batch_size)
        order = _order(self.samples.seed, epoch, len(self.samples))
        rows = _rows(self.batch_size, self.process)
        image, label = _empty(len(rows), self.samples.size, np.empty)
        for row, place in enumerate(rows):
            position = first * self.batch_size + place
            image[row], label[row] = self.samples.read(int(order[position]), epoch, position)
        return {"image": image, "label": label}


@dataclasses.dataclass(frozen=True, eq=False)
class _Pass:
    """Batch n of one pass in order."""

    samples: _Samples
    batch_size: int
    process: tuple[int, int]
    with_index: bool

    def __post_init__(self) -> None:
        _rows(self.batch_size, self.process)

    def batch(self, number: int) -> Batch:
        rows = _rows(self.batch_size, self.process)
        positions = np.arange(rows.start, rows.stop) + number * self.batch_size
        valid: Bool[np.ndarray, " rows"] = positions < len(self.samples)
        if self.samples.size is None:
            pixels, labels = self.samples.read(number, 0, number)
            image, label = pixels[None], labels[None]
        else:
            image, label = _empty(len(rows), self.samples.size, np.zeros)
            for row, position in enumerate(positions[valid].tolist()):  # padding is at the end only
                image[row], label[row] = self.samples.read(position, 0, position)
            label[~valid] = VOID
        if not self.with_index:
            return {"image": image, "label": label}
        index = np.where(valid, self.samples.indices[np.minimum(positions, len(self.samples) - 1)], -1)
        return {"image": image, "label": label, "valid": valid, "index": index}


@dataclasses.dataclass(frozen=True, eq=False)
class _Window:
    """The batches [start, stop) of a source, in the shape Grain asks for."""

    source: _Epochs | _Pass
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Batch:
        return self.source.batch(self.start + index)


def _stream(source: _Epochs | _Pass, start: int, stop: int, workers: int) -> Generator[Batch, None, None]:
    if start < 0:
        raise InputError(f"start: must not be negative, got {start}")
    if workers < 0:
        raise InputError(f"workers: must be 0 (threads) or the number of processes, got {workers}")
    stream = _iterate(_Window(source, start, max(start, stop)), workers)
    _open.add(stream)
    return stream


def _iterate(window: _Window, workers: int) -> Generator[Batch, None, None]:
    if not len(window):
        return
    batches = grain.MapDataset.source(window)
    if workers:
        _allow_flags()
        # A worker makes one batch at a time; its buffer and the batch in the making are what is ahead.
        reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        stream = iter(batches.to_iter_dataset(reading).mp_prefetch(processes, worker_init_fn=_start_worker))
    else:
        threads = min(16, _cores())
        stream = iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)))
    try:
        while (batch := next(stream, None)) is not None:
            if workers:
                # Out of Grain's shared memory: arrays over it must not outlive the stream, and the room in it is small.
                batch = {key: np.array(value) for key, value in batch.items()}
            yield batch
    except Exception as error:
        raise _unwrapped(error) from error
    finally:
        stream.close()  # also when the caller drops the iterator


_open: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()


@atexit.register
def _close_open_streams() -> None:
    """A program may end with a stream half read: Grain must end its processes while Python's modules still stand."""
    for stream in list(_open):
        with contextlib.suppress(ValueError):  # one that another thread is reading from
            stream.close()


def _unwrapped(error: BaseException) -> BaseException:
    """The `InputError` that lies behind an error from a thread or process, a dead worker in plain words, or else the error itself."""
    if "terminated unexpectedly" in str(error):
        ended = str(error).splitlines()[0].removesuffix("Search the logs above for the source of the crash.").strip()
        return TrainingError(
            f"reading images: {ended} (-9 is often a full memory). The same command continues from the last checkpoint; "
            "--config.train.workers=0 reads in threads"
        )
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, InputError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error


def _allow_flags() -> None:
    """Grain reads absl flags, which raise until they are parsed: in a notebook or a test nobody parses them."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _start_worker(index: int, count: int) -> None:
    del index, count
    _allow_flags()
    # Ctrl-C and schedulers signal whole process groups; the main process then wants one more batch, to finish its step and save.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _rows(batch_size: int, process: tuple[int, int]) -> range:
    index, count = process
    if not 0 <= index < count:
        raise InputError(f"process: index {index} is not one of {count} processes")
    if batch_size % count:
        raise InputError(f"batch_size: {batch_size} cannot be split evenly over {count} processes")
    each = batch_size // count
    return range(index * each, (index + 1) * each)


def _empty(rows: int, size: int, new: Callable[..., np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return new((rows, size, size, 3), np.uint8), new((rows, size, size), np.uint8)


def _checked(dataset: Dataset, indices: Sequence[int] | np.ndarray) -> Int[np.ndarray, " images"]:
    indices = np.asarray(indices, np.int64)
    if indices.size and not (0 <= indices.min() and indices.max() < len(dataset)):
        raise InputError(
            f"indices: {indices.min()}..{indices.max()} do not lie in the {len(dataset)} images of the data set"
        )
    return indices


def _seed(seed: tuple[int, ...]) -> tuple[int, ...]:
    if any(part < 0 for part in seed):
        raise InputError(f"seed: must consist of non-negative integers, got {seed}")
    return (len(seed), *(int(part) for part in seed))  # the length, because NumPy takes (1,) and (1, 0) for the same


def _check(name: str, image: Image.Image, mask: Image.Image) -> None:
    if image.size != mask.size:
        raise InputError(f"{name}: the image is {_wh(image)} pixels but its mask is {_wh(mask)}")
    if image.mode != "RGB" or mask.mode != "L":
        raise InputError(
            f"{name}: expected an image of mode RGB and a mask of mode L, got {image.mode} and {mask.mode}"
        )


def _wh(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


def generator(seed: tuple[int, ...], *key: int) -> np.random.Generator:
    """A random stream of its own for every (seed, key)."""
    # As spawn key: plain entropy (seed, epoch) and (seed, epoch, 0) would give the same numbers.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


@functools.lru_cache(maxsize=4)
def _order(seed: tuple[int, ...], epoch: int, count: int) -> np.ndarray:
    """The order of an epoch; cached because every batch of the epoch asks for it."""
    return generator(seed, epoch).permutation(count)
