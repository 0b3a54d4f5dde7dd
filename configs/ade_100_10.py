"""ADE20K, 100-10 overlapped: 100 classes, then five times ten classes.

Command:  python -m nest_jax.main --config=configs/ade_100_10.py --config.dataset.root=/data/ADEChallengeData2016
Others:   after the path, :classifier_init=background (MiB alone), :method=plop or :method=rcil (with NeST), :method=joint.
Machine:  (estimate) one accelerator with 40 GB, or several.
Time:     not measured. Estimate: 85 k steps of 24 images of 512 x 512; at 100 images/s about 5.7 hours.
Paper:    table 2 (base methods as its authors re-ran them), mIoU old / new / all: MiB 37.8 / 12.1 / 29.3, MiB+NeST 40.2 / 20.6
          / 33.7, PLOP 41.0 / 13.7 / 32.0, PLOP+NeST 40.9 / 22.0 / 34.7, RCIL 39.9 / 15.7 / 31.9, RCIL+NeST 40.7 / 19.0 / 33.5,
          joint 44.3 / 28.2 / 38.9.
"""

from ml_collections import ConfigDict

from nest_jax import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.base(name="ade_100_10", dataset="ade20k", tasks="100-10", arg=arg)
