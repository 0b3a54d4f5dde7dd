"""VOC 2012, 10-1 overlapped: 10 classes, then ten times one class. The longest VOC protocol.

Command:  python -m nest_jax.main --config=configs/voc_10_1.py --config.dataset.root=/data/VOCdevkit
Others:   --config=configs/voc_10_1.py:classifier_init=background (MiB alone); 10 epochs an increment, as published for MiB and PLOP.
Machine:  (estimate) one accelerator with 24 GB.
Time:     not measured. Estimate: 11.3 k steps of 24 images of 512 x 512; at 100 images/s about 50 minutes.
Paper:    mIoU old / new / all: MiB 10.4 / 9.9 / 10.2, MiB+NeST 52.3 / 21.0 / 37.4, joint 78.8 / 77.7 / 78.3.
"""

from ml_collections import ConfigDict

from nest_jax import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.base(name="voc_10_1", dataset="voc2012", tasks="10-1", arg=arg)
