"""ADE20K, 100-50 overlapped: 100 classes, then 50 at once.

Command:  python -m nest_jax.main --config=configs/ade_100_50.py --config.dataset.root=/data/ADEChallengeData2016
Others:   after the path, :classifier_init=background (MiB alone), :method=plop or :method=rcil (with NeST), :method=joint.
Machine:  (estimate) one accelerator with 40 GB, or several.
Time:     not measured. Estimate: 74 k steps of 24 images of 512 x 512; at 100 images/s about 5 hours.
Paper:    table 2 (base methods as its authors re-ran them), mIoU old / new / all: MiB 40.5 / 23.5 / 34.9, MiB+NeST 40.3 / 24.6
          / 35.1, PLOP 42.2 / 15.3 / 33.3, PLOP+NeST 42.2 / 24.3 / 36.3, RCIL 42.3 / 16.5 / 33.8, RCIL+NeST 42.3 / 22.8 / 35.8,
          joint 44.3 / 28.2 / 38.9.
"""

from ml_collections import ConfigDict

from nest_jax import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.base(name="ade_100_50", dataset="ade20k", tasks="100-50", arg=arg)
