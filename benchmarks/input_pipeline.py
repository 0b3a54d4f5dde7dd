"""Images per second and core that the loader makes into 512-crops, against a plain PIL + Python loop of the same transform.

Command:  python benchmarks/input_pipeline.py [--root /data/VOCdevkit] [--images_per_second 150]

Without --root it writes VOC folders of its own: 500 x 375 JPEGs and palette masks. The plain loop opens the two files, crops,
resizes, mirrors, divides by 255, normalises and maps the labels: by a Python function at every pixel, as the published code does,
or by a NumPy loop over the classes. nest_jax reads what it prepared, and leaves normalisation and the label table to the device; a
further row adds the two in NumPy. All run on one core, in turn; medians of the rounds, in CPU time.
"""

import argparse
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from nest_jax import loader, tasks
from nest_jax.datasets import voc2012

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
BATCH = 24


def write_voc(root: Path, count: int) -> None:
    """VOC's folders with synthetic images: smooth colours, grain, and three blobs with a void border."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    names = [f"2000_{i:06d}" for i in range(count)]
    for name in names:
        smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        grain = np.asarray(smooth) + rng.normal(0, 10, (375, 500, 3))
        Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).save(root / f"JPEGImages/{name}.jpg", quality=90)
        labels = Image.fromarray(np.zeros((375, 500), np.uint8))
        for label in rng.choice(np.arange(1, 21), 3, replace=False).tolist():
            blob = Image.fromarray(rng.integers(0, 256, (5, 6), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
            blob = blob.point([255 * (value > 190) for value in range(256)])
            labels.paste(255, mask=blob.filter(ImageFilter.MaxFilter(5)))
            labels.paste(label, mask=blob)
        labels.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
        labels.save(root / f"SegmentationClassAug/{name}.png")
    for split in ("trainaug", "val"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names if split == "trainaug" else ["x"]))
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClassAug", "png")):
        (root / folder / f"x.{suffix}").write_bytes((root / folder / f"{names[0]}.{suffix}").read_bytes())


def plain(image_file: Path, mask_file: Path, size: int, map_labels: Callable[[np.ndarray], np.ndarray]) -> None:
    """One sample as a loop with Pillow makes it."""
    image, mask = Image.open(image_file).convert("RGB"), Image.open(mask_file)
    width, height = image.size
    box = (0, 0, width, height)
    for _ in range(10):
        area, aspect = (
            random.uniform(0.5, 2.0) * width * height,
            math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3))),
        )
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w <= width and h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            box = (left, top, left + w, top + h)
            break
    image = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    mask = mask.crop(box).resize((size, size), Image.Resampling.NEAREST)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    normalised(np.asarray(image))
    map_labels(np.asarray(mask))


def normalised(image: np.ndarray) -> np.ndarray:
    """Floats of the network's input."""
    return (image.astype(np.float32) / 255 - MEAN) / STD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="VOC's folders (default: synthetic images)")
    parser.add_argument("--images", type=int, default=96, help=f"measured in a round, a multiple of {BATCH}")
    parser.add_argument("--size", type=int, default=512, help="side of the crops")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images_per_second", type=float, default=150, help="what the accelerator takes")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])

    with tempfile.TemporaryDirectory() as folder:
        if not options.root:
            write_voc(Path(folder) / "VOC2012", options.images)
        root = Path(options.root or folder)
        files = [(pair.image, pair.mask) for pair in voc2012.pairs(root)["train"]]
        dataset = voc2012.load({"root": str(root), "data_dir": f"{folder}/prepared"}, "train")
        protocol = tasks.parse("15-1", class_names=dataset.classes)
        measure(options, files, dataset, tasks.train_table(protocol, 0))


def measure(options: argparse.Namespace, files: list, dataset: loader.Dataset, table: np.ndarray) -> None:
    """Prints the comparison."""
    outputs = {label: int(table[label]) for label in (*range(16), 255)}  # task 0 of 15-1
    kept = list(outputs)

    def at_every_pixel(labels: np.ndarray) -> np.ndarray:
        # As the published code's `tensor.apply_(lambda x: order[x] if x in labels else masked)`.
        def output(label: int) -> int:
            return outputs[label] if label in kept else 0

        return np.array([output(label) for label in labels.ravel().tolist()], np.int64).reshape(labels.shape)

    def class_by_class(labels: np.ndarray) -> np.ndarray:
        mapped = np.zeros(labels.shape, np.int64)
        for label, output in outputs.items():
            mapped[labels == label] = output
        return mapped

    def pillow(map_labels: Callable[[np.ndarray], np.ndarray]) -> None:
        for image, mask in random.sample(files, options.images):
            plain(image, mask, options.size, map_labels)

    def ours(finish: bool) -> None:
        seed, count = (random.randrange(2**32),), options.images // BATCH
        for batch in loader.train_batches(
            dataset, range(len(dataset)), size=options.size, batch_size=BATCH, seed=seed, stop=count
        ):
            if finish:
                for image, labels in zip(batch["image"], batch["label"], strict=True):
                    normalised(image)
                    np.take(table, labels)

    ways = {
        "PIL + Python, labels pixel by pixel": lambda: pillow(at_every_pixel),
        "PIL + NumPy, labels class by class": lambda: pillow(class_by_class),
        "nest_jax, with normalisation and table": lambda: ours(finish=True),
        "nest_jax": lambda: ours(finish=False),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds + 1):
        for name, way in ways.items():
            clock = time.process_time()
            way()
            if turn:  # the first warms up
                rates[name].append(options.images / (time.process_time() - clock))
    size = statistics.mean(Path(image).stat().st_size for image, _ in files[:200]) / 1000
    print(f"{options.size}-crops, JPEGs of {size:.0f} kB; median of {options.rounds} rounds of {options.images} images")
    median = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(
            f"  {name:40s}{median[name]:7.1f} images/s and core (from {min(values):.1f} to {max(values):.1f})"
            f"{median[name] / median['PIL + Python, labels pixel by pixel']:6.1f} x"
        )
    cores = options.images_per_second / median["nest_jax"]
    print(f"cores that feed {options.images_per_second:g} images/s: {cores:.1f}")


if __name__ == "__main__":
    main()
