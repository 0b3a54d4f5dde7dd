"""What every config starts from: one base, and one table of the published hyper-parameters.

A file in `configs/` is `def get_config(arg="")` around one call of `base`. `arg` is the part of `--config=FILE:ARG` after the
colon; it picks plug-ins (`method=mib,classifier_init=nest,backbone=resnet101`), and with them the rows of `PUBLISHED` that hold.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from nest_jax import plugins
from nest_jax.errors import InputError

# The sections that are plug-ins, the package that holds them, and whether `arg` may pick them (a config file's data set is its own).
SECTIONS = {
    "dataset": "datasets",
    "method": "methods",
    "classifier_init": "classifier_init",
    "backbone": "backbones",
    "decoder": "decoders",
}
PICKS = ("method", "classifier_init", "backbone", "decoder")

Row = tuple[Mapping[str, str | tuple[str, ...]], Mapping[str, Any]]

VOC = {"dataset": "voc2012"}
ADE = {"dataset": "ade20k"}
NEST = {"classifier_init": "nest"}

# (where it holds, what it sets). Every row that holds applies, in this order, so that later rows win. Pairs are (task 0, later tasks).
# A condition with several names holds for any of them.
PUBLISHED: tuple[Row, ...] = (
    # The protocol of the whole family: 24 images of 512 x 512, SGD, .02 for the base and .001 for every increment.
    ({}, {"train.batch_size": 24, "train.crop_size": 512, "train.learning_rate": (0.02, 0.001)}),
    # Epochs. The MiB and PLOP scripts shorten the increments of 10-1; RCIL's do not.
    (VOC, {"train.epochs": (30, 30)}),
    ({**VOC, "tasks": "10-1", "method": ("finetune", "joint", "mib", "plop")}, {"train.epochs": (30, 10)}),
    (ADE, {"train.epochs": (60, 60)}),
    # RCIL's own scripts start ADE20K at .01.
    ({**ADE, "method": "rcil"}, {"train.learning_rate": (0.01, 0.001)}),
    # Pre-tuning of NeST: 5 epochs at .001 on VOC; 15 epochs at .5 on ADE20K, .1 for RCIL and for Swin-B (the latter two as the paper says).
    ({**VOC, **NEST}, {"classifier_init.epochs": 5, "classifier_init.learning_rate": 0.001}),
    ({**ADE, **NEST}, {"classifier_init.epochs": 15, "classifier_init.learning_rate": 0.5}),
    ({**ADE, **NEST, "method": "rcil"}, {"classifier_init.learning_rate": 0.1}),
    ({**ADE, **NEST, "backbone": "swin_b"}, {"classifier_init.learning_rate": 0.1}),
    # Old classifiers stay fixed in PLOP+NeST on VOC only (worth 7.4 mIoU on 15-1).
    ({**VOC, **NEST, "method": "plop"}, {"train.freeze_old_classifiers": True}),
    # Local POD is ten times weaker on ADE20K. RCIL's code copies the background's weights and leaves the biases.
    ({**ADE, "method": "plop"}, {"method.pod": 0.001, "method.pod_logits": 0.00001}),
    ({**ADE, "method": "rcil"}, {"method.pooled_cube": 5e-6, "method.pooled_cube_last": 5e-7}),
    ({"method": "rcil", "classifier_init": "background"}, {"classifier_init.bias": "random"}),
)


def base(
    *,
    name: str,
    dataset: str,
    tasks: str,
    arg: str = "",
    method: str = "mib",
    classifier_init: str = "nest",
    backbone: str = "resnet101",
    decoder: str = "deeplabv3",
    rows: Iterable[Row] = (),
) -> ConfigDict:
    """The whole config of one protocol: the schema's values, the plug-ins' defaults, the published rows, then the file's own `rows`.

    Args:
        name: the config file's stem; names the default workdir.
        dataset: plug-in in `nest_jax/datasets`.
        tasks: protocol name such as "15-1" (see `nest_jax.tasks.parse`).
        arg: "key=value,..." with keys of `PICKS`; what it names replaces the keyword arguments below.
        rows: the file's own rows, of the form of `PUBLISHED`; they win.

    Raises:
        InputError: a key or value in `arg` that does not exist; all of them at once.
    """
    picked = {"method": method, "classifier_init": classifier_init, "backbone": backbone, "decoder": decoder}
    picked = {**picked, **parse_arg(arg), "dataset": dataset}
    for key, variants in getattr(plugins.load("methods", picked["method"]), "NEEDS", {}).items():
        picked[key] = variants.get(picked[key], picked[key])  # RCIL's two-branch networks
    sections = {key: section(key, picked[key]) for key in SECTIONS}
    config = ConfigDict(
        {
            "name": name,
            "seed": 42,
            "dtype": "auto",  # bfloat16 on accelerators, float32 on CPU
            "init_from": "",  # an earlier run's workdir, or a published checkpoint of task 0: taken over as task 0
            "extend_from": "",  # an earlier run's workdir or checkpoint: its model learns the config's tasks
            "dataset": sections["dataset"],
            "tasks": {"name": tasks, "setting": "overlapped", "order": "natural", "classes": ()},
            "method": sections["method"],
            "classifier_init": sections["classifier_init"],
            "backbone": sections["backbone"],
            "decoder": sections["decoder"],
            "train": {
                "batch_size": 24,  # per optimiser update, over all devices
                "crop_size": 512,
                "epochs": (30, 30),
                "learning_rate": (0.02, 0.001),
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 1e-4,
                "poly_power": 0.9,
                "gradient_accumulation": 1,  # the batch is cut into so many parts
                "freeze_old_classifiers": False,
                "workers": 0,  # 0 = threads; more = processes. The batches are the same.
            },
            # full_images: whole images, one at a time, in place of centre crops; compiled once for every size that occurs.
            "evaluate": {"batch_size": 24, "full_images": False, "pictures": 8},
            # fsdp: so many neighbouring devices share parameters and optimiser state instead of each holding all.
            "sharding": {"fsdp": 1},
            "checkpoint": {"every_seconds": 600, "every_steps": 0, "keep": 2},
            "log": {"every_steps": 10, "tensorboard": False, "progress": True},
            "loss": {"block_rows": 0},  # rows of the image per block of the loss; 0 = chosen by size
        },
        convert_dict=True,
    )
    config.lock()  # a row cannot add a key
    facts = {**picked, "tasks": tasks}
    for where, values in (*PUBLISHED, *rows):
        if all(facts[key] in ((want,) if isinstance(want, str) else want) for key, want in where.items()):
            config.update_from_flattened_dict(dict(values))
    return config


def section(key: str, name: str) -> dict[str, Any]:
    """The section of a plug-in: its name and its defaults."""
    return {"name": name, **plugins.load(SECTIONS[key], name).defaults(name)}


def parse_arg(arg: str) -> dict[str, str]:
    """`"method=mib,backbone=resnet50"` -> a dict.

    Raises:
        InputError: not of that form, a key twice, an unknown key or plug-in; the message lists every such problem with the choices.
    """
    found: dict[str, str] = {}
    problems = []
    for item in filter(None, (part.strip() for part in arg.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            problems.append(f"{item!r} is not of the form key=value; keys: {', '.join(PICKS)}")
        elif key not in PICKS:
            problems.append(plugins.unknown("key", key, PICKS))
        elif key in found:
            problems.append(f"{key} is given twice: {found[key]!r} and {value!r}")
        elif value not in (names := plugins.names(SECTIONS[key])):
            problems.append(plugins.unknown(key, value, names))
        else:
            found[key] = value
    if problems:
        raise InputError(
            "\n".join([f"the part of --config after the colon, {arg!r}:", *(f"  {line}" for line in problems)])
        )
    return found
