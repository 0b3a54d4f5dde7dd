"""VOC 2012, 5-3 overlapped: 5 classes, then five times three. Of the family, but not in the paper.

Command:  python -m nest_jax.main --config=configs/voc_5_3.py --config.dataset.root=/data/VOCdevkit
Others:   after the path, :classifier_init=background (MiB alone), :method=plop or :method=rcil (with NeST), :method=joint.
Machine:  (estimate) one accelerator with 24 GB, or less with --config.train.gradient_accumulation=2 (not the same batch statistics).
Time:     not measured. Estimate: 18.4 k steps of 24 images of 512 x 512; at 100 images/s about 75 minutes.
Paper:    no result.
"""

from ml_collections import ConfigDict

from nest_jax import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.base(name="voc_5_3", dataset="voc2012", tasks="5-3", arg=arg)
