"""VOC 2012, 15-1 overlapped: 15 classes, then five times one class. The paper's main setting.

Command:  python -m nest_jax.main --config=configs/voc_15_1.py --config.dataset.root=/data/VOCdevkit
Others:   after the path, :classifier_init=background (MiB alone), :method=plop or :method=rcil (with NeST), :method=joint;
          --config.tasks.order=B (C, D, E) is another class order of table 7.
Machine:  (estimate) one accelerator with 24 GB, or less with --config.train.gradient_accumulation=2 (not the same batch statistics).
Time:     not measured. Estimate: 14.8 k steps of 24 images of 512 x 512; at 100 images/s about 1 hour.
Paper:    table 1 (base methods as its authors re-ran them), mIoU old / new / all: MiB 45.2 / 15.7 / 38.2, MiB+NeST 61.7 / 20.4
          / 51.8, PLOP 66.8 / 22.3 / 56.2, PLOP+NeST 72.2 / 33.7 / 63.1, RCIL 69.9 / 23.9 / 58.9, RCIL+NeST 71.9 / 28.0 / 61.4,
          joint 79.8 / 73.4 / 78.3.
          table 8, --config.tasks.setting=disjoint, mIoU of all: MiB 38.6, MiB+NeST 41.0, PLOP 40.7, PLOP+NeST 52.7.
"""

from ml_collections import ConfigDict

from nest_jax import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.base(name="voc_15_1", dataset="voc2012", tasks="15-1", arg=arg)
