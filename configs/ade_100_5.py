"""ADE20K, 100-5 overlapped: 100 classes, then ten times five classes.

Command:  python -m nest_jax.main --config=configs/ade_100_5.py --config.dataset.root=/data/ADEChallengeData2016
Others:   after the path, :classifier_init=background (MiB alone), :method=plop or :method=rcil (with NeST), :method=joint.
Machine:  (estimate) one accelerator with 40 GB, or several.
Time:     not measured. Estimate: 88 k steps of 24 images of 512 x 512; at 100 images/s about 6 hours.
Paper:    table 2 (base methods as its authors re-ran them), mIoU old / new / all: MiB 35.8 / 6.0 / 25.9, MiB+NeST 39.9 / 18.0 /
          32.7, PLOP 39.6 / 8.2 / 29.2, PLOP+NeST 39.3 / 17.4 / 32.0, RCIL 39.1 / 12.2 / 30.2, RCIL+NeST 39.4 / 15.5 / 31.5,
          joint 44.3 / 28.2 / 38.9.
"""

from ml_collections import ConfigDict

from nest_jax import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.base(name="ade_100_5", dataset="ade20k", tasks="100-5", arg=arg)
