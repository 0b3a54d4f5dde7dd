"""The command line: `python -m nest_jax.tables --list`, `--table N ...`, `--markdown [FILE]`."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence

import jax
from etils import epath

from nest_jax.command import Parser, exit_code, split_overrides
from nest_jax.tables import catalogue, launch, overview, reproducing
from nest_jax.tables import plan as plans

EXAMPLES = """\
examples:
  # what there is: rows, runs, data, and what can be run here
  python -m nest_jax.tables --list

  # table 3 on six classes of VOC 2012, three seeds; again, it continues. The table lies in runs/tables/voc_animals/table-3.md
  python -m nest_jax.tables --table 3 --dataset voc_animals --seeds 3 --workdir runs/tables

  # two rows of table 1, one protocol, with a shorter recipe
  python -m nest_jax.tables --table 1 --columns 15-1 --rows 'MiB*' MiB+NeST --config.train.epochs=6,6

  # the commands alone, to spread them over machines that see one file system
  python -m nest_jax.tables --table 3 --seeds 3 --dry-run

Runs lie in WORKDIR/DATASET/PROTOCOL/VARIANT/seed-N; tables share the runs that they have in common. Exit codes: 0 done, 2 something
in the input is wrong, 3 some runs failed (the others are done), 130 interrupted.
"""


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, catalogue.Overrides]:
    """The flags, and the overrides for all runs.

    Raises:
        InputError: an unknown or incomplete flag.
    """
    parser = Parser(
        prog="python -m nest_jax.tables",
        description="Plans and runs the tables of the NeST paper, and writes them beside the paper's numbers.",
        epilog=EXAMPLES,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="every table: rows, runs, data, whether it can be run here")
    what.add_argument("--table", type=int, metavar="N", help="run table N, 1 to 12")
    what.add_argument(
        "--markdown", nargs="?", const="", metavar="FILE", help="all tables for docs/reproducing.md; FILE is updated"
    )
    parser.add_argument("--dataset", default="", help=f"one of: {', '.join(catalogue.FAMILIES)} (default: the paper's)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="42 and the next N - 1 (default: 1)")
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="only these rows (default: all)")
    parser.add_argument("--columns", nargs="+", default=[], metavar="COLUMN", help="only these columns (default: all)")
    parser.add_argument("--workdir", default="runs/tables", metavar="DIR", help="default: runs/tables")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, one per run, and stop")
    parser.add_argument("--config.KEY", dest="key", metavar="VALUE", help="overrides one value in all runs")
    flags, overrides = split_overrides(arguments)
    return parser.parse_args(flags), tuple(overrides)


def run(arguments: Sequence[str]) -> int:
    """What `main` does, with errors as exceptions."""
    options, extra = parse(arguments)
    jax.config.update("jax_platforms", "cpu")  # of this process alone: an accelerator's memory is for the runs
    if options.list:
        print(overview.text(), end="")
        return 0
    if options.markdown is not None:
        if options.markdown:
            reproducing.update(options.markdown)
        else:
            print(reproducing.text(), end="")
        return 0
    table = catalogue.table(options.table, options.dataset)
    plan = plans.make(table, str(epath.Path(options.workdir).expanduser()), seeds=options.seeds, extra=extra)
    own = [row.label for row in table.rows if row.variant]
    rows = catalogue.selected("--rows", own, options.rows)
    columns = catalogue.selected("--columns", [column.label for column in table.columns], options.columns)
    chosen = plans.with_starts(plan, [one for one in plan.runs if one.row in rows and one.column in columns])
    plan = plan._replace(missing=tuple(one for one in plan.missing if one.row in rows and one.column in columns))
    if options.dry_run:
        print(launch.dry(plan, chosen), end="")
        return 0
    with _ended_as_by_ctrl_c():
        return launch.run_all(plan, chosen)


@contextlib.contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """While it holds, a scheduler's SIGTERM and a closed terminal's SIGHUP (unless it is ignored) are a KeyboardInterrupt."""
    heard = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return exit_code(run, arguments, interrupted="interrupted; the same command continues")


if __name__ == "__main__":
    sys.exit(main())
