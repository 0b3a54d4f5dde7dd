"""docs/reproducing.md's tables, from the same catalogue that the runs come from: the command of every cell, what is verified, the paper's number."""

from collections.abc import Iterable
from pathlib import Path

from nest_jax.errors import InputError
from nest_jax.results import BLANK
from nest_jax.storage import write_text
from nest_jax.tables import catalogue
from nest_jax.tables.catalogue import FAMILIES, TABLES, Column, Row, Table, Variant
from nest_jax.tables.report import METRICS, printed

BEGIN = "<!-- tables: written by `python -m nest_jax.tables --markdown docs/reproducing.md`; edit nest_jax/tables instead -->"
END = "<!-- tables: end -->"

# What of a row is tested against numbers of the published PyTorch code: the word in the tables, and the files of tests/golden.
GOLDEN: dict[str, tuple[str, ...]] = {
    "ResNet-101": ("deeplabv3_resnet101.npz",),
    "Swin-B": ("deeplabv3_swin_b.npz",),
    "SETR": ("setr_vit_b.npz",),
    "losses": ("losses.npz",),
    "POD": ("distillation_old.npz", "distillation_new.npz"),
    "RCIL": ("rcil_resnet50.npz", "distillation_old.npz", "distillation_new.npz"),
    "NeST": ("nest.npz",),
    "MiB steps": ("trajectory_mib_resnet50.npz",),
    "PLOP steps": ("trajectory_plop_resnet50.npz",),
    "lists": ("protocol.npz",),
}
BY_PLUGIN: dict[tuple[str, str], tuple[str, ...]] = {
    ("backbone", "resnet101"): ("ResNet-101",),
    ("backbone", "swin_b"): ("Swin-B",),
    ("backbone", "vit_b"): ("SETR",),
    ("method", "mib"): ("losses", "MiB steps"),
    ("method", "plop"): ("losses", "POD", "PLOP steps"),
    ("method", "rcil"): ("losses", "RCIL"),
    ("classifier_init", "nest"): ("NeST",),
}
LISTS = {
    "voc": ("15-1", "15-5", "15-1-disjoint"),
    "ade": ("100-5", "100-50"),
}  # folders of the columns that protocol.npz covers
# Slugs of the rows that have been run on the VOC subset, in the setting of tables 1, 3 to 6, 11 and 12.
ON_SUBSET = (
    "mib",
    "mib_nest",
    "mib_random",
    "mib_two_stage",
    "mib_nest_projection",
    "mib_nest_importance",
    "mib_nest_random_matrices",
)


def text() -> str:
    """All tables, as they stand between `BEGIN` and `END`."""
    return "\n".join(_table(table) for table in TABLES.values())


def update(file: str) -> None:
    """Writes `text()` into `file`, between its two marks.

    Raises:
        InputError: there is no such file, or it lacks the marks.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"--markdown {file}: no such file")
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"--markdown {file}: it lacks the lines\n{BEGIN}\n{END}")
    write_text(path, f"{before}{BEGIN}\n\n{text()}\n{END}{after}")


def _table(table: Table) -> str:
    lines = [f"### Table {table.number}. {table.title}", "", "```bash"]
    lines += [f"python -m nest_jax.tables --table {table.number} --workdir=runs/tables"]
    others = [name for name in catalogue.datasets(table.number) if name != table.dataset]
    lines += [
        f"python -m nest_jax.tables --table {table.number} --dataset {name} --workdir=runs/tables"
        for name in others
        if name != "shapes"
    ]
    lines += ["```", ""]
    lines += [_columns(table), ""]
    heads = [column.label for column in table.columns] + ([table.mean_column] if table.mean_column else [])
    if len(table.metrics) > 1 and len(heads) == 1:
        heads = [METRICS[metric].heading for metric in table.metrics]
    lines += [f"| row | `--config=FILE:` | verified | {' | '.join(f'paper: {head}' for head in heads)} |"]
    lines += ["|---" * (3 + len(heads)) + "|"]
    for row in table.rows:
        label = row.label.replace("*", r"\*")
        numbers = " | ".join(_numbers(table, row))
        if row.variant is None:
            lines.append(f"| {label} | none: literature, not built here | – | {numbers} |")
        else:
            lines.append(f"| {label} | {_command(table, row.variant)} | {_verified(table, row.variant)} | {numbers} |")
    lines.append("")
    lines += [f"* {note}" for note in table.notes] + ([""] if table.notes else [])
    return "\n".join(lines)


def _columns(table: Table) -> str:
    """Which file each column is, and what is added to its command."""
    files: dict[str, list[Column]] = {}
    for column in table.columns:
        files.setdefault(FAMILIES[table.dataset].configs[column.protocol], []).append(column)
    parts = []
    for file, columns in files.items():
        if any(column.label != column.protocol or column.overrides for column in columns):
            shown = ", ".join(
                f"{column.label}" + (f" with {_flags(column.overrides)}" if column.overrides else " as it is")
                for column in columns
            )
            parts.append(f"`{file}` ({shown})")
        else:
            parts.append(f"`{file}`")
    listed = [column.label for column in table.columns if column.folder in LISTS.get(table.dataset, ())]
    return f"FILE: {', '.join(parts)}." + (f" Verified image lists: {', '.join(listed)}." if listed else "")


def _flags(overrides: Iterable[tuple[str, str]]) -> str:
    return " ".join(f"`--config.{key}={value}`" for key, value in overrides)


def _command(table: Table, variant: Variant) -> str:
    picks = catalogue.spec(table.dataset, table.columns[0], variant).partition(":")[2]
    return f"`{picks}`" + (f" {_flags(variant.overrides)}" if variant.overrides else "")


def _numbers(table: Table, row: Row) -> list[str]:
    labels = [column.label for column in table.columns] + ([table.mean_column] if table.mean_column else [])
    if len(table.metrics) > 1 and len(labels) == 1:
        return [printed(row.paper[labels[0]].get(metric)) for metric in table.metrics]
    cells = []
    for label in labels:
        values = [printed(row.paper.get(label, {}).get(metric)) for metric in table.metrics]
        cells.append(BLANK if set(values) == {BLANK} else " / ".join(values))
    return cells


def _verified(table: Table, variant: Variant) -> str:
    """What stands behind a row, in words of `GOLDEN`; and whether it has been run on the VOC subset."""
    picks = {"backbone": "resnet101", **variant.pick}
    words = [word for pick in picks.items() for word in BY_PLUGIN.get(pick, ())]
    if picks["method"] == "rcil":
        words.remove("ResNet-101")  # its network is another
    on_subset = "voc_animals" in catalogue.datasets(table.number) and not table.columns[0].overrides
    return ", ".join(words + (["**subset run**"] if on_subset and variant.slug in ON_SUBSET else []))
