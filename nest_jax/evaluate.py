"""Evaluation: the prediction is the argmax of the upsampled logits; one confusion matrix over the whole set."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from nest_jax import blockwise, interruption, pictures, sharding, tasks, writers
from nest_jax import data as task_data
from nest_jax import segmenter as seg
from nest_jax.data import Data
from nest_jax.segmenter import Segmenter


def confusion(labels: Int[Array, "..."], predictions: Int[Array, "..."], classes: int) -> Int[Array, "classes classes"]:
    """Pixels per (label, prediction), int32; labels outside [0, classes) drop out.

    A product of one-hot matrices: no scatter, and exact, for no more than 2²⁴ pixels.
    """
    truth = jax.nn.one_hot(labels.reshape(-1), classes, dtype=jnp.float32)
    guess = jax.nn.one_hot(predictions.reshape(-1), classes, dtype=jnp.float32)
    return jnp.matmul(truth.T, guess, precision=jax.lax.Precision.HIGHEST).astype(jnp.int32)


def make_step(
    segmenter: Segmenter, mesh: Mesh, *, block_rows: int = 0
) -> Callable[[Any, Array, dict[str, Array]], tuple]:
    """`step(model, table, batch) -> (confusion int32 [classes, classes], predictions uint8 [b, H, W])`, jitted, both on every device.

    `model` = {"network", "classifier", "batch_stats"}; `table` uint8 [256] maps raw labels to the model's classes; 255 is not scored.
    """

    @partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def step(model, table, batch):
        classes = model["classifier"]["bias"].shape[0]
        labels = table[batch["label"].astype(jnp.int32)].astype(jnp.int32)
        features, _ = seg.apply(segmenter, model["network"], model["batch_stats"], batch["image"], train=False)
        logits = seg.logits(features.pre_logits, model["classifier"])

        def block(logits, labels):
            predictions = jnp.argmax(logits, axis=-1)
            return confusion(labels, predictions, classes), predictions.astype(jnp.uint8)

        matrices, predictions = blockwise.map_rows(block, (logits,), labels, rows=block_rows)
        predictions = jnp.moveaxis(predictions, 0, 1).reshape(labels.shape)
        return jnp.sum(matrices, axis=0), predictions

    return step


def run(data: Data, segmenter: Segmenter, mesh: Mesh, task: int, model: dict, workdir: Any) -> np.ndarray:
    """Confusion matrix `[truth, prediction]`, int64, over the validation images that show a class learnt so far.

    The pictures of this task are written to `workdir` on the way.
    """
    config = data.config
    # Full images have any height; a block must divide it, so the size decides there.
    step = make_step(segmenter, mesh, block_rows=0 if config.evaluate.full_images else config.loss.block_rows)
    table = tasks.test_table(data.protocol, task)
    placed = sharding.replicate({"model": model, "table": table}, mesh)

    def evaluated(indices: np.ndarray, *, whole: bool) -> Iterator[tuple[dict[str, np.ndarray], Array, Array]]:
        for batch in task_data.test(data, indices, whole=whole):
            inputs = {"image": batch["image"], "label": batch["label"]}
            inputs = sharding.replicate(inputs, mesh) if whole else sharding.global_batch(inputs, mesh)
            yield batch, *step(placed["model"], placed["table"], inputs)

    indices = tasks.test_indices(data.val.presence, data.protocol, task)
    classes = len(data.protocol.seen(task))
    total = np.zeros((classes, classes), np.int64)
    steps = task_data.test_steps(data, len(indices))
    with writers.progress(steps, 0, f"task {task} evaluation", enabled=config.log.progress) as bar:
        # A single full image is not divided: every device computes all of it.
        for batch, matrix, _ in evaluated(indices, whole=config.evaluate.full_images):
            total += np.asarray(matrix, np.int64)
            if jax.process_count() == 1 and interruption.requested():
                raise interruption.Stopped(f"task {task}, evaluation")
            bar.update(1, images=len(batch["image"]) * jax.process_count())
    if config.evaluate.pictures:
        _save_pictures(data, task, evaluated(task_data.picture_indices(data), whole=True), workdir)
    return total


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
    if jax.process_index() == 0:
        pictures.save_predictions(workdir, task, names, images, truths, predictions, class_names)
