"""Joint training: all classes with all labels at once. The upper bound of every table.

The protocol's tasks become one; results are still reported as old and new by the protocol's first task.
"""

from nest_jax.methods.finetune import build, defaults

__all__ = ["JOINS_TASKS", "build", "defaults"]

JOINS_TASKS = True
