"""NeST's similarity statistics: the closed form against the pixel-by-pixel form, on the same random images.

    python benchmarks/similarity_statistics.py                                  # ADE20K 100-5's last task: 146 old classes, 5 new, 256 channels
    python benchmarks/similarity_statistics.py --old 16 --new 1 --images 5

The pixel-by-pixel form is the paper's: for every pixel u of a new class the products H = W_old ⊙ p_u, the mask 1[H > 0] times the scores,
then the mean; NumPy, vectorised over chunks of pixels so that it fits into memory. The closed form is `nest_jax.nest.add_statistics`, jitted. Both
start from the features, and both resample them to 1/4 of the image. Prints seconds per image (median) and their ratio, side by side.

Floor of the closed form: 2 · pixels · old · 2 channels · new FLOPs (12 GFLOP an image by default).
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from nest_jax import nest, upsample


def pixel_by_pixel(kernel, bias, features, labels, classes, chunk=512):
    """Sums over the pixels of each class of 1[p_d W_id > 0] s_i, and the counts: [new, old, d], [new]."""
    num_old = kernel.shape[1]
    size = labels.shape[1:]
    rows, columns = upsample.matrix(size[0], features.shape[1]), upsample.matrix(size[1], features.shape[2])
    embeddings = np.einsum("Hh,Ww,bhwd->bHWd", rows, columns, features, optimize=True).reshape(-1, features.shape[-1])
    logits = np.einsum("Hh,Ww,bhwo->bHWo", rows, columns, features @ kernel + bias, optimize=True).reshape(-1, num_old)
    scores = np.exp(logits - logits.max(1, keepdims=True))
    scores /= scores.sum(1, keepdims=True)
    labels = labels.reshape(-1)
    total, count = np.zeros((classes, num_old, len(kernel)), np.float32), np.zeros(classes, int)
    for c in range(classes):
        pixels = np.flatnonzero(labels == num_old + c)
        count[c] = len(pixels)
        for start in range(0, len(pixels), chunk):
            chosen = pixels[start : start + chunk]
            products = embeddings[chosen, None, :] * kernel.T[None]  # [pixels, old, d]
            total[c] += ((products > 0) * scores[chosen, :, None]).sum(0)
    return total, count


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
    seconds = {"pixel by pixel": [], "closed form": []}
    for image in range(options.images + 1):
        features = rng.normal(size=(1, options.size // 4, options.size // 4, options.channels)).astype(np.float32)
        labels = rng.integers(options.old, options.old + options.new, (1, options.size, options.size))
        clock = time.perf_counter()
        expected, _ = pixel_by_pixel(kernel, bias, features, labels, options.new)
        between = time.perf_counter()
        found = jax.block_until_ready(closed_form(empty, old, features, labels, stride=1))
        end = time.perf_counter()
        summed = jnp.where(kernel.T > 0, found["positive"], 0) + jnp.where(kernel.T < 0, found["negative"], 0)
        np.testing.assert_allclose(summed, expected, rtol=1e-3, atol=1e-3)
        if image:
            seconds["pixel by pixel"].append(between - clock)
            seconds["closed form"].append(end - between)
    print(
        f"{options.old} old, {options.new} new classes, {options.channels} channels, {options.size}x{options.size} pixels,"
    )
    print(f"every one of a new class; {jax.devices()[0].device_kind}; median of {options.images} images")
    for name, values in seconds.items():
        print(f"  {name:15s} {statistics.median(values):9.4f} s/image   (from {min(values):.4f} to {max(values):.4f})")
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    print(f"  ratio           {ratio:9.1f}")


if __name__ == "__main__":
    main()
