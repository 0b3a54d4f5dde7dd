"""NeST's similarity statistics: the closed form against the published form and the pixels of new classes alone, on the same random images.

    python benchmarks/similarity_statistics.py                                  # ADE20K 100-5's last task: 146 old classes, 5 new, 256 channels
    python benchmarks/similarity_statistics.py --old 16 --new 1 --images 5

The published form makes, for every image, the products H = W_old ⊙ p_u of all pixels u (128 x 128 x 146 x 256 numbers, 2.4 GB), the mask 1[H > 0] times
the scores, and each class's sum over its pixels; here operation by operation in JAX on all cores, the products once an image and not once a class.
"pixels in chunks" is the same for the pixels of each class alone, in NumPy. The closed form is `nest_jax.nest.add_statistics`, jitted.
All start from the features and resample them to 1/4 of the image. Prints seconds per image (median) and ratios, side by side.

Floor of the closed form: 4 · pixels of new classes · old · channels FLOPs (2.4 GFLOP an image here, where every pixel is of a new class).
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from nest_jax import nest, upsample


def resampled(kernel, bias, features, size):
    """Embeddings [pixels, channels] and scores [pixels, old]."""
    rows, columns = upsample.matrix(size[0], features.shape[1]), upsample.matrix(size[1], features.shape[2])
    embeddings = np.einsum("Hh,Ww,bhwd->bHWd", rows, columns, features, optimize=True).reshape(-1, features.shape[-1])
    logits = np.einsum("Hh,Ww,bhwo->bHWo", rows, columns, features @ kernel + bias, optimize=True)
    scores = np.exp(logits - logits.max(-1, keepdims=True)).reshape(-1, kernel.shape[1])
    return embeddings, scores / scores.sum(1, keepdims=True)


def published(kernel, bias, features, labels, classes):
    """Sums over the pixels of each class of 1[p_d W_id > 0] s_i: [new, old, d]."""
    embeddings, scores = map(jnp.asarray, resampled(kernel, bias, features, labels.shape[1:]))
    labels = jnp.asarray(labels.reshape(-1))
    products = embeddings[:, None, :] * kernel.T[None]
    products = (products > 0) * scores[:, :, None]
    sums = [jnp.sum(products * (labels == kernel.shape[1] + c)[:, None, None], axis=0) for c in range(classes)]
    return jax.block_until_ready(jnp.stack(sums))


def in_chunks(kernel, bias, features, labels, classes, chunk=512):
    """The same, of the pixels of each class alone."""
    num_old = kernel.shape[1]
    embeddings, scores = resampled(kernel, bias, features, labels.shape[1:])
    labels = labels.reshape(-1)
    total = np.zeros((classes, num_old, len(kernel)), np.float32)
    for c in range(classes):
        pixels = np.flatnonzero(labels == num_old + c)
        for start in range(0, len(pixels), chunk):
            chosen = pixels[start : start + chunk]
            products = embeddings[chosen, None, :] * kernel.T[None]  # [pixels, old, d]
            total[c] += ((products > 0) * scores[chosen, :, None]).sum(0)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=int, default=146, help="old classes, background included")
    parser.add_argument("--new", type=int, default=5, help="new classes")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--size", type=int, default=128, help="side of the label map, a quarter of the crop")
    parser.add_argument("--images", type=int, default=3, help="measured images, after one to warm up")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(options.channels, options.old)).astype(np.float32) / 16
    bias = rng.normal(size=options.old).astype(np.float32)
    old = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    closed_form = jax.jit(nest.add_statistics, static_argnames="stride")
    empty = nest.no_statistics(options.new, options.old, options.channels)
    forms = {
        "published form": lambda features, labels: published(kernel, bias, features, labels, options.new),
        "pixels in chunks": lambda features, labels: in_chunks(kernel, bias, features, labels, options.new),
        "closed form": lambda features, labels: jax.block_until_ready(
            closed_form(empty, old, features, labels, stride=1)
        ),
    }
    seconds = {name: [] for name in forms}
    for image in range(options.images + 1):
        features = rng.normal(size=(1, options.size // 4, options.size // 4, options.channels)).astype(np.float32)
        labels = rng.integers(options.old, options.old + options.new, (1, options.size, options.size))
        found = {}
        for name, form in forms.items():
            clock = time.perf_counter()
            found[name] = form(features, labels)
            if image:
                seconds[name].append(time.perf_counter() - clock)
        sums = found.pop("closed form")
        sums = jnp.where(kernel.T > 0, sums["positive"], 0) + jnp.where(kernel.T < 0, sums["negative"], 0)
        for expected in found.values():
            np.testing.assert_allclose(sums, expected, rtol=1e-3, atol=1e-3)
    print(
        f"{options.old} old, {options.new} new classes, {options.channels} channels, {options.size}x{options.size} pixels,"
    )
    print(f"every one of a new class; {jax.devices()[0].device_kind}; median of {options.images} images")
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds["closed form"], strict=True))
        print(
            f"  {name:17s} {statistics.median(values):9.4f} s/image (from {min(values):.4f} to {max(values):.4f}) {ratio:8.1f} x"
        )


if __name__ == "__main__":
    main()
