"""Evaluation: the prediction is the argmax of the upsampled logits; one confusion matrix over the whole set.

`python -m nest_jax.evaluate` evaluates a completed task of a run again: `nest_jax.reevaluate`.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from nest_jax import blockwise, interruption, pictures, sharding, storage, tasks, upsample, writers
from nest_jax import data as task_data
from nest_jax import segmenter as seg
from nest_jax.data import Data
from nest_jax.segmenter import Segmenter

View = tuple[float, bool]  # an image's scale, and whether it is mirrored
PLAIN: tuple[View, ...] = ((1.0, False),)


def confusion(labels: Int[Array, "..."], predictions: Int[Array, "..."], classes: int) -> Int[Array, "classes classes"]:
    """Pixels per (label, prediction), int32; labels outside [0, classes) drop out.

    A product of one-hot matrices: no scatter, and exact, for no more than 2²⁴ pixels.
    """
    truth = jax.nn.one_hot(labels.reshape(-1), classes, dtype=jnp.float32)
    guess = jax.nn.one_hot(predictions.reshape(-1), classes, dtype=jnp.float32)
    return jnp.matmul(truth.T, guess, precision=jax.lax.Precision.HIGHEST).astype(jnp.int32)


def view_logits(
    segmenter: Segmenter, model: Any, images: UInt8[Array, "b h w 3"], view: View
) -> Float[Array, "b hh ww classes"]:
    """Small logits of a view of the images, mirrored back; scaled bilinearly, without antialiasing, after normalisation."""
    scale, mirrored = view
    if scale != 1:
        height, width = (max(1, round(side * scale)) for side in images.shape[1:3])
        images = upsample.bilinear(segmenter.normalise(images), (height, width))  # type: ignore[assignment]
    images = images[:, :, ::-1] if mirrored else images
    features, _ = seg.apply(segmenter, model["network"], model["batch_stats"], images, train=False)
    logits = seg.logits(features.pre_logits, model["classifier"])
    return logits[:, :, ::-1] if mirrored else logits


def make_step(
    segmenter: Segmenter, mesh: Mesh, *, block_rows: int = 0, views: tuple[View, ...] = PLAIN
) -> Callable[[Any, Array, dict[str, Array]], tuple]:
    """`step(model, table, batch) -> (confusion int32 [classes, classes], predictions uint8 [b, H, W])`, jitted, both on every device.

    `model` = {"network", "classifier", "batch_stats"}; `table` uint8 [256] maps raw labels to the model's classes; 255 is not scored.
    The softmax probabilities of several `views` are averaged.
    """

    @partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def step(model, table, batch):
        classes = model["classifier"]["bias"].shape[0]
        labels = table[batch["label"].astype(jnp.int32)].astype(jnp.int32)
        maps = tuple(view_logits(segmenter, model, batch["image"], view) for view in views)

        def block(logits, labels):
            predictions = jnp.argmax(logits, axis=-1)
            return confusion(labels, predictions, classes), predictions.astype(jnp.uint8)

        def image(maps_and_labels):
            *maps, labels = maps_and_labels
            return block(sum(jax.nn.softmax(upsample.bilinear(one[None], labels.shape)[0]) for one in maps), labels)

        if len(maps) > 1:  # maps of several sizes: an image at a time, not a block of rows
            matrices, predictions = jax.lax.map(image, (*maps, labels))
            return jnp.sum(matrices, axis=0), predictions
        matrices, predictions = blockwise.map_rows(block, maps, labels, rows=block_rows)
        predictions = jnp.moveaxis(predictions, 0, 1).reshape(labels.shape)
        return jnp.sum(matrices, axis=0), predictions

    return step


def evaluated(
    step: Callable[..., tuple], placed: Any, batches: Iterable[dict[str, np.ndarray]], mesh: Mesh, *, whole: bool
) -> Iterator[tuple[dict[str, np.ndarray], Array, Array]]:
    """(batch, confusion, predictions) of every batch.

    Args:
        step: of `make_step`. placed: {"model", "table"} on the mesh.
        whole: every process has the whole batch, and every device computes all of it: a single full image is not divided.
    """
    for batch in batches:
        inputs = {"image": batch["image"], "label": batch["label"]}
        inputs = sharding.replicate(inputs, mesh) if whole else sharding.global_batch(inputs, mesh)
        yield batch, *step(placed["model"], placed["table"], inputs)


MEETING = 10  # batches after which several processes ask each other whether to stop


def total(found: Iterable[tuple], classes: int, steps: int, description: str, *, progress: bool) -> np.ndarray:
    """The sum of the confusion matrices of `evaluated`, int64, `[truth, prediction]`; shows a progress bar over `steps`."""
    matrices = np.zeros((classes, classes), np.int64)
    with writers.progress(steps, 0, description, enabled=progress) as bar:
        for done, (batch, matrix, _) in enumerate(found, start=1):
            matrices += np.asarray(matrix, np.int64)
            if interruption.agreed(interruption.requested(), meeting=done % MEETING == 0)[0]:
                raise interruption.Stopped(description)
            bar.update(1, images=len(batch["image"]) * jax.process_count())
    return matrices


def run(data: Data, segmenter: Segmenter, mesh: Mesh, task: int, model: dict, workdir: Any) -> np.ndarray:
    """Confusion matrix `[truth, prediction]`, int64, over the validation images that show a class learnt so far.

    The pictures of this task are written to `workdir` on the way.
    """
    config, whole = data.config, data.config.evaluate.full_images
    # Full images have any height; a block must divide it, so the size decides there.
    step = make_step(segmenter, mesh, block_rows=0 if whole else config.loss.block_rows)
    placed = sharding.replicate({"model": model, "table": tasks.test_table(data.protocol, task)}, mesh)
    indices = tasks.test_indices(data.val.presence, data.protocol, task)
    found = evaluated(step, placed, task_data.test(data, indices, whole=whole), mesh, whole=whole)
    steps, classes = task_data.test_steps(data, len(indices)), len(data.protocol.seen(task))
    matrices = total(found, classes, steps, f"task {task} evaluation", progress=config.log.progress)
    if config.evaluate.pictures:
        shown = task_data.test(data, task_data.picture_indices(data), whole=True)
        _save_pictures(data, task, evaluated(step, placed, shown, mesh, whole=True), workdir)
    return matrices


def _save_pictures(data: Data, task: int, evaluated: Iterator[tuple], workdir: Any) -> None:
    """Images, truths and predictions in learnt order; the truth shows the classes of all tasks, also those still to come."""
    last = len(data.protocol) - 1
    table = tasks.test_table(data.protocol, last)
    names, images, truths, predictions = [], [], [], []
    for batch, _, guesses in evaluated:
        for index, image, label, guess in zip(
            batch["index"], batch["image"], batch["label"], np.asarray(guesses), strict=True
        ):
            if index >= 0:
                names.append(data.val.names[index])
                images.append(image)
                truths.append(table[label])
                predictions.append(guess)
    class_names = data.class_names(data.protocol.seen(last))
    arguments = (workdir, task, names, images, truths, predictions, class_names)
    storage.on_first_process(lambda: pictures.save_predictions(*arguments))


if __name__ == "__main__":
    from nest_jax import reevaluate

    sys.exit(reevaluate.main())
