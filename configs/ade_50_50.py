"""ADE20K, 50-50 overlapped: 50 classes, then twice 50.

Command:  python -m nest_jax.main --config=configs/ade_50_50.py --config.dataset.root=/data/ADEChallengeData2016
Others:   after the path, :classifier_init=background (MiB alone), :method=plop or :method=rcil (with NeST), :method=joint.
Machine:  (estimate) one accelerator with 40 GB, or several.
Time:     not measured. Estimate: 107 k steps of 24 images of 512 x 512; at 100 images/s about 7 hours.
Paper:    table 2 (base methods as its authors re-ran them), mIoU old / new / all: MiB 45.9 / 23.9 / 31.3, MiB+NeST 45.6 / 26.8
          / 33.2, PLOP 48.5 / 20.8 / 30.2, PLOP+NeST 48.7 / 27.7 / 34.8, RCIL 48.2 / 23.6 / 31.9, RCIL+NeST 48.2 / 27.4 / 34.4,
          joint 51.1 / 33.3 / 38.9.
          (joint's 38.9 does not fit its old and new, whose mean over classes is 39.3)
"""

from ml_collections import ConfigDict

from nest_jax import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.base(name="ade_50_50", dataset="ade20k", tasks="50-50", arg=arg)
