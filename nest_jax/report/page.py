"""The HTML of a report: one page, no script, nothing loaded. Colours follow the reader's light or dark setting; charts take the text's colour."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any, NamedTuple

from nest_jax import figures

Files = dict[str, bytes]  # PNG files beside the page, by name


class Section(NamedTuple):
    """A chapter: the anchor of its heading, the heading, HTML."""

    anchor: str
    title: str
    body: str


def document(title: str, lead: str, sections: Sequence[Section], footer: str) -> str:
    """The whole page."""
    css = (resources.files("nest_jax.report") / "page.css").read_text()
    links = "".join(f'<li><a href="#{section.anchor}">{escape(section.title)}</a></li>' for section in sections)
    chapters = "\n".join(
        f'<section aria-labelledby="{section.anchor}"><h2 id="{section.anchor}">{escape(section.title)}</h2>\n{section.body}</section>'
        for section in sections
    )
    # The policy makes "loads nothing" a promise that the browser keeps.
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{css}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header><h1>{escape(title)}</h1>
{lead}
<nav aria-label="Chapters"><ul>{links}</ul></nav></header>
<main id="main">
{chapters}
</main>
<footer>{footer}</footer>
</body>
</html>
"""


def escape(text: Any) -> str:
    """Text as HTML."""
    return html.escape(str(text))


def paragraph(text: str) -> str:
    """A paragraph; `text` is HTML."""
    return f"<p>{text}</p>\n"


def missing(text: str) -> str:
    """Why something is not shown."""
    return f'<p class="missing">{escape(text)}</p>\n'


def slug(text: str) -> str:
    """A name for files and anchors."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def table(
    rows: Sequence[Sequence[Any]],
    *,
    caption: str,
    text_columns: Iterable[int] = (0,),
    marked: Iterable[int] = (),
) -> str:
    """A table, header first; the first cell of every row is its header. Numbers stand right, `text_columns` left; `marked` rows are set off.

    Cells are text, None an empty cell.
    """
    left, bold = set(text_columns), set(marked)

    def cell(kind: str, column: int, value: Any) -> str:
        scope = "" if kind == "td" else (' scope="col"' if kind == "th" else ' scope="row"')
        name = "td" if kind == "td" else "th"
        aligned = ' class="t"' if column in left else ""
        return f"<{name}{scope}{aligned}>{'' if value is None else escape(value)}</{name}>"

    head = "".join(cell("th", column, value) for column, value in enumerate(rows[0]))
    body = "\n".join(
        f"<tr{' class=m' if index in bold else ''}>"
        + "".join(cell("row" if column == 0 else "td", column, value) for column, value in enumerate(row))
        + "</tr>"
        for index, row in enumerate(rows[1:])
    )
    inside = f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody>"
    return scrolling(f"<table>{inside}</table>", caption)


def scrolling(inside: str, label: str) -> str:
    """What may be wider than a phone: it scrolls by itself, with the keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{inside}</div>\n'


def folded(summary: str, inside: str) -> str:
    """What only some readers want to see."""
    return f"<details><summary>{escape(summary)}</summary>\n{inside}</details>\n"


def charts(items: Iterable[str]) -> str:
    """Charts side by side, as many as there is room for."""
    inside = "".join(items)
    return f'<div class="charts">{inside}</div>\n' if inside else ""


def chart(files: Files, name: str, figure: Any, alt: str) -> str:
    """A figure on the page, read aloud as `alt`, and `NAME.png` beside the page."""
    name = add(files, name, figures.png(figure))
    return f'<figure class="chart">{_inline(figures.svg(figure), name, alt)}</figure>\n'


def add(files: Files, name: str, png: bytes) -> str:
    """Puts a PNG file beside the page; returns its name without the suffix, which differs from all others'."""
    name = slug(name)
    while f"{name}.png" in files:  # labels may differ in what a file name cannot hold
        name += "-x"
    files[f"{name}.png"] = png
    return name


def _inline(svg: str, name: str, alt: str) -> str:
    """An SVG file's element for the inside of a page: no name spaces, and ids that no other chart has."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)


def picture(png: bytes, size: tuple[int, int], alt: str, labels: Sequence[tuple[int, int, int]] = ()) -> str:
    """A small picture of `size` (width, height) pixels, scaled to its place, with numbers (x, y, number) on it."""
    width, height = size
    texts = "".join(
        f'<text x="{x}" y="{y}" font-size="{max(size) / 13:.1f}">{number}</text>' for x, y, number in labels
    )
    data = base64.b64encode(png).decode()
    return (
        f'<svg class="picture" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}"><title>{escape(alt)}</title>'
        f'<image width="{width}" height="{height}" href="data:image/png;base64,{data}"/>{texts}</svg>'
    )
