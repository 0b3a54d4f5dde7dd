"""The training step in plain PyTorch, for comparison: the same networks, losses and update, with the names of the exported weights.

It imports PyTorch and NumPy and nothing of nest_jax, and runs in an interpreter of its own: `python -m reference INPUTS`, from `benchmarks/`.
"""
