"""Puts finished or running runs side by side: `python -m nest_jax.compare RUN1 RUN2 ...`."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence

from etils import epath

from nest_jax import pictures, results
from nest_jax.command import Parser, exit_code
from nest_jax.errors import InputError
from nest_jax.storage import write_text

EXAMPLES = """examples:
  # old / new / all after every task, for a run with NeST and one without
  python -m nest_jax.compare runs/voc_15_1_nest runs/voc_15_1_mib

  # also comparison.md, comparison.csv and comparison.png, in the folder report
  python -m nest_jax.compare runs/voc_15_1_nest runs/voc_15_1_mib --out report

  # with names of one's own
  python -m nest_jax.compare NeST=runs/a MiB=runs/b --out report
"""


def run(arguments: Sequence[str]) -> None:
    """What `main` does, with errors as exceptions."""
    parser = Parser(
        prog="python -m nest_jax.compare",
        description="Compare runs: mIoU of the old, the new and all classes after every task, in percent.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run's --workdir (it holds results.json), or LABEL=WORKDIR; the default label is the folder's name",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for comparison.md, comparison.csv and comparison.png (default: only print the table)",
    )
    options = parser.parse_args(arguments)
    compare(options.runs, options.out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and writes the files; returns the exit code."""
    return exit_code(run, arguments)


def compare(runs: Sequence[str], out: epath.PathLike | None = None) -> None:
    """Prints the comparison of runs, and writes comparison.md, .csv and .png into `out`.

    Args:
        runs: work directories, or "LABEL=WORKDIR".

    Raises:
        InputError: a run has no results, two have one label, or `out` cannot be written.
    """
    named = _named(runs)
    found = [(label, results.read(workdir)) for label, workdir in named]
    print(results.comparison(found), end="")
    if out is None:
        return
    folder = epath.Path(out)
    write_text(folder / "comparison.md", _markdown(found))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(results.comparison_rows(found))
    write_text(folder / "comparison.csv", text.getvalue())
    written = ["comparison.md", "comparison.csv"]
    with_pictures = [
        (label, workdir) for label, workdir in named if (epath.Path(workdir) / "pictures" / "image").exists()
    ]
    if with_pictures:
        pictures.save(pictures.draw_sheet(with_pictures), folder / "comparison.png")
        written.append("comparison.png")
    for label, workdir in named:
        if (label, workdir) not in with_pictures:
            print(
                f"note: {workdir} has no pictures (evaluate.pictures is 0); comparison.png is without {label}",
                file=sys.stderr,
            )
    print(f"written to {folder}: {', '.join(written)}")


def _named(runs: Sequence[str]) -> list[tuple[str, str]]:
    """(label, workdir) of every run; folders of one name get the folders above them too."""
    named = []
    for run in runs:
        label, separator, workdir = run.partition("=")
        given = bool(separator) and not epath.Path(run).exists()
        named.append((label, workdir) if given else ("", run))
    parts = [epath.Path(workdir).parts for _, workdir in named]
    for depth in range(1, max(len(one) for one in parts) + 1):
        labels = [label or "/".join(one[-depth:]) for (label, _), one in zip(named, parts, strict=True)]
        if len(set(labels)) == len(labels):
            return [(label, workdir) for label, (_, workdir) in zip(labels, named, strict=True)]
    raise InputError(f"a run or a label is given twice: {', '.join(runs)}; every run once, as WORKDIR or LABEL=WORKDIR")


def _markdown(found: Sequence[tuple[str, dict]]) -> str:
    sections = ["# Comparison\n\nmIoU in percent: old (task 0 with background), new (all later classes), all.\n"]
    sections.append(results.comparison(found, markdown=True))
    for label, one in found:
        sections.append(f"## {label}\n\n{results.table(one, markdown=True)}")
    return "\n".join(sections)


if __name__ == "__main__":
    sys.exit(main())
