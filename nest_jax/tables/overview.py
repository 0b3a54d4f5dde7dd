"""`--list`: every table, its rows and runs, the data it needs, and whether it can be run here."""

import os
from pathlib import Path
from typing import Any

from nest_jax import known_weights, plugins
from nest_jax.datasets import _prepared
from nest_jax.errors import InputError
from nest_jax.tables import catalogue
from nest_jax.tables import plan as plans
from nest_jax.tables.catalogue import FAMILIES, TABLES


def text() -> str:
    """The list, ready to print."""
    return "\n".join(_table(number) for number in TABLES)


def _table(number: int) -> str:
    table = TABLES[number]
    own = [row.label for row in table.rows if row.variant]
    literature = [row.label for row in table.rows if not row.variant]
    plan = plans.make(table, "runs/tables")
    bases = sum(not run.start for run in plans.with_starts(plan, plan.runs))
    runs = len(own) * len(table.columns)
    lines = [f"{number:2}  {table.title}"]
    lines.append(f"    columns: {', '.join(column.label for column in table.columns)}")
    lines.append(f"    rows: {', '.join(own)}")
    if literature:
        lines.append(f"    literature, not built here: {', '.join(literature)}")
    lines.append(f"    runs: {runs} a seed" + (f", {bases} of them train task 0, the others share it" if bases else ""))
    for dataset in catalogue.datasets(number):
        one = plan if dataset == table.dataset else plans.make(catalogue.table(number, dataset), "runs/tables")
        lines.append(f"    --dataset {dataset}: needs {FAMILIES[dataset].data}; here: {here(one)}")
    return "\n".join(lines) + "\n"


def here(plan: plans.Plan) -> str:
    """ "yes", or "no: " and what is missing: data, pretrained weights, plug-ins."""
    needs = dict.fromkeys((run.config.dataset.name, tuple(run.config.backbone.items())) for run in plan.runs)
    lacking = [reason for name, backbone in needs for reason in (_no_data(name), _no_weights(dict(backbone)))]
    reasons = list(dict.fromkeys(filter(None, lacking)))
    answer = "no" if reasons or not plan.runs else "yes"
    if plan.missing:
        cells, first = len({(run.row, run.column) for run in plan.runs}), plan.missing[0]
        count = f"{len(plan.missing)} of {len(plan.missing) + cells} cells not possible"
        reasons.append(f"{count} ({first.row}, {first.column}: {first.reason})")
    return f"{answer}{': ' if answer == 'no' else ', but '}{'; '.join(reasons)}" if reasons else answer


def _no_data(name: str) -> str:
    """ "" where a data set's images are known to be on this machine: a root in its environment variable, or a prepared set."""
    variable = getattr(plugins.load("datasets", name), "ROOT_VARIABLE", "")
    if not variable or os.environ.get(variable):
        return ""
    data_dir = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    return "" if _prepared.find(name, data_dir) else f"no data: set {variable}, or give --config.dataset.root=DIR"


def _no_weights(backbone: dict[str, Any]) -> str:
    """ "" where a backbone's pretrained weights are on this machine, or it wants none."""
    if backbone["pretrained"] == "none":
        return ""
    try:
        known_weights.find(backbone)
    except InputError as error:
        return f"no weights: {str(error).removeprefix('backbone.pretrained: ').partition('. ')[0]}"
    return ""
