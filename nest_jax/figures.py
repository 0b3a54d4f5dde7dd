"""Charts for the report and the notebook: one matplotlib figure a function, legible in print, on a phone and to colour-blind eyes.

matplotlib is imported by the functions, not by this module: it is an extra (`pip install 'nest_jax[report]'`). Every figure is small, so that
a page can put several side by side or one below the other. Series differ in colour (Okabe and Ito's, without yellow), line style and marker.
"""

from __future__ import annotations

import contextlib
import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

import numpy as np
from jaxtyping import Float

from nest_jax.errors import InputError

# Okabe and Ito (2008); the order keeps neighbours apart in lightness too. Yellow is left out: it is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, FAINT = "#1b1f24", "#8b929b"
WIDTH, HEIGHT = 4.2, 2.9  # inches
MAX_NUMBERED_CELLS = 400
Numbers = Sequence[float | int]
STAGES = ("from the statistics", "after pre-tuning")  # of NeST's M and P

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "axes.facecolor": "none",
    "savefig.facecolor": "white",
    "svg.hashsalt": "nest_jax",  # the same figure is the same file
}


def plotting() -> Any:
    """matplotlib, without pyplot: no figure here belongs to a window.

    Raises:
        InputError: it is not installed; the message says how to install it.
    """
    try:
        import matplotlib
        import matplotlib.figure
        import matplotlib.patches
    except ImportError:
        raise InputError("matplotlib is not installed; run: pip install 'nest_jax[report]'") from None
    return matplotlib


@contextlib.contextmanager
def style() -> Iterator[Any]:
    """The charts' style inside the block; nobody's own settings change."""
    matplotlib = plotting()
    with matplotlib.rc_context(STYLE):
        yield matplotlib


def styled(draw: Callable) -> Callable:
    """A function that draws, in this style."""

    @wraps(draw)
    def inside(*arguments: Any, **named: Any) -> Any:
        with style():
            return draw(*arguments, **named)

    return inside


def axes(title: str, width: float = WIDTH, height: float = HEIGHT) -> tuple[Any, Any]:
    """A figure of one pair of axes, in inches; it belongs to no window and needs no closing."""
    figure = plotting().figure.Figure(figsize=(width, height), layout="constrained")
    # Above the figure and not above the axes, which begin behind labels of any length.
    title = textwrap.fill(title, int(12 * width))
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure, figure.add_subplot()


def series(index: int) -> dict[str, Any]:
    """Colour, line style and marker of the index-th of several series."""
    pick = index % len(COLOURS)
    return {"color": COLOURS[pick], "linestyle": LINES[pick], "marker": MARKERS[pick]}


def png(figure: Any, dpi: int = 160) -> bytes:
    """The figure as a PNG file on white."""
    with style():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
        return buffer.getvalue()


def svg(figure: Any) -> str:
    """The figure as an `<svg>` element for a page: no background, and text in the colour of the text around it."""
    with style():
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    return text.replace(INK, "currentColor").replace(INK.upper(), "currentColor")


@styled
def lines(
    named: Mapping[str, tuple[Numbers, Numbers]],
    title: str,
    x_label: str,
    y_label: str,
    *,
    spread: Mapping[str, Numbers] | None = None,
    faint: Mapping[str, tuple[Numbers, Numbers]] | None = None,
    limits: tuple[float, float] | None = None,
) -> Any:
    """A line of (x, y) points for each name; `spread` gives a band of ± so much around it, `faint` thin lines behind."""
    figure, one = axes(title)
    for index, (name, (x, y)) in enumerate(named.items()):
        if faint and name in faint:
            one.plot(*faint[name], color=COLOURS[index % len(COLOURS)], alpha=0.35, linewidth=0.8)
        if spread and name in spread:
            low, high = np.asarray(y) - np.asarray(spread[name]), np.asarray(y) + np.asarray(spread[name])
            one.fill_between(x, low, high, color=COLOURS[index % len(COLOURS)], alpha=0.15, linewidth=0)
        one.plot(x, y, label=name, **series(index))
    one.set(xlabel=x_label, ylabel=y_label, ylim=limits)
    one.xaxis.get_major_locator().set_params(integer=True)
    if len(named) > 1:
        one.legend()
    return figure


@styled
def heat_map(
    values: Float[np.ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    *,
    limits: tuple[float, float] = (0.0, 100.0),
    colours: str = "viridis",
    form: str = "{:.0f}",
    label: str = "",
    outlined: Sequence[tuple[int, int]] = (),
    width: float | None = None,
) -> Any:
    """Values as colours, and as numbers where there are not too many; NaN is left empty; `outlined` cells (row, column) get a frame."""
    figure, one = axes(title, width or max(2.6, 1.5 + 0.45 * len(columns)), 1.0 + 0.24 * len(rows))
    image = one.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest")
    one.grid(False)
    one.set_yticks(range(len(rows)), rows)
    one.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 4 else 0)
    one.tick_params(length=0)
    one.spines[:].set_visible(False)
    if values.size <= MAX_NUMBERED_CELLS:
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
                one.text(
                    column, row, form.format(value), ha="center", va="center", fontsize=8, color="w" if dark else "k"
                )
    for row, column in outlined:
        one.add_patch(
            plotting().patches.Rectangle(
                (column - 0.47, row - 0.44), 0.94, 0.88, fill=False, edgecolor="#D55E00", lw=1.6
            )
        )
    figure.colorbar(image, ax=one, label=label, shrink=min(1.0, 12 / max(1, len(rows))), pad=0.03).outline.set_visible(
        False
    )
    return figure


@styled
def bars(
    named: Mapping[str, Numbers],
    labels: Sequence[str],
    title: str,
    x_label: str,
    *,
    stacked: bool = False,
    width: float = WIDTH,
) -> Any:
    """Horizontal bars: a row per label, in it a bar for each name, side by side or in one line."""
    figure, one = axes(title, width, 0.9 + len(labels) * (0.24 if stacked else 0.12 + 0.13 * len(named)))
    place, left = np.arange(len(labels)), np.zeros(len(labels))
    for index, (name, values) in enumerate(named.items()):
        thickness = 0.7 if stacked else 0.8 / len(named)
        shift = 0.0 if stacked else (index - (len(named) - 1) / 2) * thickness
        hatch = ("", "///", "...", "xx", "\\\\\\", "++")[index % 6]
        one.barh(
            place + shift,
            values,
            thickness,
            left=left if stacked else None,
            label=name,
            color=COLOURS[index % len(COLOURS)],
            hatch=hatch,
            edgecolor="white",
            linewidth=0.4,
        )
        left = left + np.asarray(values)
    one.set_yticks(place, labels)
    one.invert_yaxis()
    one.grid(False, axis="y")
    one.set_xlabel(x_label)
    if len(named) > 1:
        figure.legend(loc="outside lower center", ncols=min(3, len(named)), fontsize=8)
    return figure


def projection(before: Numbers, after: Numbers, old_classes: Sequence[str], new_class: str) -> Any:
    """P of one new class: which old classes its classifier came from, before and after pre-tuning."""
    return bars(dict(zip(STAGES, (before, after), strict=True)), old_classes, f"{new_class}: P over old classes", "P")


@styled
def importance(normalised: Float[np.ndarray, "old d"], old_classes: Sequence[str], title: str) -> Any:
    """|M| of one new class, as `inspect.importance_map` normalises it: old classes x channels, background in its own contrast."""
    figure, one = axes(title, WIDTH, 1.2 + 0.24 * len(old_classes))
    image = one.imshow(normalised, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    one.axhline(0.5, color="white", linewidth=2)
    one.grid(False)
    names = [f"{name} (own scale)" if index == 0 else name for index, name in enumerate(old_classes)]
    one.set_yticks(range(len(names)), names)
    one.tick_params(length=0)
    one.spines[:].set_visible(False)
    one.set_xlabel("channel of the features")
    bar = figure.colorbar(image, ax=one, label="least to most", pad=0.02, ticks=[0, 1])
    bar.outline.set_visible(False)
    return figure


def similarity(cosines: Float[np.ndarray, "a b"], rows: Sequence[str], columns: Sequence[str], title: str) -> Any:
    """Cosines of classifiers, -1 (brown) to 1 (blue-green)."""
    return heat_map(cosines, rows, columns, title, limits=(-1.0, 1.0), colours="BrBG", form="{:.2f}", label="cosine")
