"""VOC 2012, 15-5 overlapped: 15 classes, then five at once.

Command:  python -m nest_jax.main --config=configs/voc_15_5.py --config.dataset.root=/data/VOCdevkit
Others:   after the path, :classifier_init=background (MiB alone), :method=plop or :method=rcil (with NeST), :method=joint;
          --config.tasks.setting=disjoint.
Machine:  (estimate) one accelerator with 24 GB, or less with --config.train.gradient_accumulation=2 (not the same batch statistics).
Time:     not measured. Estimate: 14.6 k steps of 24 images of 512 x 512; at 100 images/s about 1 hour.
Paper:    table 1 (base methods as its authors re-ran them), mIoU old / new / all: MiB 76.8 / 49.1 / 70.2, MiB+NeST 77.1 / 50.1
          / 70.7, PLOP 77.0 / 50.9 / 70.8, PLOP+NeST 77.6 / 55.8 / 72.4, RCIL 78.8 / 52.4 / 72.5, RCIL+NeST 79.0 / 52.8 / 72.8,
          joint 79.8 / 73.4 / 78.3.
"""

from ml_collections import ConfigDict

from nest_jax import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.base(name="voc_15_5", dataset="voc2012", tasks="15-5", arg=arg)
