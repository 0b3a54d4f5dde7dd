"""The numbers that the NeST paper prints, from paper_tables.json, in one form: rows of cells by column and metric."""

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

MIOU = ("old", "new", "all")
Printed = float | str | None  # as printed, mIoU in percent; text such as ">24"; None where the paper has no number
Cells = Mapping[str, Mapping[str, Printed]]  # by column, then by metric


class Row(NamedTuple):
    """A printed row. `label` as in the paper ("MiB*": the authors' own re-run); `backbone` "" where the table names none."""

    label: str
    cells: Cells
    backbone: str = ""


@cache
def _document() -> dict[str, Any]:
    return json.loads((resources.files("nest_jax.tables") / "paper_tables.json").read_text())


def rows(number: int) -> tuple[Row, ...]:
    """The rows of table `number`, in the paper's order."""
    key = next(key for key in _document() if key.startswith(f"table{number}_"))
    table = _document()[key]
    if isinstance(table, list):  # tables 1 and 2: a method comes once per backbone; a protocol without numbers is null
        found = []
        for row in table:
            cells: Cells = {column: one or {} for column, one in row["miou"].items()}
            found.append(Row(row["method"], cells, row["backbone"]))
        return tuple(found)
    return tuple(Row(label, _cells(key, value)) for label, value in table.items())


def _cells(key: str, value: Any) -> Cells:
    if isinstance(value, dict) and "memory_per_gpu_gb" not in value:  # all classes, by column
        return {column: {"all": number} for column, number in value.items()}
    protocol = next(part.removeprefix("voc") for part in key.split("_") if "-" in part)
    return {protocol: value if isinstance(value, dict) else dict(zip(MIOU, value, strict=True))}
