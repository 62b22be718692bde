"""Grids of pictures in one style: triplets, what was retrieved, where the query tokens look.

Each function takes image paths and returns a matplotlib Figure. A file that cannot be read is a grey tile.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cirlib.figures import style
from cirlib.study.pictures import open_rgb

TILE, EDIT, GAP, BETWEEN = 1.5, 2.3, 0.4, 0.12  # inches: height of a picture, widths of an edit and of the gaps
TITLE, UNDER = 0.34, 0.3  # inches: a row's title, and the room under a row
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


@dataclass(frozen=True)
class _Tile:
    """A picture under its column's name: framed in green, or in grey under a map."""

    path: Path
    head: str
    framed: bool = False
    heat: NDArray[np.floating] | None = None
    caption: str = ""


_Cells = list[_Tile | str | None]  # pictures, edits and gaps from left to right


@style.themed
def triplet_grid(
    rows: Sequence[tuple[Path, str, Path]],
    columns: int = 2,
    *,
    title: str = "What is asked: this image, changed like that",
) -> Figure:
    """Triplets (reference, edit text, target): the reference, an arrow with the edit over it, the target.

    `columns` triplets stand side by side.

    >>> image = write_image(folder / "a.png")
    >>> figure = triplet_grid([(image, "is red", image)])
    """
    lines: list[_Cells] = [[] for _ in range(-(-len(rows) // columns))]
    for number, (reference, text, target) in enumerate(rows):
        line = lines[number // columns]
        line += [None] * bool(line) + [_Tile(reference, "reference"), text, _Tile(target, "target")]
    return _draw(lines, title)


@style.themed
def retrieval_grid(rows: Sequence[RetrievalRow], *, title: str = "What was asked, and what was found") -> Figure:
    """A query a row: reference, edit, the best results (a target framed in green), a gap, the target and its rank.

    Raises ValueError where `correct` does not say one thing a result.

    >>> image = write_image(folder / "a.png")
    >>> figure = retrieval_grid([RetrievalRow(image, "is red", [image], [True], image, rank=1)])
    """
    lines: list[_Cells] = []
    for row in rows:
        found = enumerate(zip(row.results, row.correct, strict=True), start=1)
        results = [_Tile(path, f"{place}", framed=correct) for place, (path, correct) in found]
        target = _Tile(row.target, "target", caption=f"target: rank {row.rank:,}")
        lines.append([_Tile(row.reference, "reference"), row.text, *results, None, target])
    return _draw(lines, title, [row.title or "" for row in rows])


@style.themed
def attention_grid(rows: Sequence[AttentionRow], *, title: str = "Where the query tokens look") -> Figure:
    """A query a row: reference, edit, the maps over the reference, a gap, the target and the maps over it.

    The brighter a place, the more attention it gets; each map is scaled to its own maximum. All rows have maps of the
    same names.

    >>> image, heat = write_image(folder / "a.png"), {"all tokens": np.eye(4)}
    >>> figure = attention_grid([AttentionRow(image, "is red", image, heat, heat, title="found, rank 1")])
    """
    lines: list[_Cells] = []
    for row in rows:
        before = [_Tile(row.reference, name, heat=heat) for name, heat in row.on_reference.items()]
        after = [_Tile(row.target, name, heat=heat) for name, heat in row.on_target.items()]
        lines.append([_Tile(row.reference, "reference"), row.text, *before, None, _Tile(row.target, "target"), *after])
    return _draw(lines, title, [row.title for row in rows])


def heated(image: Image.Image, heat: NDArray[np.floating]) -> Image.Image:
    """The image in grey with ``heat`` (S, S) over it, from nothing to bright yellow.

    >>> heated(Image.new("RGB", (40, 30)), np.eye(4)).size
    (40, 30)
    """
    level = Image.fromarray((heat / max(heat.max(), 1e-12)).astype(np.float32))
    strength = np.clip(np.asarray(level.resize(image.size, Image.Resampling.BICUBIC)), 0, 1)  # (H, W)
    cover = 0.75 * strength[..., None]
    grey = np.asarray(image.convert("L").convert("RGB"), float)
    glow = 255 * mpl.colormaps["inferno"](strength)[..., :3]
    return Image.fromarray(((1 - cover) * 0.75 * grey + cover * glow).round().astype(np.uint8))


def _draw(rows: Sequence[_Cells], title: str, titles: Sequence[str] = ()) -> Figure:
    """The rows one below the other, each under its title; the names of the columns are over the first."""
    if not rows:
        raise style.FigureError("a grid of pictures needs at least one row")
    wide = {_Tile: _tile_width([cell.path for row in rows for cell in row if isinstance(cell, _Tile)]), str: EDIT}
    widths = [max(wide.get(type(cell), GAP) for cell in column) for column in zip_longest(*rows)]
    lefts = np.cumsum([0.0, *(each + BETWEEN for each in widths)])
    above = TITLE if any(titles) else 0.0
    size = (lefts[-1] - BETWEEN, len(rows) * (above + TILE + UNDER))
    figure = style.new_figure(size, title + "\n")
    for number, (row, name) in enumerate(zip_longest(rows, titles, fillvalue="")):
        top = number * (above + TILE + UNDER)
        figure.text(0, 1 - (top + above / 2) / size[1], name, size=12.5, weight="bold", va="center", parse_math=False)
        for left, each, cell in zip(lefts, widths, row, strict=False):
            if cell is None:
                continue
            box = (left / size[0], 1 - (top + above + TILE) / size[1], each / size[0], TILE / size[1])
            axes = figure.add_axes(box, label=cell.head if isinstance(cell, _Tile) else "edit")
            _picture(axes, cell, each) if isinstance(cell, _Tile) else _edit(axes, cell)
            if number == 0:
                head = {"size": 11, "color": style.MUTED, "ha": "center", "va": "bottom"}
                figure.text((left + each / 2) / size[0], 1 + 0.05 / size[1], axes.get_label(), **head)
    return figure


def _open(path: Path) -> Image.Image | None:
    """The picture; None where it is missing or cannot be read."""
    try:
        return open_rgb(path)
    except (OSError, ValueError):
        return None


def _tile_width(paths: Sequence[Path]) -> float:
    """Width in inches of every tile: the shape most images have, within reason."""
    shapes = [image.width / image.height for path in paths if (image := _open(path)) is not None]
    return TILE * float(np.clip(np.median(shapes), 0.66, 1.4)) if shapes else TILE


def _picture(axes: Axes, tile: _Tile, width: float) -> None:
    """One letterboxed image in a thin grey frame, or a thick green one; greyed under a map where there is one."""
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, -0.05, tile.caption, transform=axes.transAxes, size=11, ha="center", va="top")
    image = _open(tile.path)
    if image is None:
        axes.set_facecolor(style.PAPER)
        axes.text(0.5, 0.5, "image\nmissing", transform=axes.transAxes, ha="center", va="center", color=style.MUTED)
    else:
        shown = image if tile.heat is None else heated(image, np.asarray(tile.heat, float))
        pixels = (round(2 * style.DPI * width), round(2 * style.DPI * TILE))
        boxed = ImageOps.pad(shown, pixels, method=Image.Resampling.LANCZOS, color=style.PAPER)
        axes.imshow(np.asarray(boxed), aspect="auto", interpolation="antialiased")
    frame = {"color": style.GREEN, "linewidth": 5} if tile.framed else {"color": style.FAINT, "linewidth": 0.8}
    axes.spines[:].set(visible=True, **frame)


def _edit(axes: Axes, text: str) -> None:
    """The edit text, wrapped, in the largest type that fits, over an arrow that points right."""
    axes.set(xlim=(0, EDIT), ylim=(TILE, 0))  # inches, downwards
    axes.axis("off")
    text = " ".join(text.split())
    for points in (12.0, 11.0, 10.0, 9.0):
        columns, most = int((EDIT - 0.36) * 72 / (0.53 * points)), int((TILE - 0.22) * 72 / (LINE * points))
        if len(textwrap.wrap(text, columns)) <= most:
            break
    lines = textwrap.wrap(text, columns, max_lines=most, placeholder=" …")
    block = len(lines) * LINE * points / 72
    top = (TILE - block - 0.2) / 2
    look: dict[str, Any] = {"size": points, "ha": "center", "va": "top", "linespacing": 1.2, "parse_math": False}
    axes.text(EDIT / 2, top, "\n".join(lines), **look)
    arrow = {"arrowstyle": "-|>,head_width=0.25,head_length=0.5", "color": style.MUTED, "linewidth": 1.6}
    start, end = ((x, top + block + 0.14) for x in (0.12, EDIT - 0.12))
    axes.annotate("", xy=end, xytext=start, arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})
