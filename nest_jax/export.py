"""A run's model as one file that runs without this package: `python -m nest_jax.export --workdir RUN --out FILE`.

FILE holds StableHLO with the weights inside, and FILE.json the classes and what goes in and out. To use it, with JAX and flatbuffers alone (a small
package that jax.export reads and writes files with):

    import jax, json, numpy as np

    model = jax.export.deserialize(open("model.stablehlo", "rb").read())
    about = json.load(open("model.stablehlo.json"))
    height, width = about["input"]["shape"][1:3]
    images = np.zeros((1, height, width, 3), np.uint8)  # RGB, resized to this; nothing is to be normalised
    labels = np.asarray(jax.jit(model.call)(images))  # uint8 [1, height, width]
    print({about["classes"][label] for label in np.unique(labels)})

With --probabilities it gives (labels, probabilities).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export  # not a part of `import jax`
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array

from nest_jax import convolutions, evaluate, memory, pictures, restored, results, storage, upsample
from nest_jax.command import Parser, exit_code
from nest_jax.errors import InputError
from nest_jax.restored import Restored

FORMAT_VERSION = 1
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = "cpu,cuda,tpu"
MIN_SIZE = 16

EXAMPLES = f"""\
examples:
  python -m nest_jax.export --workdir runs/voc_15_1 --out model.stablehlo
  python -m nest_jax.export --workdir runs/voc_15_1 --task 2 --out model.stablehlo --size 480x640 --batch 1 --probabilities

FILE.json beside FILE holds class names, colours, shapes and where it runs. How to load it: python -m pydoc nest_jax.export.
Images are of one size, the training crop's by default; scale them to it. Convolutions are written in the form that is fast where
this command runs (FILE.json: "convolutions"); the file runs on all its platforms ({DEFAULT_PLATFORMS}), but for the full speed of an
accelerator make it on one. Exit codes: 0 done, 2 something in the input is wrong, 130 interrupted.
"""


def function(found: Restored, *, probabilities: bool = False) -> Callable[[Array], Any]:
    """images uint8 [b, h, w, 3] -> labels uint8 [b, h, w], or (labels, probabilities float32 [b, h, w, classes]); weights are constants."""
    model = jax.tree.map(jnp.asarray, found.model)

    def predict(images: Array) -> Any:
        small = evaluate.view_logits(found.segmenter, model, images, (1.0, False))
        logits = upsample.bilinear(small, (images.shape[1], images.shape[2]))
        labels = jnp.argmax(logits, axis=-1).astype(jnp.uint8)
        return (labels, jax.nn.softmax(logits, axis=-1)) if probabilities else labels

    return predict


def exported(
    found: Restored,
    size: tuple[int, int],
    *,
    batch: int | None = None,
    probabilities: bool = False,
    platforms: Sequence[str] = tuple(DEFAULT_PLATFORMS.split(",")),
) -> jax.export.Exported:
    """`function` for images of `size` (height, width), ready to be serialised.

    Args:
        batch: images at once; None: any number.
    """
    shape = jax.export.symbolic_shape(f"{batch or 'batch'}, {size[0]}, {size[1]}, 3")
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    with restored.precision(found.config):
        return jax.export.export(jax.jit(function(found, probabilities=probabilities)), platforms=platforms)(images)


def description(found: Restored, made: jax.export.Exported, data: bytes) -> dict[str, Any]:
    """What FILE.json says."""
    names = ("labels", "probabilities")

    def spec(aval: Any) -> dict[str, Any]:
        return {
            "dtype": str(aval.dtype),
            "shape": [side if isinstance(side, int) else str(side) for side in aval.shape],
        }

    return {
        "format_version": FORMAT_VERSION,
        "classes": found.class_names,
        "palette": pictures.palette()[: len(found.class_names)],
        "input": {**spec(made.in_avals[0]), "channels": "RGB", "range": [0, 255]},
        "outputs": [{"name": name, **spec(aval)} for name, aval in zip(names, made.out_avals, strict=False)],
        "platforms": made.platforms,
        "convolutions": "written out for CPUs" if convolutions.on_cpu() else "ordinary",
        "computes_in": found.config.dtype,
        "calling_convention_version": made.calling_convention_version,
        "config": found.config.name,
        "task": found.task,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "versions": results.versions(),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags; `size` as (height, width) or None, `batch` as a number or None, `platforms` as a tuple.

    Raises:
        InputError: an unknown, incomplete or meaningless flag.
    """
    parser = Parser(
        prog="python -m nest_jax.export",
        description="Writes a run's model as StableHLO, weights inside, for programs that have JAX and nothing of this package.",
        epilog=EXAMPLES,
    )
    restored.add_flags(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="the model; FILE.json is written beside it")
    parser.add_argument("--size", metavar="N|HxW", help="of the images (default: the training crop's)")
    parser.add_argument("--batch", default="any", metavar="N|any", help="images at once (default: any number)")
    parser.add_argument("--probabilities", action="store_true", help="a second output: float32 [b, h, w, classes]")
    parser.add_argument("--platforms", default=DEFAULT_PLATFORMS, metavar="P,...", help=f"of {', '.join(PLATFORMS)}")
    options = parser.parse_args(arguments)
    options.size = _size(options.size) if options.size else None
    options.batch = None if options.batch == "any" else _number("--batch", options.batch, 1)
    options.platforms = tuple(part.strip() for part in options.platforms.split(","))
    if wrong := [name for name in options.platforms if name not in PLATFORMS]:
        raise InputError(f"--platforms: unknown: {', '.join(map(repr, wrong))}; choices: {', '.join(PLATFORMS)}")
    return options


def _size(text: str) -> tuple[int, int]:
    sides = [_number("--size", side, MIN_SIZE) for side in text.lower().split("x")]
    if len(sides) > 2:
        raise InputError(f"--size={text}: one side, or HEIGHTxWIDTH")
    return sides[0], sides[-1]


def _number(flag: str, text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise InputError(f"{flag}: {text!r} is not a whole number of at least {least}")
    return int(text)


def run(arguments: Sequence[str]) -> epath.Path:
    """What `main` does, with errors as exceptions; the path of the model."""
    options = parse(arguments)
    path = epath.Path(options.out).expanduser()
    if path.is_dir():
        raise InputError(f"--out={options.out}: a directory; give the name of a file")
    memory.keep_freed()
    found = restored.load(options.workdir, options.task, dtype=options.dtype or "")
    crop = int(found.config.train.crop_size)
    made = exported(
        found,
        options.size or (crop, crop),
        batch=options.batch,
        probabilities=options.probabilities,
        platforms=options.platforms,
    )
    data = bytes(made.serialize())
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with storage.plain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    about = description(found, made, data)
    storage.write_text(path.with_name(f"{path.name}.json"), storage.json_text(about, indent=1) + "\n")
    print(
        f"{path}: {len(data) / 2**20:.1f} MiB, {len(found.class_names)} classes, input {about['input']['shape']}, for "
        f"{', '.join(made.platforms)}; convolutions {about['convolutions']}"
    )
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return exit_code(lambda given: run(given) and None, arguments, interrupted="interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
