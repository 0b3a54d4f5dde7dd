"""ADE20K, 100-5 overlapped: 100 classes, then ten times five classes.

Command:  python -m nest_jax.main --config=configs/ade_100_5.py --config.dataset.root=/data/ADEChallengeData2016
          This version has no loader for ADE20K: the config loads and validates (--validate_only), training it stops with a plain message.
Machine:  (estimate) one accelerator with 40 GB, or several.
Time:     not measured. Estimate: 88 k steps of 24 images of 512 x 512; at 100 images/s about 6 hours.
Paper:    mIoU old / new / all: MiB 35.8 / 6.0 / 25.9, MiB+NeST 39.9 / 18.0 / 32.7.
"""

from ml_collections import ConfigDict

from nest_jax import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.base(name="ade_100_5", dataset="ade20k", tasks="100-5", arg=arg)
