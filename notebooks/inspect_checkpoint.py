# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What a checkpoint holds
#
# A run keeps a checkpoint after every task. `nest_jax.inspect` opens one as NumPy arrays, without the data and without building the network
# again; `nest_jax.figures` draws what its functions compute.
#
# Set `NEST_JAX_WORKDIR` to the folder of a run of yours. Without it, this notebook first makes a small run on synthetic shapes: three
# classes, then two, then two, with MiB and NeST (a minute or two on a CPU).

# %%
# %matplotlib inline
# %config InlineBackend.print_figure_kwargs = {"dpi": 85}
import contextlib
import io
import os
import tempfile

import numpy as np
from IPython.display import display

from nest_jax import config, figures, inspect, results, run, rundir

workdir = os.environ.get("NEST_JAX_WORKDIR")
if not workdir:
    workdir = os.path.join(tempfile.gettempdir(), "nest_jax_shapes")
    shapes = config.load("configs/shapes.py:method=mib,classifier_init=nest")
    shapes.log.progress = False
    with contextlib.redirect_stdout(io.StringIO()):  # its tables; the last one comes below
        run(shapes, workdir)  # returns at once where the run is complete
print(results.table(results.read(workdir)))

# %% [markdown]
# ## One task
#
# `load` returns a named tuple: `network`, `batch_stats`, `classifier`, `details`, `config`, `class_names`, `new_classes`, `report`.

# %%
tasks = rundir.completed_tasks(workdir)
last = inspect.load(workdir, tasks[-1])
before = inspect.load(workdir, tasks[-2])
start = inspect.load(workdir, tasks[-1], start=True)  # what the training of the last task started from
print("task", last.task, "learnt", ", ".join(last.new_classes))
print("classifier", last.classifier["kernel"].shape, "- channels x classes:", ", ".join(last.class_names))
print("method", last.config["method"]["name"], "- initialisation", last.config["classifier_init"]["name"])

# %% [markdown]
# ## Classifiers
#
# The cosine between the classifiers of all classes after the last task. Two that point the same way are easily mistaken for each other.

# %%
names = last.class_names
figures.similarity(inspect.similarity(last.classifier["kernel"]), names, names, f"classifiers after task {last.task}")

# %% [markdown]
# Between two tasks: the diagonal says how much the classifier of an old class has turned, the last columns what the new ones resemble.

# %%
kernels = before.classifier["kernel"], last.classifier["kernel"]
figures.similarity(
    inspect.similarity(*kernels), before.class_names, names, f"task {before.task} (rows), {last.task} (columns)"
)

# %% [markdown]
# Norms: a class whose classifier is much longer than the others outbids them. "Prepared" is the start of the last task's training.

# %%
figures.bars(
    {
        "prepared": inspect.class_norms(start.classifier["kernel"]).tolist(),
        f"after task {last.task}": inspect.class_norms(last.classifier["kernel"]).tolist(),
    },
    names,
    "norm of every class's classifier",
    "L2 norm",
)

# %% [markdown]
# ## What the last task changed
#
# ‖after − before‖ / ‖before‖ of every layer; of the classifier, over the classes that both tasks know.

# %%
changes = inspect.change(
    {**before.network, "classifier": before.classifier}, {**last.network, "classifier": last.classifier}
)
layers = inspect.by_layer(changes)
figures.bars(
    {"change": list(layers.values())}, list(layers), f"task {before.task} to {last.task}", "relative L2 change"
)

# %%
norms = inspect.by_layer(inspect.layer_norms(last.network))
{name: round(value, 2) for name, value in norms.items()}

# %% [markdown]
# ## NeST's transformation
#
# `w = (M ⊙ W) P`: every new class starts as a weighted sum over the old classifiers. The transforms from the statistics ("initial") and after
# pre-tuning ("pretuned") are kept with the task; a run without NeST has none, and the cells below then draw nothing.

# %%
transforms = inspect.transforms(last)
old = names[: len(names) - len(last.new_classes)]
{stage: {name: np.shape(array) for name, array in transform.items()} for stage, transform in transforms.items()}

# %% [markdown]
# P, over old classes: which of them the first new class came from.

# %%
if transforms:
    projections = (transforms[stage]["projection"][0].tolist() for stage in inspect.TRANSFORMS)
    display(figures.projection(*projections, old, last.new_classes[0]))

# %% [markdown]
# |M|, over old classes and channels, from 0 to 1, background in its own contrast (the paper's figure 6).

# %%
for stage, when in zip(inspect.TRANSFORMS, figures.STAGES, strict=True):
    if transforms:
        shown = inspect.importance_map(transforms[stage]["importance"][0])
        display(figures.importance(shown, old, f"{last.new_classes[0]}: |M| {when}"))

# %% [markdown]
# P and M together: how much each old class gives to the pre-tuned classifier, as shares of it.

# %%
if transforms:
    shares = inspect.contributions(transforms["pretuned"], before.classifier["kernel"])
    display(
        figures.bars({"share": shares.tolist()}, old, f"{last.new_classes[0]}: shares", "share of the new classifier")
    )

# %% [markdown]
# ## What was forgotten
#
# The report of a task has its metrics, the IoU of every class and the confusion matrix (rows: truth).

# %%
history = [inspect.load(workdir, task).report["per_class"] for task in tasks]
{name: round(100 * value, 1) for name, value in results.forgetting(history).items()}

# %%
confusion = np.asarray(last.report["confusion"], float)
shares = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
figures.heat_map(shares, names, names, "pixels of each class (row), by prediction (%)")
