"""VOC 2012, 19-1 overlapped: 19 classes, then one.

Command:  python -m nest_jax.main --config=configs/voc_19_1.py --config.dataset.root=/data/VOCdevkit
Others:   after the path, :classifier_init=background (MiB alone), :method=plop or :method=rcil (with NeST), :method=joint;
          --config.tasks.setting=disjoint.
Machine:  (estimate) one accelerator with 24 GB, or less with --config.train.gradient_accumulation=2 (not the same batch statistics).
Time:     not measured. Estimate: 13.7 k steps of 24 images of 512 x 512; at 100 images/s about 55 minutes.
Paper:    table 1 (base methods as its authors re-ran them), mIoU old / new / all: MiB 71.6 / 28.6 / 69.6, MiB+NeST 71.7 / 28.2
          / 69.7, PLOP 75.7 / 39.4 / 74.0, PLOP+NeST 77.0 / 49.1 / 75.7, RCIL 76.8 / 28.9 / 74.5, RCIL+NeST 77.0 / 33.3 / 74.9,
          joint 78.2 / 80.0 / 78.3.
"""

from ml_collections import ConfigDict

from nest_jax import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.base(name="voc_19_1", dataset="voc2012", tasks="19-1", arg=arg)
