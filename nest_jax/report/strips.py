"""Images in a report: image, truth and what every task predicts (the paper's figures 5, 7, 8), and class activation maps (figure 9)."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Integer, UInt8
from PIL import Image

from nest_jax import figures, inspect, pictures, rundir
from nest_jax.report import cam, page
from nest_jax.report.runs import Run

SMALLEST_NUMBERED_REGION = 0.01  # of a picture's pixels
Names = dict[str, str]  # class names by label, as in pictures/classes.json


class Place(NamedTuple):
    """A class activation map to draw: a class, the task that learnt it, and a stored image that shows it."""

    name: str
    task: int
    stem: str


# --- predictions ----------------------------------------------------------------------------------------------------------------------


def predictions(runs: Sequence[Run]) -> str:
    """A table of pictures for every stored image that all runs have; a sentence where there is none."""
    stored = [run for run in runs if pictures._stems(_root(run))]
    shared = [stem for stem in (pictures._stems(_root(stored[0])) if stored else []) if _in_all(stem, stored)]
    if not shared:
        return page.missing(
            "The runs stored no pictures of the same images (evaluate.pictures says how many are stored)."
        )
    names = _names(stored)
    tasks = sorted({task for run in stored for task in pictures._tasks(_root(run))})
    used: set[int] = set()
    heads = "".join(f'<th scope="col">{text}</th>' for text in ("image", "truth", *(f"task {task}" for task in tasks)))
    corner = "<td></td>" if len(stored) > 1 else ""
    rows = [row for stem in shared for row in _rows(stem, stored, tasks, names, used)]
    body = f'<table class="strips"><thead><tr>{corner}{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return _legend(used, names) + page.scrolling(body, "Image, truth and prediction after every task")


def _rows(stem: str, runs: Sequence[Run], tasks: Sequence[int], names: Names, used: set[int]) -> list[str]:
    rows = []
    for index, run in enumerate(runs):
        cells = []
        if len(runs) > 1:
            cells.append(f'<th scope="row">{page.escape(run.label)}</th>')
        if index == 0:
            truth = pictures._truth([(one.label, _root(one)) for one in runs], stem)
            cells += [
                f'<td rowspan="{len(runs)}">{cell}</td>'
                for cell in (_photograph(run, stem), _labels(truth, "truth", names, used))
            ]
        for task in tasks:
            path = pictures._task_directory(_root(run), task) / f"{stem}.prediction.png"
            cells.append(f"<td>{_labels(path, f'{run.label}, after task {task}', names, used)}</td>")
        rows.append(f"<tr{' class=first' if index == 0 else ''}>{''.join(cells)}</tr>")
    return rows


def _photograph(run: Run, stem: str) -> str:
    path = _root(run) / "image" / f"{stem}.png"
    return page.picture(path.read_bytes(), pictures._open(path).size, f"image {stem}")


def _labels(path: epath.Path | None, what: str, names: Names, used: set[int]) -> str:
    """A label picture; each large region carries its class's number, and all classes are read aloud."""
    if path is None or not path.exists():
        return '<span class="soft">not evaluated</span>'
    labels = np.asarray(pictures._open(path))
    found, counts = np.unique(labels, return_counts=True)
    used.update(found.tolist())
    seen = [names.get(str(label), str(label)) for label in found.tolist() if label not in (0, pictures.VOID)]
    large = [
        label
        for label, count in zip(found.tolist(), counts, strict=True)
        if label not in (0, pictures.VOID) and count >= SMALLEST_NUMBERED_REGION * labels.size
    ]
    numbers = [(*pictures._middle(labels == label), label) for label in large]
    alt = f"{what}: {', '.join(seen) or 'only background'}"
    return page.picture(path.read_bytes(), (labels.shape[1], labels.shape[0]), alt, numbers)


def _legend(used: set[int], names: Names) -> str:
    colours = pictures.palette()
    entries = []
    for label in sorted(used):
        red, green, blue = colours[label].tolist()
        ink = "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#fff"
        name, number = ("void (not scored)", "") if label == pictures.VOID else (names.get(str(label), "?"), label)
        swatch = f'<span style="background:rgb({red} {green} {blue});color:{ink}">{number}&#8203;</span>'
        entries.append(f"<li>{swatch}{page.escape(name)}</li>")
    return f'<ul class="legend" aria-label="Classes">{"".join(entries)}</ul>\n'


# --- class activation maps ------------------------------------------------------------------------------------------------------------


def places(runs: Sequence[Run], count: int) -> list[Place]:
    """For the first `count` classes learnt after task 0: the stored image in which each covers most pixels, if any shows it.

    All runs must have learnt the class and stored the image.
    """
    stored = [run for run in runs if pictures._stems(_root(run))]
    if len(stored) < len(runs):
        return []
    names, found = _names(runs[:1]), []
    labels = {name: int(label) for label, name in names.items()}
    truths = {}
    for stem in (stem for stem in pictures._stems(_root(runs[0])) if _in_all(stem, runs)):
        path = pictures._truth([(runs[0].label, _root(runs[0]))], stem)
        if path is not None:
            truths[stem] = np.asarray(pictures._open(path))
    complete = [dict(learnt(run)) for run in runs]
    for name, task in complete[0].items():
        area = {stem: int(np.sum(truth == labels.get(name, -1))) for stem, truth in truths.items()}
        best = max(area, key=lambda stem: area[stem], default=None)
        if best is not None and area[best] and all(name in one for one in complete):
            found.append(Place(name, task, best))
    return found[:count]


def learnt(run: Run) -> list[tuple[str, int]]:
    """Classes learnt after task 0, with their task, as far as checkpoints are there."""
    complete = set(rundir.completed_tasks(run.workdir))
    return [(name, one["task"]) for one in run.tasks if one["task"] in complete - {0} for name in one["new_classes"]]


def activation_maps(runs: Sequence[Run], chosen: Sequence[Place], files: page.Files, step: Callable[[], Any]) -> str:
    """A row per class: the image, then for every run the map after the task that learnt it and after the last task.

    Args:
        step: called after every checkpoint.

    Raises:
        InputError: a checkpoint is damaged, or the network of a run's config is not there.
    """
    maps: dict[tuple[str, int, str], str] = {}
    for run in runs:
        last = max(task for _, task in learnt(run))
        own = dict(learnt(run))
        for task in sorted({last, *(own[place.name] for place in chosen)}):
            found = inspect.load(run.workdir, task)
            for place in (place for place in chosen if task in (own[place.name], last)):
                image = np.asarray(pictures._open(_root(run) / "image" / f"{place.stem}.png").convert("RGB"))
                size = (image.shape[1], image.shape[0])
                data = _png(overlay(image, cam.activation_map(found, image, place.name)))
                page.add(files, f"cam-{place.name}-{run.label}-task-{task}", data)
                alt = f"{run.label}, after task {task}: where {place.name} is seen in image {place.stem}"
                maps[run.label, task, place.name] = page.picture(data, size, alt)
            step()
    heads = "".join(
        f'<th scope="col">{page.escape(run.label)}<br>{when}</th>'
        for run in runs
        for when in ("when learnt", "at the end")
    )
    rows = []
    for place in chosen:
        cells = [
            f'<th scope="row">{page.escape(place.name)}<br>(task {place.task})</th>',
            f"<td>{_photograph(runs[0], place.stem)}</td>",
        ]
        for run in runs:
            first, last = dict(learnt(run))[place.name], max(task for _, task in learnt(run))
            cells += [f"<td>{maps[run.label, task, place.name]}</td>" for task in (first, last)]
        rows.append(f"<tr class=first>{''.join(cells)}</tr>")
    table = f'<table class="strips"><thead><tr><td></td><th scope="col">image</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return page.scrolling(table, "Class activation maps")


def overlay(image: UInt8[np.ndarray, "h w 3"], heat: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The image in grey with the map in colour on top, the stronger the less grey."""
    grey = image.astype(np.float32).mean(axis=-1, keepdims=True)
    colour = 255 * figures.plotting().colormaps["inferno"](heat)[..., :3]
    weight = 0.25 + 0.6 * heat[..., None]
    return np.clip((1 - weight) * grey + weight * colour, 0, 255).astype(np.uint8)


def _png(pixels: Integer[np.ndarray, "h w 3"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _root(run: Run) -> epath.Path:
    return run.workdir / "pictures"


def _in_all(stem: str, runs: Sequence[Run]) -> bool:
    return all((_root(run) / "image" / f"{stem}.png").exists() for run in runs)


def _names(runs: Sequence[Run]) -> Names:
    """Class names by label; where runs of different class orders disagree, both."""
    names: Names = {}
    for run in runs:
        for label, name in pictures._classes(_root(run)).items():
            names[label] = name if names.get(label, name) == name else f"{names[label]} / {name}"
    return names
