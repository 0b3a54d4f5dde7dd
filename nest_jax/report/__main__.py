"""The command line: `python -m nest_jax.report --workdir RUN [--compare RUN2 ...] [--out DIR]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from etils import epath

from nest_jax import compilation, figures, writers
from nest_jax.command import Parser, exit_code
from nest_jax.errors import InputError
from nest_jax.report import page, runs, sections, strips
from nest_jax.report.page import Section
from nest_jax.report.runs import Run
from nest_jax.storage import plain_disk_errors, write_text

CAM_CLASSES = 4

EXAMPLES = """\
examples:
  # runs/voc_15_1/report/report.html, one file that needs no network, and its charts as PNG files
  python -m nest_jax.report --workdir runs/voc_15_1

  # two runs side by side, under names of one's own
  python -m nest_jax.report --workdir MiB+NeST=runs/mib_nest --compare MiB=runs/mib --out report

  # without class activation maps, for which the networks must run
  python -m nest_jax.report --workdir runs/voc_15_1 --cam_classes 0

A run that is still going on is reported as far as it is. Exit codes: 0 done, 2 something in the input is wrong, 130 interrupted.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags.

    Raises:
        InputError: an unknown or incomplete flag.
    """
    parser = Parser(
        prog="python -m nest_jax.report",
        description="Makes one self-contained page of what a run did, or of several runs side by side.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--workdir", required=True, metavar="RUN", help="a run's --workdir, or LABEL=WORKDIR")
    parser.add_argument("--compare", nargs="+", default=[], metavar="RUN", help="further runs to set beside it")
    parser.add_argument("--out", metavar="DIR", help="folder for report.html and the PNG files (default: RUN/report)")
    parser.add_argument(
        "--cam_classes",
        type=int,
        default=CAM_CLASSES,
        metavar="N",
        help=f"classes with class activation maps (default {CAM_CLASSES}; 0: none)",
    )
    return parser.parse_args(arguments)


def report(workdirs: Sequence[str], out: epath.PathLike | None = None, *, cam_classes: int = CAM_CLASSES) -> epath.Path:
    """Writes `report.html` and its charts into `out` and returns the page's path.

    Args:
        workdirs: runs as WORKDIR or LABEL=WORKDIR; the first one gives the page its title. out: default: `report` in the first run.
        cam_classes: of how many later classes class activation maps are made.

    Raises:
        InputError: a run has no results, matplotlib is not installed, or `out` cannot be written.
    """
    figures.plotting()
    found = runs.read(workdirs)
    folder = epath.Path(out).expanduser() if out else found[0].workdir / "report"
    files: page.Files = {}
    chosen = strips.places(found, cam_classes)
    steps = 6 + sum(len({task for _, task in strips.learnt(run)}) for run in found if chosen)
    with writers.progress(steps, 0, "report") as bar:
        chapters = []
        for chapter in (sections.per_task, sections.per_class, sections.learning, sections.prepared):
            chapters.append(chapter(found, files))
            bar.update()
        chapters.append(predictions(found))
        chapters.append(activation_maps(found, chosen, files, bar.update))
        bar.update()
        chapters += [sections.cost(found, files), sections.settings(found)]
        bar.update()
    config = found[0].config
    title = f"{config['name']}: {', '.join(run.label for run in found)}"
    version = found[0].results.get("versions", {}).get("jax", "?")
    footer = f"Made by <code>python -m nest_jax.report</code>; the charts lie beside this page as PNG files. JAX {page.escape(version)}."
    with plain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    write_text(folder / "report.html", page.document(title, lead(found), chapters, footer))
    return folder / "report.html"


def lead(found: Sequence[Run]) -> str:
    """What was run, and the numbers first."""
    config, tasks = found[0].config, found[0].tasks
    new = "; ".join(f"task {task['task']}: {_some(task['new_classes'])}" for task in tasks[:12]) + (
        "; …" if len(tasks) > 12 else ""
    )
    what = (
        f"Data {config['dataset']['name']}, tasks {config['tasks']['name']} ({config['tasks']['setting']}), network "
        f"{config['backbone']['name']} + {config['decoder']['name']}, seed {config['seed']}. {new[:1].upper()}{new[1:]}."
    )
    return page.paragraph(page.escape(what)) + sections.summary(found)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 5 else f"{', '.join(names[:3])}, … ({len(names)})"


def predictions(found: Sequence[Run]) -> Section:
    """Image, truth, prediction after every task."""
    text = page.paragraph(
        "Validation images: what the model saw after every task. Numbers are classes, as the legend says."
    )
    body = strips.predictions(found)
    return Section(
        "predictions", "Predictions after every task", body if body.startswith('<p class="missing"') else text + body
    )


def activation_maps(found: Sequence[Run], chosen: Sequence[strips.Place], files: page.Files, step) -> Section:
    """Class activation maps, or why there are none."""
    title = "Where new classes are seen"
    if not chosen:
        why = "no class activation maps: they need pictures of later classes (evaluate.pictures) that all runs stored, and --cam_classes above 0."
        return Section("cam", title, page.missing(f"There are {why}"))
    text = page.paragraph(
        "Class activation maps (Seg-Grad-CAM) of the network's last map: bright is what speaks for the class, in the task that learnt it and after the last one."
    )
    try:
        return Section("cam", title, text + strips.activation_maps(found, chosen, files, step))
    except InputError as error:
        return Section("cam", title, page.missing(f"There are no class activation maps: {error}"))


def run(arguments: Sequence[str]) -> None:
    """What `main` does, with errors as exceptions."""
    options = parse(arguments)
    compilation.keep()
    print(report([options.workdir, *options.compare], options.out, cam_classes=options.cam_classes))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    told = "interrupted; nothing was written, or only a part of the PNG files"
    return exit_code(run, arguments, interrupted=told)


if __name__ == "__main__":
    sys.exit(main())
