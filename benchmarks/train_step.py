"""The trainer's step against the same step in plain PyTorch (`reference/`), side by side: seconds, images/s, peak memory.

    python benchmarks/train_step.py --config=configs/voc_15_1.py:method=mib,classifier_init=background \
        --set train.crop_size=128 --set train.batch_size=2 --torch_python PYTHON_WITH_TORCH     # on a CPU
    python benchmarks/train_step.py --config=configs/voc_15_1.py:method=mib,classifier_init=background --dtype bfloat16   # one H100
    ... --check      # the same numbers? Loss terms and all updated parameters of one step, without stochastic depth and the like

Each side is a process of its own that builds its step and then waits; rounds alternate between the sides, so that only one computes at a time.
The step is teacher forward, student forward and backward, and update, in task 1 of the protocol, from the same random weights on the
same random batch. The loss terms of the first step must agree (unless it draws random numbers), or nothing is measured.

`torch` is eager; `torch.compile` compiles forward and losses. bfloat16 is autocast there, channels last in both. PyTorch may live in
another interpreter. Peak memory is the device's, as each library's allocator counts it, from after the first steps; on a CPU, the process's
resident memory.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from reference import pipe

HERE = Path(__file__).parent
Workers = dict[str, tuple[subprocess.Popen, Path]]  # and their logs
SIDES = {"nest_jax": "", "torch": "eager", "torch.compile": "compile"}
# By compute dtype: of a loss term; of the changes of the tensors (median). Rounding puts a few activations on the other side of a ReLU's kink,
# each of which changes all gradients below it by thousandths; with a slope near 1 the changes of ResNet-101 agree to 1e-4.
TOLERANCES = {"float32": (1e-4, 2e-2), "bfloat16": (5e-2, 1.0)}


def relative(found: dict[str, float], expected: dict[str, float]) -> float:
    """The largest relative difference of terms that both have."""
    both = found.keys() & expected.keys()
    return max(abs(found[name] - expected[name]) / max(abs(expected[name]), 1e-12) for name in both)


def update_differences(start: Any, ours: Any, theirs: Any, names: Iterable[str]) -> dict[str, float]:
    """Per tensor `names` of a state dict: |our change - their change| / |their change|, beyond the rounding of the tensor itself.

    Changes far below the usual size count as a hundredth of it: the gradient of a bias under another norm is 0 but for rounding.
    """
    distances, sizes = {}, {}
    for name in names:
        before, one, two = (np.asarray(part[name], np.float64) for part in (start, ours, theirs))
        rounding = np.finfo(np.float32).eps * np.linalg.norm(before)
        distances[name] = max(np.linalg.norm(one - two) - rounding, 0.0) / np.sqrt(one.size)
        sizes[name] = np.linalg.norm(two - before) / np.sqrt(one.size)
    least = 0.01 * statistics.median(size for size in sizes.values() if size)
    return {name: float(distances[name] / max(sizes[name], least)) for name in sizes}


def report(about: dict[str, Any], sides: dict[str, dict[str, Any]]) -> str:
    """The table: `sides` has "first" seconds, "seconds" per step of every round, and "bytes" by name."""
    lines = [f"{about['what']}: batch {about['batch']}, crop {about['crop']}, {about['dtype']}, {about['device']}"]
    lines.append(f"  {'':13s} {'s/step':>8s} {'images/s':>9s} {'peak memory':>12s} {'first step':>11s}")
    medians = {name: statistics.median(side["seconds"]) for name, side in sides.items()}
    for name, side in sides.items():
        lines.append(
            f"  {name:13s} {medians[name]:8.4f} {about['batch'] / medians[name]:9.2f} {side['bytes'] / 2**30:9.2f} GiB"
            f" {side['first']:9.1f} s"
        )
    for name in sides:
        if "nest_jax" in sides and name != "nest_jax":
            speed = medians[name] / medians["nest_jax"]
            memory = sides["nest_jax"]["bytes"] / max(sides[name]["bytes"], 1)
            lines.append(f"nest_jax / {name}: {speed:.2f}x the speed, {memory:.2f}x the memory")
    return "\n".join(lines)


def environments(device: str) -> tuple[dict[str, str], dict[str, str]]:
    """Of our worker and of PyTorch's. Both may share an accelerator, so JAX does not take all of its memory at once."""
    ours = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    theirs = {**os.environ, "PYTHONPATH": str(HERE)}
    if device:
        ours["JAX_PLATFORMS"] = device
    if device == "cpu":
        theirs["CUDA_VISIBLE_DEVICES"] = ""
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return {**ours, "PYTHONPATH": os.pathsep.join(filter(None, paths))}, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="config file, with classifier_init=background to start at once")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a config value")
    parser.add_argument("--sides", default=",".join(SIDES), help="of nest_jax,torch,torch.compile (default: all)")
    parser.add_argument("--torch_python", default=sys.executable, metavar="PATH", help="interpreter that has PyTorch")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="", help="default: JAX's")
    parser.add_argument("--dtype", choices=tuple(TOLERANCES), help="default: the config's, bfloat16 on accelerators")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1, help="steps per round, waited for together")
    parser.add_argument("--check", action="store_true", help="compare one step, measure nothing")
    options = parser.parse_args()
    names = options.sides.split(",")
    if unknown := set(names) - set(SIDES):
        parser.error(f"--sides: {', '.join(sorted(unknown))}; choices: {', '.join(SIDES)}")
    changes = options.set + ([f"dtype={options.dtype}"] if options.dtype else [])
    changes += [
        "train.learning_rate=1,1"
    ] * options.check  # the changes are the gradients, far above the weights' rounding
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore
    with tempfile.TemporaryDirectory() as folder:
        workers: Workers = {}
        try:
            measure(options, names, changes, Path(folder), workers)
        except RuntimeError as error:
            sys.exit(str(error))
        finally:
            for worker, _ in workers.values():
                worker.kill()
                worker.communicate()


def measure(options: Any, names: list[str], changes: list[str], folder: Path, workers: Workers) -> None:
    """Starts the workers, compares their first steps, and prints the table or the comparison."""
    inputs, (our_environment, their_environment) = folder / "inputs.npz", environments(options.device)

    def launch(name: str, command: list[str], **places: Any) -> None:
        log = folder / f"{name}.log"
        workers[name] = pipe.start(command, log, **places), log

    def ask(name: str, command: str, **arguments: Any) -> dict[str, Any]:
        worker, log = workers[name]
        return pipe.ask(worker, log, command, **arguments)

    ours = [sys.executable, str(HERE / "train_step_side.py"), f"--config={options.config}", f"--inputs={inputs}"]
    ours += [part for change in changes for part in ("--set", change)] + ["--check"] * options.check
    launch("nest_jax", ours, env=our_environment)  # it also writes the weights, whatever is measured
    about = ask("nest_jax", "about")
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        if name != "nest_jax":
            launch(
                name,
                [options.torch_python, "-m", "reference", str(inputs), SIDES[name]],
                cwd=HERE,
                env=their_environment,
            )
        found[name] = ask(name, "first")
        if options.check:
            found[name] |= ask(name, "parameters", path=str(folder / f"{name}.npz"))
    tolerance, update_tolerance = TOLERANCES[about["dtype"]]
    for name in [name for name in names if name != "nest_jax" and "nest_jax" in names]:
        terms = found["nest_jax"]["terms"], found[name]["terms"]
        difference = relative(*terms)
        if not difference <= tolerance and not about["draws"]:
            raise RuntimeError(f"not the same step: loss terms nest_jax {terms[0]}, {name} {terms[1]}")
        print(
            f"first step, {name}: loss {terms[1]['loss']:.6g}; terms differ by {difference:.1e} of their size at most"
        )
        if options.check:
            states = (inputs, folder / "nest_jax.npz", folder / f"{name}.npz")
            start_state, one, two = (np.load(path) for path in states)
            before = {key.removeprefix("student/"): start_state[key] for key in start_state.files}
            compared = set(one) - set(found[name]["unreached"])
            updates = update_differences(before, one, two, compared)
            worst = max(updates, key=lambda key: updates[key])
            middle = statistics.median(updates.values())
            print(f"  {len(updates)} tensors' changes differ by {middle:.1e} (median), {updates[worst]:.1e} ({worst})")
            if not (middle <= update_tolerance and updates[worst] <= 10 * update_tolerance):
                raise RuntimeError("not the same step: the updates differ")
    if options.check:
        return
    sides = {name: {"first": found[name]["seconds"], "seconds": []} for name in names}
    for name in names:
        ask(name, "settle")
    for _ in range(options.rounds):
        for name in names:
            sides[name]["seconds"].append(ask(name, "run", steps=options.steps)["seconds"] / options.steps)
    for name in names:
        sides[name] |= ask(name, "peak")
    print(report(about, sides))


if __name__ == "__main__":
    main()
