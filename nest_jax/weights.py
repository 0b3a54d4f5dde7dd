"""Weights from PyTorch and for PyTorch: pretrained backbones, published task checkpoints, and `python -m nest_jax.weights`."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nest_jax import known_weights, plugins, storage, torch_weights, weight_formats
from nest_jax import segmenter as seg
from nest_jax.command import Parser, exit_code
from nest_jax.errors import InputError
from nest_jax.known_weights import KNOWN

log = logging.getLogger(__name__)

CLASSIFIER = r"cls\.(\d+)\.(weight|bias)"
# Entries of published task checkpoints that no forward pass reads: NeST's matrices after they have been written into the classifier,
# and convolutions of the SETR head that its class makes and does not use.
UNUSED = (
    r"weight_old|weight_new|new_bias|weight_old_bg|weight_new_bg",
    r"head\.(conv_seg|conv_1)\..*",
    weight_formats.COUNTERS,
    weight_formats.BUFFERS,
)

EXAMPLES = """examples:
  python -m nest_jax.weights list
  python -m nest_jax.weights fetch resnet101_iabn
  python -m nest_jax.main --config=configs/voc_15_1.py --config.backbone.pretrained=resnet101_iabn
  python -m nest_jax.weights convert swin_base_patch4_window12_384.pth swin_b.safetensors
  python -m nest_jax.weights export --workdir runs/voc_15_1 --task 5 voc_15_1.safetensors
"""


def load_backbone(
    settings: Any,
    params: dict,
    batch_stats: dict,
    torch_name: Callable[[tuple[str, ...]], str],
    *,
    twin: Callable[[str], str] = str,
) -> tuple[dict, dict]:
    """`params` and `batch_stats` of a body with the weights that `settings["pretrained"]` names; "none" leaves them as they are.

    Args:
        settings: the config's backbone section: `name`, `pretrained` ("imagenet", a name of `python -m nest_jax.weights list`, a path,
            "none") and, where there is a choice, `norm`.
        params: the body's parameters, whose leaves give shapes and dtypes.
        batch_stats: its running statistics; {} where it has none.
        torch_name: the published name of a leaf, from its path.
        twin: the published name of the entry whose numbers a leaf gets that the file does not have, from its own published name.

    Raises:
        InputError: the file is not there or does not fit; the message lists every entry without a partner and every other shape.
    """
    if settings["pretrained"] == "none":
        return params, batch_stats
    path = known_weights.find(settings)
    state = weight_formats.body(torch_weights.read(path))
    target = {"params": params, "batch_stats": batch_stats}
    leaves = jax.tree_util.tree_leaves_with_path(target)
    published = {torch_name(torch_weights.leaf_path(key)[1:]): leaf.shape for key, leaf in leaves}
    form = weight_formats.nearest(str(settings["name"]), published, state)
    source = f"{path}, whose names are nearest to those of {form.title},"
    norm = settings.get("norm", "iabn")
    if form.norm not in (None, norm):
        raise InputError(
            f"{source} does not fit the network: such weights are made for {weight_formats.NORMS[form.norm]}, and the network has"
            f" {weight_formats.NORMS[norm]}; --config.backbone.norm={form.norm} changes the network"
        )

    def name(leaf: tuple[str, ...]) -> str:
        own = form.name(torch_name(leaf))
        return own if own in state else form.name(twin(torch_name(leaf)))

    shapes = {form.name(key): shape for key, shape in published.items()}
    fitted = {key: form.fit(key, value, shapes.get(key, value.shape)) for key, value in state.items()}
    tree = torch_weights.to_tree(fitted, target, name, ignore=form.ignore, keep=form.keep, source=source)
    left_out = sorted(key for key in state if torch_weights.matches(form.ignore, key))
    new = sorted(key for key in published if torch_weights.matches(form.keep, key) and form.name(key) not in state)
    resized = sorted(key for key, value in state.items() if fitted[key].shape != value.shape)
    for what, names in (("not used", left_out), ("not in the file, so new", new), ("resized", resized)):
        if names:
            log.info("%s (%s): %s: %s", path, form.title, what, _abridged(names))
    return tree["params"], tree["batch_stats"]


def _abridged(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def task_checkpoint(path: str | Path, config: Any, target: dict[str, Any]) -> dict[str, Any]:
    """The model in a task checkpoint of the published PyTorch code, or in a file that `export` wrote.

    Args:
        path: a .pth whose "model_state" holds "module.body...", "module.head..." and one "module.cls.N" per task, or a .safetensors.
        config: whose backbone and decoder the model has.
        target: shapes and dtypes of {"network", "classifier", "batch_stats"} (`base.abstract`); its classes are checked.

    Returns:
        A model like `target`; the classifiers of all tasks side by side, background in column 0.

    Raises:
        InputError: the file is of another network or of another number of classes; the message lists all that does not fit.
    """
    state = {name.removeprefix("module."): value for name, value in torch_weights.read(path).items()}
    state |= _merged_classifier(state, str(path), *target["classifier"]["kernel"].shape)
    state = {name: value for name, value in state.items() if not re.fullmatch(CLASSIFIER, name)}

    def name(leaf: tuple[str, ...]) -> str:
        return f"cls.{torch_weights.leaf_name(leaf[1])}" if leaf[0] == "cls" else seg.torch_name(config, leaf)

    both = {"params": {**target["network"], "cls": target["classifier"]}, "batch_stats": target["batch_stats"]}
    tree = torch_weights.to_tree(state, both, name, ignore=UNUSED, source=str(path))
    classifier = tree["params"].pop("cls")
    return {"network": tree["params"], "classifier": classifier, "batch_stats": tree["batch_stats"]}


def _merged_classifier(
    state: Mapping[str, np.ndarray], path: str, channels: int, classes: int
) -> dict[str, np.ndarray]:
    """The published 1x1 convolutions of all tasks, `cls.N.weight` [n, d, 1, 1] and `cls.N.bias`, as one: weight [classes, d] and bias."""
    numbers = sorted({int(found[1]) for name in state if (found := re.fullmatch(CLASSIFIER, name))})
    if not numbers or numbers != list(range(len(numbers))):
        raise InputError(
            f"{path} is not a task checkpoint: the classifiers of its tasks would be cls.0, cls.1, ...; it has"
            f" {', '.join(f'cls.{number}' for number in numbers) or 'none'}."
            " Weights of a backbone alone are given as --config.backbone.pretrained=PATH"
        )
    nothing = np.zeros(0, np.float32)
    weights, biases = ([state.get(f"cls.{task}.{kind}", nothing) for task in numbers] for kind in ("weight", "bias"))
    wrong = [
        f"cls.{task}: weight {list(weight.shape)}, bias {list(bias.shape)}"
        for task, weight, bias in zip(numbers, weights, biases, strict=True)
        if bias.ndim != 1 or weight.shape not in ((len(bias), channels, 1, 1), (len(bias), channels))
    ]
    if wrong:
        raise InputError(
            f"{path} does not fit the network, whose classifiers are [classes, {channels}, 1, 1] and [classes]: {'; '.join(wrong)}"
        )
    sizes = [len(bias) for bias in biases]
    if sum(sizes) != classes:
        sum_text = f"{' + '.join(map(str, sizes))} = {sum(sizes)}" if len(sizes) > 1 else sizes[0]
        raise InputError(f"{path} has learnt {sum_text} classes, background included; {classes} are needed here")
    kernel = np.concatenate([weight.reshape(len(weight), channels) for weight in weights])
    return {"cls.weight": kernel, "cls.bias": np.concatenate(biases)}


# ----------------------------------------------------------------------------------------------------------------- command line


def run(arguments: Sequence[str]) -> None:
    """What `main` does, with errors as exceptions."""
    parser = Parser(
        prog="python -m nest_jax.weights",
        description="Pretrained weights: list and fetch the published files; convert PyTorch's files; export a trained task for PyTorch.",
        epilog=EXAMPLES,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | fetch | convert | export")
    commands.add_parser("list", help="the published files and which of them are on this machine")
    one = commands.add_parser("fetch", help="get a published file into the cache and check it")
    one.add_argument("name", metavar="NAME", help=f"one of: {', '.join(KNOWN)}")
    one = commands.add_parser("convert", help="write the tensors of a .pth as .safetensors, names unchanged")
    one.add_argument("file", metavar="FILE", help=".pth, .pth.tar or .safetensors")
    one.add_argument("out", metavar="OUT", help="a new file, named .safetensors")
    one = commands.add_parser("export", help="write a trained task with the names of the published PyTorch code")
    one.add_argument("--workdir", required=True, metavar="DIR", help="the run")
    one.add_argument("--task", type=int, metavar="T", help="after which task (default: the last complete one)")
    one.add_argument("out", metavar="OUT", help="a new file, named .safetensors")
    print(_done(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code(run, arguments)


def _done(options: argparse.Namespace) -> str:
    if options.command == "list":
        return listing()
    if options.command == "fetch":
        if options.name not in KNOWN:
            raise InputError(plugins.unknown("weights", options.name, KNOWN))
        return str(known_weights.fetch(options.name))
    from nest_jax import to_torch  # late: reading checkpoints takes a while to import

    if options.command == "convert":
        return to_torch.convert(options.file, options.out)
    return to_torch.export(storage.located(options.workdir), options.out, options.task)


def listing() -> str:
    """The known files as text, a paragraph each."""
    lines = []
    for name, known in KNOWN.items():
        found = known_weights.located(known)
        digest = f"SHA-256 {known.digest[:8]}..." if known.digest else "unverified: no digest is published"
        norm = f", norm={known.norm}" if known.norm else ""
        lines += [
            f"{name}: {known.file}",
            f"    backbone {known.backbone}{norm}; licence: {known.licence}; {digest}",
            f"    {known.about}" + (f": {known.url}" if known.url else ""),
            f"    {'here: ' + str(found) if found else 'not on this machine'}",
        ]
    where = " or ".join(map(str, known_weights.folders()))
    return "\n".join([*lines, f"looked for in {where}; used with --config.backbone.pretrained=NAME"])


if __name__ == "__main__":
    sys.exit(main())
