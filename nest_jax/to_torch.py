"""To PyTorch: a trained task, or the tensors of any .pth, as a .safetensors file. Neither PyTorch nor its readers are needed."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from nest_jax import checkpoints, rundir, torch_files, torch_weights
from nest_jax import config as configs
from nest_jax import segmenter as seg
from nest_jax.errors import InputError


def convert(source: str | Path, out: str | Path) -> str:
    """Writes the tensors of a state dict as .safetensors, names and numbers unchanged; returns a line that describes the file.

    Raises:
        InputError: the source is not readable, or `out` exists or is not named .safetensors.
    """
    out = _new_file(out)
    torch_files.write_safetensors(out, torch_files.read(source), {"format": "pt"})
    return _described(out)


def export(workdir: epath.PathLike, out: str | Path, task: int | None = None) -> str:
    """Writes the model after a task (default: the last complete one) with the published names, for PyTorch; returns a line that describes it.

    "body...", "head...", and one classifier "cls.N.weight" [classes of task N, d, 1, 1], "cls.N.bias" per task. The metadata hold the
    class names in the order of the outputs, the backbone and the decoder. `task_checkpoint` reads it back, bit for bit.

    Raises:
        InputError: the task is not complete, an earlier task's checkpoint is gone, or `out` exists or is not named .safetensors.
    """
    out = _new_file(out)
    complete = rundir.completed_tasks(workdir)
    task = max(complete, default=0) if task is None else task
    if missing := sorted(set(range(task + 1)) - set(complete)):
        have = ", ".join(map(str, complete)) or "none"
        raise InputError(f"{workdir}: the checkpoint of task {missing[0]} is not there; complete are: {have}")
    tree, metadata = checkpoints.restore(rundir.task_directory(workdir, task))
    # The published code has one classifier per task: the classes that each task added.
    seen = [len(checkpoints.metadata(rundir.task_directory(workdir, one))["classes"]) for one in range(task + 1)]
    config = configs.from_json(json.dumps(metadata["config"]))
    about = {
        "format": "pt",
        "classes": json.dumps(metadata["classes"]),
        "task": str(task),
        "backbone": config.backbone.name,
        "decoder": config.decoder.name,
    }
    torch_files.write_safetensors(out, state_dict(tree["model"], config, seen), about)
    return _described(out)


def state_dict(model: Mapping[str, Any], config: Any, seen: Sequence[int]) -> dict[str, np.ndarray]:
    """The model's arrays with the published names and layout; `seen[t]` classes, background included, were known after task t."""
    network = {"params": model["network"], "batch_stats": model["batch_stats"]}
    state = torch_weights.from_tree(network, partial(seg.torch_name, config))
    kernel, bias = (np.asarray(model["classifier"][name]) for name in ("kernel", "bias"))
    for task, (first, last) in enumerate(itertools.pairwise([0, *seen])):
        state[f"cls.{task}.weight"] = kernel[:, first:last].T[:, :, None, None]
        state[f"cls.{task}.bias"] = bias[first:last]
    return state


def _new_file(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: the file that is written is named .safetensors")
    if path.exists():
        raise InputError(f"{path} exists; delete it or choose another name")
    return path


def _described(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    entries = len(torch_files.read(path))
    return f"{path}: {entries} tensors, {path.stat().st_size / 1e6:.1f} MB, SHA-256 {digest}"
