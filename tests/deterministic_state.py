"""The weights of the golden network files: filled from each entry's name, so that no weights need storing (NumPy only)."""

import json
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"


def named_normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 numbers that depend on the name alone."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape, dtype=np.float32)


def state_dict(network: str, salt: str = "g1/") -> dict[str, np.ndarray]:
    """Every entry of the published state dict listed in `golden/<network>_state_dict.json`, PyTorch's names and layout."""
    shapes = json.loads((GOLDEN / f"{network}_state_dict.json").read_text())
    return {name: _entry(salt + name, tuple(shape)) for name, shape in shapes.items()}


def network_input(salt: str, shape: tuple[int, ...]) -> np.ndarray:
    """The image batch, NCHW, already normalised."""
    return named_normal(salt + "input", shape)


def _entry(name: str, shape: tuple[int, ...]) -> np.ndarray:
    a = named_normal(name, shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return 1 + np.float32(0.1) * np.abs(a)
    if leaf in ("running_mean", "bias"):
        return np.float32(0.1) * a
    if leaf == "relative_position_bias_table":
        return np.float32(0.5) * a
    if "pos_embed" in leaf or "cls_token" in leaf:
        return np.float32(0.2) * a
    if len(shape) == 1:
        return 1 + np.float32(0.2) * a  # some are negative: |gamma| + eps matters
    return a / np.float32(np.sqrt(int(np.prod(shape[1:]))))
