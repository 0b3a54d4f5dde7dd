"""Predictions as pictures: palette PNG files, and sheets that show image, truth and what every task predicts.

Colours alone do not tell 21 or 151 classes apart, least of all to colour-blind eyes: every region of a sheet also carries
its class's number, and the legend says which class has it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils import epath
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from nest_jax.errors import InputError
from nest_jax.storage import json_text, write_text

VOID = 255
VOID_COLOUR = (255, 255, 255)
CELL = 200  # pixels
GAP = 8
TEXT = 15
INK, PAPER, EMPTY = (25, 25, 25), (255, 255, 255), (235, 235, 235)
SMALLEST_NUMBERED_REGION = 0.007  # of the picture's pixels
OVERLAY = 1280  # pixels, the longer side at most
OPACITY = 0.55


def palette() -> UInt8[np.ndarray, "256 3"]:
    """RGB colour of every label: the VOC development kit's colour map (bit i of the label's base-8 digits), void white."""
    labels = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    colours[VOID] = VOID_COLOUR
    return colours


def save_predictions(
    workdir: epath.PathLike,
    task: int,
    names: Sequence[str],
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    truths: Sequence[Integer[np.ndarray, "_ _"]],
    predictions: Sequence[Integer[np.ndarray, "_ _"]],
    class_names: Sequence[str],
) -> None:
    """Stores what a task predicts on some images, on process 0, under `workdir/pictures/`.

    Files: `image/NAME.png`, `task-01/NAME.truth.png`, `task-01/NAME.prediction.png` (palette PNG: pixel values are labels),
    `classes.json` (label -> name).

    Args:
        truths, predictions: indices into `class_names` (0 background, 255 void), of the size of their image. Raw classes
            keep their colour whatever the class order; learnt order gives a class the colour of its place.
        class_names: name of every label.
    """
    if jax.process_index() != 0:
        return
    root = epath.Path(workdir) / "pictures"
    for name, image, truth, prediction in zip(names, images, truths, predictions, strict=True):
        if not image.shape[:2] == truth.shape == prediction.shape:
            shapes = f"{image.shape}, {truth.shape}, {prediction.shape}"
            raise ValueError(f"{name}: image, truth and prediction differ in size: {shapes}")
        stem = _stem(name)
        save(Image.fromarray(np.asarray(image, np.uint8)), root / "image" / f"{stem}.png")
        save(paint(truth), _task_directory(root, task) / f"{stem}.truth.png")
        save(paint(prediction), _task_directory(root, task) / f"{stem}.prediction.png")
    known = _classes(root) | {str(label): name for label, name in enumerate(class_names)}
    write_text(root / "classes.json", json_text(known, indent=1))


def paint(labels: Integer[np.ndarray, "h w"]) -> Image.Image:
    """A palette picture whose pixel values are the labels (0 to 255)."""
    picture = Image.fromarray(np.asarray(labels, np.uint8))
    picture.putpalette(palette().tobytes())
    return picture


def overlay(
    image: UInt8[np.ndarray, "h w 3"], labels: Integer[np.ndarray, "h w"], class_names: Sequence[str]
) -> Image.Image:
    """The image with its labels' colours blended in, white borders, and numbers on large regions; a legend below. Background stays as it is.

    Made for looking at: the longer side becomes `OVERLAY` pixels at most, so that numbers and legend can be read.
    """
    source = Image.fromarray(image)
    scale = min(1.0, OVERLAY / max(source.size))
    size = (max(1, round(source.width * scale)), max(1, round(source.height * scale)))
    small = np.asarray(Image.fromarray(np.asarray(labels, np.uint8)).resize(size, Image.Resampling.NEAREST))
    pixels = np.asarray(source.resize(size, Image.Resampling.BILINEAR), np.float32)
    blended = np.where(small[..., None] > 0, (1 - OPACITY) * pixels + OPACITY * palette()[small], pixels)
    border = np.zeros(small.shape, bool)  # colours alone are lost on things of the same colour
    border[:, :-1] = small[:, 1:] != small[:, :-1]
    border[:-1] |= small[1:] != small[:-1]
    blended[border] = 255
    picture = Image.fromarray(blended.astype(np.uint8))
    draw, font = ImageDraw.Draw(picture), _font(TEXT - 3)
    coarse = np.asarray(
        Image.fromarray(small).resize(cell := _fit(size), Image.Resampling.NEAREST)
    )  # `_middle` is slow
    for label in np.unique(coarse).tolist():
        inside = coarse == label
        if label not in (0, VOID) and inside.mean() >= SMALLEST_NUMBERED_REGION:
            x, y = _middle(inside)
            place = (int((x + 0.5) * size[0] / cell[0]), int((y + 0.5) * size[1] / cell[1]))
            _number(draw, place, label, font)
    canvas = _Canvas(max(size[0], CELL) + 2 * GAP, GAP)
    canvas.paste(picture, (GAP, canvas.grow(size[1] + GAP)))
    names = {str(label): name for label, name in enumerate(class_names)}
    used = np.unique(labels).tolist()
    _legend(canvas, GAP, [label for label in used if label] or used, names, _font(TEXT), font)
    return canvas.picture()


def sheet(workdir: epath.PathLike) -> epath.Path | None:
    """Makes `workdir/pictures/sheet.png`: a row per image with image, truth and the prediction after every task.

    The truth is the one stored with the last task, which knows most classes. Drawn by process 0. Returns the path, or None
    where no pictures are stored (evaluate.pictures is 0).
    """
    root = epath.Path(workdir) / "pictures"
    if not _stems(root):
        return None
    path = root / "sheet.png"
    if jax.process_index() == 0:
        save(draw_sheet([("", workdir)]), path)
    return path


def draw_sheet(runs: Sequence[tuple[str, epath.PathLike]]) -> Image.Image:
    """Image, truth and the prediction after every task; of several runs, one below the other, for every image.

    Only images that all runs have are shown, or, if there are none, those of any run.

    Raises:
        InputError: a run has no pictures.
    """
    roots = [(label, epath.Path(workdir) / "pictures") for label, workdir in runs]
    stems = [_stems(root) for _, root in roots]
    for (_, root), found in zip(roots, stems, strict=True):
        if not found:
            raise InputError(
                f"{root}: no predictions are stored here; evaluate.pictures says how many images a run stores"
            )
    shared = [stem for stem in stems[0] if all(stem in found for found in stems)]
    rows = shared or list(dict.fromkeys(stem for found in stems for stem in found))
    tasks = sorted({task for _, root in roots for task in _tasks(root)})
    labelled = any(label for label, _ in roots)
    font, small = _font(TEXT), _font(TEXT - 3)
    names: dict[str, str] = {}
    for _, root in roots:
        for label, name in _classes(root).items():
            # Runs of different class orders give one number several classes.
            names[label] = name if names.get(label, name) == name else f"{names[label]} / {name}"

    left = GAP + (max(_width(font, label) for label, _ in roots) + GAP if labelled else 0)
    headers = ["image", "truth", *(f"after task {task}" for task in tasks)]
    canvas = _Canvas(left + len(headers) * (CELL + GAP), GAP)
    canvas.grow(TEXT + GAP)
    for column, header in enumerate(headers):
        canvas.text((left + column * (CELL + GAP), GAP), header, font)
    used: set[int] = set()
    for stem in rows:
        image = next(path for _, root in roots if (path := root / "image" / f"{stem}.png").exists())
        source = _open(image).convert("RGB")
        size = _fit(source.size)
        tops = [canvas.grow(size[1] + GAP) for _ in roots]
        canvas.paste(source.resize(size, Image.Resampling.LANCZOS), (left, tops[0]))
        canvas.paste(_labels(_truth(roots, stem), size, small, used), (left + CELL + GAP, tops[0]))
        for (label, root), top in zip(roots, tops, strict=True):
            if labelled:
                canvas.text((GAP, top + size[1] // 2 - TEXT // 2), label, font)
            for column, task in enumerate(tasks, start=2):
                prediction = _task_directory(root, task) / f"{stem}.prediction.png"
                canvas.paste(_labels(prediction, size, small, used), (left + column * (CELL + GAP), top))
        canvas.text((left, tops[0] + size[1] + GAP // 2), stem, small)
        canvas.grow(TEXT + GAP if len(roots) == 1 else GAP)
    _legend(canvas, left, sorted(used), names, font, small)
    return canvas.picture()


class _Canvas:
    """A picture of known width that grows downwards."""

    def __init__(self, width: int, margin: int) -> None:
        self.width, self._bottom = width, margin
        self._picture = Image.new("RGB", (width, 64), PAPER)

    def grow(self, height: int) -> int:
        """Adds this height and returns where it starts."""
        top, self._bottom = self._bottom, self._bottom + height
        if self._bottom > self._picture.height:
            larger = Image.new("RGB", (self.width, 2 * self._bottom), PAPER)
            larger.paste(self._picture)
            self._picture = larger
        return top

    def text(self, place: tuple[int, int], text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> None:
        ImageDraw.Draw(self._picture).text(place, text, fill=INK, font=font)

    def paste(self, picture: Image.Image, place: tuple[int, int]) -> None:
        self._picture.paste(picture, place)

    def picture(self) -> Image.Image:
        return self._picture.crop((0, 0, self.width, self._bottom + GAP))


def _legend(
    canvas: _Canvas,
    left: int,
    used: Sequence[int],
    names: Mapping[str, str],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    small: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    entries = [(label, "void (not scored)" if label == VOID else names.get(str(label), "?")) for label in used]
    swatch = 2 * TEXT
    widest = max((_width(font, name) for _, name in entries), default=0) + swatch + 3 * GAP
    columns = max(1, (canvas.width - left) // widest)
    top = 0
    for index, (label, name) in enumerate(entries):
        if index % columns == 0:
            top = canvas.grow(TEXT + GAP)
        x = left + (index % columns) * widest
        tile = Image.new("RGB", (swatch, TEXT + 3), tuple(int(value) for value in palette()[label]))
        draw = ImageDraw.Draw(tile)
        draw.rectangle((0, 0, swatch - 1, TEXT + 2), outline=INK)
        if label != VOID:
            _number(draw, (swatch // 2, (TEXT + 3) // 2), label, small)
        canvas.paste(tile, (x, top))
        canvas.text((x + swatch + GAP, top), name, font)


def _labels(
    path: epath.Path | None, size: tuple[int, int], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, used: set[int]
) -> Image.Image:
    """A label picture in colour with the number of every large region; a grey cell where there is none."""
    if path is None or not path.exists():
        cell = Image.new("RGB", size, EMPTY)
        ImageDraw.Draw(cell).text((size[0] // 2, size[1] // 2), "not evaluated", fill=INK, font=font, anchor="mm")
        return cell
    labels = np.asarray(_open(path).resize(size, Image.Resampling.NEAREST))
    cell = Image.fromarray(palette()[labels])
    draw = ImageDraw.Draw(cell)
    for label in np.unique(labels).tolist():
        used.add(label)
        inside = labels == label
        if label not in (0, VOID) and inside.mean() >= SMALLEST_NUMBERED_REGION:
            _number(draw, _middle(inside), label, font)
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=(160, 160, 160))
    return cell


def _middle(inside: np.ndarray) -> tuple[int, int]:
    """(x, y) well inside a region: the last pixels left when it is eroded again and again."""
    kept = inside
    while True:
        padded = np.pad(kept, 1)
        smaller = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        if not smaller.any():
            break
        kept = smaller
    ys, xs = np.nonzero(kept)
    return int(xs[len(xs) // 2]), int(ys[len(ys) // 2])


def _number(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], label: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    draw.text(place, str(label), fill=(255, 255, 255), font=font, anchor="mm", stroke_width=2, stroke_fill=(0, 0, 0))


def _truth(roots: Sequence[tuple[str, epath.Path]], stem: str) -> epath.Path | None:
    paths = [(task, _task_directory(root, task) / f"{stem}.truth.png") for _, root in roots for task in _tasks(root)]
    found = [(task, path) for task, path in paths if path.exists()]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _task_directory(root: epath.Path, task: int) -> epath.Path:
    return root / f"task-{task:02d}"


def _tasks(root: epath.Path) -> list[int]:
    matches = [re.fullmatch(r"task-(\d+)", path.name) for path in root.iterdir()] if root.exists() else []
    return sorted(int(match.group(1)) for match in matches if match)


def _stems(root: epath.Path) -> list[str]:
    folder = root / "image"
    return sorted(path.name.removesuffix(".png") for path in folder.iterdir()) if folder.exists() else []


def _stem(name: str) -> str:
    """A file name of an image's name; names that differ only in what a file name cannot hold stay different."""
    safe = re.sub(r"[^\w.-]+", "_", name)
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _classes(root: epath.Path) -> dict[str, str]:
    path = root / "classes.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _fit(size: tuple[int, int]) -> tuple[int, int]:
    scale = CELL / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    return round(font.getlength(text))


def _open(path: epath.Path) -> Image.Image:
    with path.open("rb") as file:
        picture = Image.open(file)
        picture.load()
    return picture


def save(picture: Image.Image, path: epath.Path) -> None:
    """Writes a PNG file, or a JPEG file where the name ends in .jpg; InputError where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            picture.save(
                file, "JPEG" if path.suffix == ".jpg" else "PNG", **({"quality": 92} if path.suffix == ".jpg" else {})
            )
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
