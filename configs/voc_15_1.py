"""VOC 2012, 15-1 overlapped: 15 classes, then five times one class. The paper's main setting.

Command:  python -m nest_jax.main --config=configs/voc_15_1.py --config.dataset.root=/data/VOCdevkit
Others:   --config=configs/voc_15_1.py:method=mib,classifier_init=background (MiB alone).
Machine:  (estimate) one accelerator with 24 GB, or less with --config.train.gradient_accumulation=2 (not the same batch statistics).
Time:     not measured. Estimate: 14.8 k steps of 24 images of 512 x 512; at 100 images/s about 1 hour.
Paper:    mIoU old / new / all: MiB 45.2 / 15.7 / 38.2, MiB+NeST 61.7 / 20.4 / 51.8, joint 79.8 / 73.4 / 78.3.
"""

from ml_collections import ConfigDict

from nest_jax import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.base(name="voc_15_1", dataset="voc2012", tasks="15-1", arg=arg)
