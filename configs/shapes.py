"""Synthetic shapes, 3-2 overlapped: the demonstration. Nothing to download, a tiny network, minutes on a CPU.

Command:  python -m nest_jax.main --config=configs/shapes.py (`make demo` runs it with MiB and with MiB+NeST)
Machine:  2 CPU cores.
Time:     the README has what was measured.
Expected: the README has the table. It shows that the parts work together, not how good the methods are.
"""

from ml_collections import ConfigDict

from nest_jax import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.base(
        name="shapes",
        dataset="shapes",
        tasks="3-2",
        arg=arg,
        backbone="tiny",
        decoder="plain",
        rows=[
            (
                {},
                {
                    "dtype": "float32",
                    "decoder.channels": 32,
                    "train.batch_size": 16,
                    "train.crop_size": 64,
                    "train.epochs": (40, 20),
                    "train.learning_rate": (0.1, 0.02),
                    "evaluate.batch_size": 16,
                },
            ),
            ({"classifier_init": "nest"}, {"classifier_init.epochs": 5, "classifier_init.learning_rate": 0.01}),
        ],
    )
