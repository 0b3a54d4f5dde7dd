"""NeST, New Classifier Pre-tuning (ECCV 2024): the classifier of a new class as a learned transformation of all old ones.

`w_c = (M_c ⊙ W_old) P_c` with an importance matrix M_c `[old, d]` and a projection P_c `[old]` for every new class c, and
`ŵ_0 = (M_0 ⊙ w_0) P_0` for background. Only M, P, M_0, P_0 and the new bias are trained, on features behind `stop_gradient`; then the result
is written into the classifier. `new_classifier` is the whole of it, for any training loop; the trainer calls it too.

Arrays: features `[b, h, w, d]`; labels `[b, H, W]`, indices into old + new classes, 255 ignored; kernels `[d, classes]`.
Where the paper and the published code differ, `Settings` names the choice and docs/fidelity.md explains it; defaults are the code's.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nest_jax import classifier, pretuning, upsample
from nest_jax.pretuning import Batches, given, repeated, run_all

HIGHEST = jax.lax.Precision.HIGHEST
BLOCK = 256  # pixels of one class whose statistics are one matrix product; fewer at a class's end are filled up


@dataclasses.dataclass(frozen=True)
class Settings:
    """Pre-tuning's hyper-parameters and its named choices (facts behind each: docs/fidelity.md).

    Attributes:
        epochs, learning_rate, momentum, weight_decay, poly_power: SGD with Nesterov momentum and poly decay; weight decay acts on all five tensors.
        schedule: "shifted" advances the schedule before the update (last step has rate 0); "plain" after it.
        statistics_stride: similarity statistics are taken at 1/stride of the label resolution.
        batch_norm: "train" uses batch statistics and moves the running ones; "eval" leaves the network untouched.
        new_bias: start of the new biases: "random" (one common U(±1/√d) scalar), "background" (the trained background bias), "zeros".
        bias_rescale: "l2_total" multiplies the new biases by ‖b_old‖/‖b_new‖, "mean_abs" by the ratio of mean |b|, "off" leaves them.
        background_norm: "restore" gives the transformed background classifier its old norm; "free" leaves it.
        weight_alignment: scale new kernels to the mean norm of the old ones (eq. 13).
        matrix_init: start of M and P: "similarity" (the statistics) or "random" (Kaiming normal on fan-out; table 4).
        matrices: which of them are learnt: "both"; "projection": M is one and stays; "importance": P is the mean over old classes and stays (table 5).
        background_transform: learn M_0 and P_0; else the background classifier stays as it is.
    """

    epochs: int = 5
    learning_rate: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 1e-4
    poly_power: float = 0.9
    schedule: str = "shifted"
    statistics_stride: int = 4
    batch_norm: str = "train"
    new_bias: str = "random"
    bias_rescale: str = "l2_total"
    background_norm: str = "restore"
    weight_alignment: bool = True
    matrix_init: str = "similarity"
    matrices: str = "both"
    background_transform: bool = True


CHOICES = {
    "schedule": ("shifted", "plain"),
    "batch_norm": ("train", "eval"),
    "new_bias": ("random", "background", "zeros"),
    "bias_rescale": ("l2_total", "mean_abs", "off"),
    "background_norm": ("restore", "free"),
    "matrix_init": ("similarity", "random"),
    "matrices": ("both", "projection", "importance"),
}

Given = Array | np.ndarray  # what a caller may hand in
# importance [new, old, d], projection [new, old], bg_importance [d], bg_projection [], bias [new]
Transform = dict[str, Array]
Statistics = dict[str, Array]  # positive, negative [new, old, d]; pixels int32 [new]


class Result(NamedTuple):
    """`kernel [d, old + new]` and `bias [old + new]`; `network` as the features function left it; `details` for inspection."""

    kernel: Array
    bias: Array
    network: Any
    details: dict[str, Any]


# --- similarity statistics ------------------------------------------------------------------------------------------------------------


def no_statistics(num_new: int, num_old: int, channels: int) -> Statistics:
    """Sums over no pixels."""
    shape = (num_new, num_old, channels)
    return {"positive": jnp.zeros(shape), "negative": jnp.zeros(shape), "pixels": jnp.zeros(num_new, jnp.int32)}


def add_statistics(
    statistics: Statistics,
    old: classifier.Classifier,
    features: Float[Given, "b h w d"],
    labels: Int[Given, "b H W"],
    *,
    stride: int,
) -> Statistics:
    """Adds a batch to the sums from which every M_c follows, by matrix products over the pixels of new classes alone.

    With s the old model's softmax scores and p the embeddings of the pixels of class c, the paper's mean of `1[p_d W_id > 0] s_i` is
    `(1[W>0] ⊙ sᵀ1[p>0] + 1[W<0] ⊙ sᵀ1[p<0]) / N_c`: a product of signs is positive when both are equal. No `[pixels, old, d]` array exists.
    The pixels of an image are sorted by class and cut into blocks of one class each, so that the products' cost does not grow with the number of
    new classes: 4 d old FLOPs for a pixel of a new class, none for others.
    Features and logits are resampled bilinearly to 1/stride of the label resolution, labels by nearest.
    (The published code interpolates the logits up to the label resolution and down again; between the same grid points that is the identity.)
    """
    features, labels = jnp.asarray(features), jnp.asarray(labels)
    num_old, num_new = old["kernel"].shape[1], statistics["pixels"].shape[0]
    size = (labels.shape[1] // stride, labels.shape[2] // stride)
    small_logits = jnp.matmul(features, old["kernel"], precision=HIGHEST) + old["bias"]
    flat = (len(labels), size[0] * size[1])
    scores = jax.nn.softmax(upsample.bilinear(small_logits, size)).reshape(*flat, num_old)
    embeddings = upsample.bilinear(features, size).reshape(*flat, -1)
    nearest = labels[:, : size[0] * stride : stride, : size[1] * stride : stride].reshape(flat)
    blocks = jax.vmap(partial(_blocks_of_one_class, num_new=num_new))(nearest - num_old)

    def add_block(number, sums):
        def of_image(scores, embeddings, blocks):
            index, inside, label = blocks.block(number)
            chosen = jnp.where(inside[:, None], scores[index], 0.0)
            signs = jnp.concatenate([embeddings[index] > 0, embeddings[index] < 0], axis=1).astype(jnp.float32)
            return jnp.matmul(chosen.T, signs, precision=HIGHEST), jax.nn.one_hot(label, num_new)

        products, classes = jax.vmap(of_image)(scores, embeddings, blocks)
        return sums + jnp.einsum("bod,bn->nod", products, classes, precision=HIGHEST)

    empty = jnp.zeros((num_new, num_old, 2 * features.shape[-1]))
    sums = jax.lax.fori_loop(0, jnp.max(blocks.last[:, -1]), add_block, empty)
    positive, negative = jnp.split(sums, 2, axis=-1)
    return {
        "positive": statistics["positive"] + positive,
        "negative": statistics["negative"] + negative,
        "pixels": statistics["pixels"] + jnp.sum(blocks.pixels, axis=0),
    }


class _Blocks(NamedTuple):
    """Pixels in the order of their classes. `first`: a class's first place in it; `last`: the number of blocks up to and with the class."""

    order: Int[Array, " pixels"]
    first: Int[Array, " new"]
    pixels: Int[Array, " new"]
    last: Int[Array, " new"]

    def block(self, number: Array) -> tuple[Array, Array, Array]:
        """Indices of BLOCK pixels, which of them are there, and their class (`new` where no class has that many blocks)."""
        label = jnp.searchsorted(self.last, number, side="right")
        within = (number - jnp.where(label > 0, self.last[label - 1], 0)) * BLOCK + jnp.arange(BLOCK)
        inside = (within < self.pixels.at[label].get(mode="fill", fill_value=0)) & (label < len(self.last))
        place = self.first.at[label].get(mode="fill", fill_value=0) + within
        return self.order.at[place].get(mode="clip"), inside, label


def _blocks_of_one_class(classes: Int[Array, " pixels"], num_new: int) -> _Blocks:
    """The pixels of classes 0 .. num_new - 1, others left out."""
    known = jnp.where((classes >= 0) & (classes < num_new), classes, num_new)
    pixels = jnp.sum(known[:, None] == jnp.arange(num_new), axis=0, dtype=jnp.int32)
    first = jnp.cumsum(pixels) - pixels
    return _Blocks(jnp.argsort(known), first, pixels, jnp.cumsum(-(-pixels // BLOCK)))


def initial_transform(statistics: Statistics, old: classifier.Classifier, bias: Float[Array, " new"]) -> Transform:
    """M and P from the similarity statistics; ones for background; `bias` for the new classes.

    `M_c` is the mean masked score, `P_c = softmax_i Σ_d M_c[i, d]`. A class without a sampled pixel starts as a copy of the background
    classifier instead of the published 0/0.
    """
    kernel = old["kernel"].T
    pixels = statistics["pixels"][:, None, None]
    summed = jnp.where(kernel > 0, statistics["positive"], 0.0) + jnp.where(kernel < 0, statistics["negative"], 0.0)
    importance = summed / jnp.maximum(pixels, 1)
    projection = jax.nn.softmax(jnp.sum(importance, axis=-1), axis=-1)
    background = jnp.zeros(projection.shape[-1]).at[0].set(1.0)
    return {
        "importance": jnp.where(pixels > 0, importance, background[:, None]),
        "projection": jnp.where(pixels[..., 0] > 0, projection, background),
        "bg_importance": jnp.ones(kernel.shape[1]),
        "bg_projection": jnp.ones(()),
        "bias": bias,
    }


def random_transform(key: Array, old: classifier.Classifier, bias: Float[Array, " new"]) -> Transform:
    """M and P as the published constructor leaves them before the statistics replace them: Kaiming normal on fan-out; ones for background.

    PyTorch's fan-out of a tensor is its first size times all sizes from the third on: new x d for M `[new, old, d]`, new for P `[new, old]`.
    """
    (channels, num_old), num_new = old["kernel"].shape, bias.shape[0]
    importance_key, projection_key = jax.random.split(key)
    importance = jax.random.normal(importance_key, (num_new, num_old, channels)) * (2 / (num_new * channels)) ** 0.5
    projection = jax.random.normal(projection_key, (num_new, num_old)) * (2 / num_new) ** 0.5
    return {
        "importance": importance,
        "projection": projection,
        "bg_importance": jnp.ones(channels),
        "bg_projection": jnp.ones(()),
        "bias": bias,
    }


def restricted(transform: Transform, settings: Settings) -> Transform:
    """`transform` with what `settings.matrices` leaves out replaced: M by ones, or P by the mean over old classes."""
    if settings.matrices == "projection":
        return {**transform, "importance": jnp.ones_like(transform["importance"])}
    if settings.matrices == "importance":
        num_old = transform["projection"].shape[-1]
        return {**transform, "projection": jnp.full_like(transform["projection"], 1 / num_old)}
    return transform


def trainable(settings: Settings) -> dict[str, bool]:
    """Which parts of a transform pre-tuning changes."""
    return {
        "importance": settings.matrices != "projection",
        "projection": settings.matrices != "importance",
        "bg_importance": settings.background_transform,
        "bg_projection": settings.background_transform,
        "bias": True,
    }


# --- the transformation ---------------------------------------------------------------------------------------------------------------


def transformed(transform: Transform, old: classifier.Classifier) -> classifier.Classifier:
    """The classifier that pre-tuning evaluates: ŵ_0 with the old background bias, the other old classes as they are, the new classes."""
    background = old["kernel"][:, :1] * transform["bg_importance"][:, None] * transform["bg_projection"]
    new = jnp.einsum(
        "nod,do,no->dn", transform["importance"], old["kernel"], transform["projection"], precision=HIGHEST
    )
    return {
        "kernel": jnp.concatenate([background, old["kernel"][:, 1:], new], axis=1),
        "bias": jnp.concatenate([old["bias"], transform["bias"]]),
    }


def write_back(transform: Transform, old: classifier.Classifier, settings: Settings) -> classifier.Classifier:
    """The classifier that training starts from, in the published order: new kernels, bias, background, weight alignment."""
    num_old = old["bias"].shape[0]
    result = transformed(transform, old)
    size = {
        "l2_total": jnp.linalg.norm,
        "mean_abs": lambda b: jnp.mean(jnp.abs(b)),
        "off": lambda b: jnp.ones(()),
    }[settings.bias_rescale]
    new_size = size(transform["bias"])
    factor = jnp.where(new_size > 0, size(old["bias"]) / jnp.where(new_size > 0, new_size, 1.0), 1.0)
    bias = jnp.concatenate([old["bias"], transform["bias"] * factor])
    kernel = result["kernel"]
    if settings.background_norm == "restore":
        norm = jnp.linalg.norm(kernel[:, 0])
        scale = jnp.where(norm > 0, jnp.linalg.norm(old["kernel"][:, 0]) / jnp.where(norm > 0, norm, 1.0), 1.0)
        kernel = kernel.at[:, 0].multiply(scale)
    if settings.weight_alignment:
        kernel = classifier.align_weights(kernel, num_old)
    return {"kernel": kernel, "bias": bias}


def initial_bias(key: Array, old: classifier.Classifier, num_new: int, settings: Settings) -> Float[Array, " new"]:
    """Start of the new biases. "random" is what the published code does: a bias drawn before the trained one is loaded."""
    if settings.new_bias == "background":
        return jnp.full(num_new, old["bias"][0])
    if settings.new_bias == "zeros":
        return jnp.zeros(num_new)
    bound = old["kernel"].shape[0] ** -0.5
    return jnp.full(num_new, jax.random.uniform(key, (), minval=-bound, maxval=bound))


# --- all of it ------------------------------------------------------------------------------------------------------------------------


def new_classifier(
    old_kernel: Float[Given, "d old"],
    old_bias: Float[Given, " old"],
    batches: Batches | Sequence[Any],
    settings: Settings = Settings(),
    *,
    num_new: int,
    key: Array | None = None,
    bias: Float[Given, " new"] | None = None,
    frozen: Any = None,
    network: Any = None,
    statistics_features: Callable = given,
    pretuning_features: Callable = given,
    run: Callable = run_all,
    block_rows: int = 0,
) -> Result:
    """Kernel and bias of all classes, the new ones prepared by NeST.

        batches = [(features [b, h, w, d], labels [b, H, W]), ...]   # labels: 0 background, old .. old + new - 1, 255 ignored
        kernel, bias, *_ = nest.new_classifier(old_kernel, old_bias, batches, nest.Settings(epochs=5), num_new=1)

    Args:
        old_kernel, old_bias: the classifier of the previous task, background first.
        batches: `(features, labels)` pairs, or `Batches` of anything that the features functions understand.
        settings: hyper-parameters and named choices.
        num_new: number of new classes; their labels follow the old ones.
        key: for the random start of the new bias (default: key 42). `bias` gives the start itself.
        frozen, network: passed to the features functions; `network` is threaded through pre-tuning (running statistics).
        statistics_features, pretuning_features: `(frozen, network, batch, key) -> (features, labels, network)`, traced inside the jitted steps;
            key: for dropout and the like, None in the statistics.
        run: `(phase, step, carry, frozen, batches, steps) -> carry`, with `step(carry, frozen, batch) -> (carry, logged scalars)`.
        block_rows: rows of the label map computed at a time (0 = by size).

    Returns:
        Result. `details` holds `initial` and `pretuned` transforms and, where statistics were taken, `pixels` per new class; a class with 0 pixels
        started from background.
    """
    if not isinstance(batches, Batches):
        batches = repeated(batches, settings.epochs)
    old = pretuning.as_arrays(old_kernel, old_bias)
    channels, num_old = old["kernel"].shape
    key = jax.random.key(42) if key is None else key
    bias = initial_bias(key, old, num_new, settings) if bias is None else jnp.asarray(bias)
    frozen = {"old": old, "features": frozen, "key": pretuning.key_data(key)}

    def statistics_step(statistics, frozen, batch):
        features, labels, _ = statistics_features(frozen["features"], network, batch, None)
        stride = settings.statistics_stride
        return add_statistics(statistics, frozen["old"], features, labels, stride=stride), {}

    if settings.matrix_init == "random":
        kept, transform = {}, random_transform(jax.random.fold_in(key, pretuning.MATRICES), old, bias)
    else:
        empty = no_statistics(num_new, num_old, channels)
        passed = batches.statistics, batches.statistics_steps
        statistics = run("statistics", statistics_step, empty, frozen, *passed)
        kept, transform = {"pixels": statistics["pixels"]}, initial_transform(statistics, old, bias)
    transform = restricted(transform, settings)
    optimiser = pretuning.optimiser(settings, batches.pretuning_steps, trainable(settings))
    carry = pretuning.carry(transform, optimiser, network, kept)
    step = pretuning.make_step(transformed, optimiser, pretuning_features, block_rows=block_rows)
    carry = run("pretuning", step, carry, frozen, batches.pretuning, batches.pretuning_steps)
    final = write_back(carry["tuned"], old, settings)
    details = {"initial": carry["initial"], "pretuned": carry["tuned"], **{name: carry[name] for name in kept}}
    return Result(final["kernel"], final["bias"], carry["network"], details)


def num_parameters(num_old: int, num_new: int, channels: int) -> int:
    """Pre-tuned parameters: `new old (d + 1) + d + new + 1`."""
    return num_new * num_old * (channels + 1) + channels + num_new + 1
