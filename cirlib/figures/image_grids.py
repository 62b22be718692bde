"""Sheets of pictures in one style: triplets, what was retrieved, where the query tokens look.

As in :mod:`cirlib.figures.plots` each function takes image paths and returns a matplotlib Figure.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cirlib.figures.plots import DPI, FAINT, GREEN, MUTED, PAPER, new_figure, themed
from cirlib.study.pictures import open_rgb

TILE = 1.5  # height of an image in inches
LINE = 1.25  # height of a line of edit text, in its type size


@dataclass(frozen=True)
class RetrievalRow:
    """One query and what was found: best `results` first, `correct` where a result is a target."""

    reference: Path
    text: str
    results: Sequence[Path]
    correct: Sequence[bool]
    target: Path
    rank: int  # of the target, from 1
    title: str | None = None


@dataclass(frozen=True)
class AttentionRow:
    """A query's reference and target, and maps (S, S) of where tokens look on each: name → map."""

    reference: Path
    text: str
    target: Path
    on_reference: Mapping[str, NDArray[np.floating]]
    on_target: Mapping[str, NDArray[np.floating]]
    title: str


@themed
def triplet_grid(
    rows: Sequence[tuple[Path, str, Path]],
    columns: int = 2,
    *,
    title: str = "What is asked: this image, changed like that",
) -> Figure:
    """Triplets (reference, edit text, target): the reference, an arrow with the edit over it, the target.

    `columns` triplets stand side by side. Raises ValueError without rows.
    """
    if not rows or columns < 1:
        raise ValueError(f"triplet_grid needs rows and columns, got {len(rows)} rows and columns={columns}")
    columns = min(columns, len(rows))
    tile = _tile_size([path for reference, _, target in rows for path in (reference, target)])
    edit, gap, between = 2.3, 0.6, 0.3
    points = _points([text for _, text, _ in rows], (edit, tile[1]))
    cell = 2 * tile[0] + edit
    lines = -(-len(rows) // columns)
    top = 0.85  # title and column heads
    size = (columns * (cell + gap) - gap, top + lines * (tile[1] + between) - between)
    figure = new_figure(*size, title)
    for number, (reference, text, target) in enumerate(rows):
        left, line = (number % columns) * (cell + gap), number // columns
        y = top + line * (tile[1] + between)
        if line == 0:
            _heads(figure, y, [(left, tile[0], "reference"), (left + tile[0] + edit, tile[0], "target")])
        _tile(figure, reference, (left, y), tile, "reference")
        _edit(figure, text, (left + tile[0], y), (edit, tile[1]), points)
        _tile(figure, target, (left + tile[0] + edit, y), tile, "target")
    return figure


@themed
def retrieval_grid(rows: Sequence[RetrievalRow], *, title: str = "What was asked, and what was found") -> Figure:
    """A query a row: reference, edit, the best results (a target framed in green), a gap, the target.

    Raises ValueError without rows, or where `correct` does not say one thing a result.
    """
    _check_rows(rows)
    width, height = tile = _tile_size([p for row in rows for p in (row.reference, *row.results, row.target)])
    shown = max(len(row.results) for row in rows)
    edit, between, gap, under, above = 2.3, 0.12, 0.5, 0.38, 0.3
    points = _points([row.text for row in rows], (edit, height))
    results = [width + edit + i * (width + between) for i in range(shown)]
    target = results[-1] + width + gap
    y = top = 0.85
    total = top + sum(height + under + (above if row.title else 0) for row in rows)
    figure = new_figure(target + width, total, title)
    heads = [(0.0, width, "reference"), (width, edit, "edit"), (target, width, "target")]
    _heads(figure, top, heads + [(left, width, f"{i}") for i, left in enumerate(results, start=1)])
    for row in rows:
        if row.title:
            _text(figure, (0, y + above / 2), row.title, size=12.5, weight="bold", va="center")
            y += above
        _tile(figure, row.reference, (0, y), tile, "reference")
        _edit(figure, row.text, (width, y), (edit, height), points)
        for i, (path, correct) in enumerate(zip(row.results, row.correct, strict=True)):
            _tile(figure, path, (results[i], y), tile, f"result {i + 1}", framed=correct)
        _tile(figure, row.target, (target, y), tile, "target")
        rank = f"target: rank {row.rank:,}"
        _text(figure, (target + width / 2, y + height + 0.07), rank, size=11, ha="center", va="top")
        y += height + under
    return figure


@themed
def attention_grid(rows: Sequence[AttentionRow], *, title: str = "Where the query tokens look") -> Figure:
    """A query a row: reference, edit, the maps over the reference, a gap, the target and the maps over it.

    The brighter a place, the more attention it gets; each map is scaled to its own maximum. Raises ValueError without
    rows, or where the rows have maps of other names.
    """
    names = [(tuple(row.on_reference), tuple(row.on_target)) for row in rows]
    if len(set(names)) != 1:
        raise ValueError(f"attention_grid needs rows with the same maps, got {sorted(set(names))}")
    width, height = tile = _tile_size([path for row in rows for path in (row.reference, row.target)])
    edit, between, gap, above, top = 2.3, 0.12, 0.5, 0.34, 0.85
    points = _points([row.text for row in rows], (edit, height))
    before = [width + edit + number * (width + between) for number in range(len(names[0][0]))]
    target = before[-1] + width + gap
    after = [target + (1 + number) * (width + between) for number in range(len(names[0][1]))]
    figure = new_figure(after[-1] + width, top + len(rows) * (height + above + 0.08), title)
    heads = [(0.0, width, "reference"), (width, edit, "edit"), (target, width, "target")]
    _heads(figure, top, heads + [(x, width, n) for x, n in zip(before + after, sum(names[0], ()), strict=True)])
    for number, row in enumerate(rows):
        y = top + number * (height + above + 0.08)
        _text(figure, (0, y + above / 2), row.title, size=12.5, weight="bold", va="center")
        y += above
        _tile(figure, row.reference, (0, y), tile, "reference")
        _edit(figure, row.text, (width, y), (edit, height), points)
        _tile(figure, row.target, (target, y), tile, "target")
        for places, path, maps in ((before, row.reference, row.on_reference), (after, row.target, row.on_target)):
            for x, (name, heat) in zip(places, maps.items(), strict=True):
                _tile(figure, path, (x, y), tile, name, heat=np.asarray(heat, float))
    return figure


def _check_rows(rows: Sequence[RetrievalRow]) -> None:
    if not rows:
        raise ValueError("retrieval_grid needs rows")
    for row in rows:
        if not row.results or len(row.results) != len(row.correct):
            given = f"{len(row.results)} results and {len(row.correct)} in correct"
            raise ValueError(f"retrieval_grid needs results and one value of correct for each, got {given}")


def _tile_size(paths: Sequence[Path]) -> tuple[float, float]:
    """Width and height in inches of every tile: the shape most images have, within reason."""
    shapes = []
    for path in paths:
        image = _open(path)
        if image is not None:
            shapes.append(image.width / image.height)
    shape = float(np.clip(np.median(shapes), 0.66, 1.4)) if shapes else 1.0
    return TILE * shape, TILE


def _open(path: Path) -> Image.Image | None:
    """The image, upright and on white; None where it is missing or cannot be read."""
    try:
        return open_rgb(path)
    except (OSError, ValueError):
        return None


def _axes_at(figure: Figure, corner: tuple[float, float], size: tuple[float, float]) -> Axes:
    """Axes whose left top corner lies there, in inches from the figure's left top corner."""
    width, height = figure.get_size_inches()
    left, top = corner
    return figure.add_axes((left / width, 1 - (top + size[1]) / height, size[0] / width, size[1] / height))


def _text(figure: Figure, place: tuple[float, float], text: str, **options: Any) -> None:
    """Text at a place in inches from the left top; dollar signs are dollar signs."""
    width, height = figure.get_size_inches()
    figure.text(place[0] / width, 1 - place[1] / height, text, parse_math=False, **options)


def _heads(figure: Figure, y: float, heads: Sequence[tuple[float, float, str]]) -> None:
    """Column heads (left, width, text) that end just above y."""
    for left, width, text in heads:
        place = (left + width / 2, y - 0.08)
        _text(figure, place, text, size=11, color=MUTED, ha="center", va="bottom")


def _tile(
    figure: Figure,
    path: Path,
    corner: tuple[float, float],
    size: tuple[float, float],
    label: str,
    *,
    framed: bool = False,
    heat: NDArray[np.float64] | None = None,
) -> None:
    """One letterboxed image in a thin grey frame, or a thick green one; greyed under a map where there is one."""
    axes = _axes_at(figure, corner, size)
    axes.set_label(label)
    axes.set(xticks=[], yticks=[])
    image = _open(path)
    if image is None:
        axes.set_facecolor(PAPER)
        axes.text(0.5, 0.5, "image\nmissing", transform=axes.transAxes, ha="center", va="center", color=MUTED)
    else:
        pixels = (round(2 * DPI * size[0]), round(2 * DPI * size[1]))
        shown = image if heat is None else heated(image, heat)
        boxed = ImageOps.pad(shown, pixels, method=Image.Resampling.LANCZOS, color=PAPER)
        axes.imshow(np.asarray(boxed), aspect="auto", interpolation="antialiased")
    axes.spines[:].set(visible=True, color=GREEN if framed else FAINT, linewidth=5 if framed else 0.8)


def heated(image: Image.Image, heat: NDArray[np.float64]) -> Image.Image:
    """The image in grey with ``heat`` (S, S) over it, from nothing to bright yellow."""
    level = Image.fromarray((heat / max(heat.max(), 1e-12)).astype(np.float32))
    strength = np.clip(np.asarray(level.resize(image.size, Image.Resampling.BICUBIC)), 0, 1)  # (H, W)
    cover = 0.75 * strength[..., None]
    grey = np.asarray(image.convert("L").convert("RGB"), float)
    glow = 255 * mpl.colormaps["inferno"](strength)[..., :3]
    return Image.fromarray(((1 - cover) * 0.75 * grey + cover * glow).round().astype(np.uint8))


def _edit(figure: Figure, text: str, corner: tuple[float, float], size: tuple[float, float], points: float) -> None:
    """The edit text, wrapped, over an arrow that points right."""
    axes = _axes_at(figure, corner, size)
    axes.set_label("edit")
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))  # inches, downwards
    axes.axis("off")
    columns, most = _room(size, points)
    lines = textwrap.wrap(" ".join(text.split()), columns, max_lines=most, placeholder=" …")
    block = len(lines) * LINE * points / 72
    top = (size[1] - block - 0.2) / 2
    style = {"size": points, "ha": "center", "va": "top", "linespacing": 1.2, "parse_math": False}
    axes.text(size[0] / 2, top, "\n".join(lines), **style)
    arrow = {"arrowstyle": "-|>,head_width=0.25,head_length=0.5", "color": MUTED, "linewidth": 1.6}
    start, end = ((x, top + block + 0.14) for x in (0.12, size[0] - 0.12))
    axes.annotate("", xy=end, xytext=start, arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})


def _points(texts: Sequence[str], size: tuple[float, float]) -> float:
    """The largest type at which every edit text fits its place (inches); the smallest where none does."""
    for points in (12.0, 11.0, 10.0, 9.0):
        columns, most = _room(size, points)
        if all(len(textwrap.wrap(" ".join(text.split()), columns)) <= most for text in texts):
            break
    return points


def _room(size: tuple[float, float], points: float) -> tuple[int, int]:
    """How many characters a line and how many lines fit beside the arrow's ends and above the arrow."""
    width, height = size[0] - 0.36, size[1] - 0.22
    return max(8, int(width * 72 / (0.53 * points))), max(1, int(height * 72 / (LINE * points)))
