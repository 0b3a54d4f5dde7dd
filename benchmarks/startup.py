"""Seconds from the command to the first step: with an empty compilation cache, and with what the run before left in it.

    python benchmarks/startup.py --config=configs/shapes.py
    python benchmarks/startup.py --config=configs/voc_15_1.py --set dataset.root=/data/VOCdevkit --rounds 5
    python benchmarks/startup.py --config=configs/shapes.py:backbone=resnet50,decoder=deeplabv3 --set backbone.pretrained=none --set train.batch_size=4

Every start is the real command in a fresh process and a fresh workdir; it is ended at its first step. The two kinds take turns; medians. Seconds
are counted outside the process, from before the interpreter starts; the share of compiling is what the run itself says.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
FIRST_STEP = re.compile(r"first step after [\d.]+ s, ([\d.]+) s of it compiling: (\d+) programs, (\d+) of them kept")


class Start(NamedTuple):
    """Seconds to the first step; those of them that went into compiling or loading; programs, and how many of them were loaded."""

    seconds: float
    compiling: float
    programs: int
    loaded: int


def start(arguments: list[str], cache: Path) -> Start:
    """One start of the command.

    Raises:
        RuntimeError: it ended without a first step; the message is what it said.
    """
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "1", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "nest_jax.main", *arguments, f"--workdir={folder}/run"]
        said, clock = [], time.monotonic()
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                said.append(line)
                if found := FIRST_STEP.search(line):
                    seconds = time.monotonic() - clock
                    process.kill()
                    return Start(seconds, float(found[1]), int(found[2]), int(found[3]))
    raise RuntimeError("no first step: " + "".join(said[-20:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="config file, as the trainer takes it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a value of the config"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    arguments = [f"--config={options.config}", *(f"--config.{item}" for item in options.set)]
    kinds: dict[str, list[Start]] = {"cold": [], "warm": []}
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for kind, starts in kinds.items():
                starts.append(start(arguments, Path(cache)))
                print(f"round {number + 1}, {kind}: {starts[-1].seconds:.1f} s", file=sys.stderr, flush=True)
    print(f"{' '.join(arguments)}, median of {options.rounds}")
    print("cache   first step   of it compiling   programs   loaded")
    for kind, starts in kinds.items():
        seconds, compiling = (statistics.median(values) for values in list(zip(*starts, strict=True))[:2])
        last = starts[-1]
        print(f"{kind:5s}{seconds:11.1f} s{compiling:16.1f} s{last.programs:11d}{last.loaded:9d}")
    cold, warm = (statistics.median(one.seconds for one in starts) for starts in kinds.values())
    print(f"ratio: {cold / warm:.2f}")


if __name__ == "__main__":
    main()
