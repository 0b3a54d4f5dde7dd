"""VOC 2012, 10-1 overlapped: 10 classes, then ten times one class. The longest VOC protocol.

Command:  python -m nest_jax.main --config=configs/voc_10_1.py --config.dataset.root=/data/VOCdevkit
Others:   after the path, :classifier_init=background (MiB alone), :method=plop or :method=rcil (with NeST), :method=joint.
          Increments have 10 epochs, as published for MiB and PLOP; RCIL 30.
Machine:  (estimate) one accelerator with 24 GB, or less with --config.train.gradient_accumulation=2 (not the same batch statistics).
Time:     not measured. Estimate: 11.3 k steps of 24 images of 512 x 512; at 100 images/s about 50 minutes.
Paper:    table 1 (base methods as its authors re-ran them), mIoU old / new / all: MiB 10.4 / 9.9 / 10.2, MiB+NeST 52.3 / 21.0 /
          37.4, PLOP 45.9 / 17.1 / 32.2, PLOP+NeST 54.2 / 17.8 / 36.9, RCIL 47.8 / 17.0 / 33.1, RCIL+NeST 51.4 / 20.9 / 36.8,
          joint 78.8 / 77.7 / 78.3.
          table 8, --config.tasks.setting=disjoint, mIoU of all: MiB 2.0, MiB+NeST 20.5, PLOP 12.6, PLOP+NeST 22.4.
"""

from ml_collections import ConfigDict

from nest_jax import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.base(name="voc_10_1", dataset="voc2012", tasks="10-1", arg=arg)
