"""COCO-Stuff 10K, 80-91 overlapped: the 80 things, then the 91 stuff classes.

Epochs, learning rates and pre-tuning were not published for this data set; here they are ADE20K's, which is our choice.

Command:  python -m nest_jax.main --config=configs/coco_80_91.py --config.dataset.root=/data/cocostuff-10k-v1.1
Others:   after the path, :classifier_init=background (MiB alone), :method=plop or :method=rcil (with NeST), :method=joint.
Machine:  (estimate) one accelerator with 40 GB, or several.
Time:     not measured. Estimate: at most 45 k steps of 24 images of 512 x 512; at 100 images/s about 3 hours.
Paper:    table 9, mIoU old / new / all: MiB 40.2 / 18.6 / 28.9, MiB+NeST 41.9 / 20.7 / 30.7, PLOP 46.1 / 17.0 / 30.8, PLOP+NeST
          46.0 / 18.8 / 31.6.
"""

from ml_collections import ConfigDict

from nest_jax import recipes

ROWS = (
    ({}, {"train.epochs": (60, 60)}),
    ({"classifier_init": "nest"}, {"classifier_init.epochs": 15, "classifier_init.learning_rate": 0.5}),
)


def get_config(arg: str = "") -> ConfigDict:
    return recipes.base(name="coco_80_91", dataset="coco_stuff10k", tasks="80-91", arg=arg, rows=ROWS)
