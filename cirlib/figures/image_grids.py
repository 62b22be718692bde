"""Grids of pictures in one style. A file that cannot be read is a grey tile."""

import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

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
class Picture:
    """An image under its column's name: framed in green, or in grey under a map of attention, see `heated`."""

    path: Path
    head: str
    framed: bool = False
    heat: NDArray[np.floating] | None = None
    caption: str = ""


def triplet_grid(triplets: Sequence[tuple[Path, str, Path]]) -> Figure | str:
    """Triplets, two a row: the reference, an arrow with the edit over it, the target.

    >>> image = write_image(folder / "a.png")
    >>> figure = triplet_grid([(image, "is red", image)])
    """
    cells = [[Picture(before, "reference"), edit, Picture(after, "target")] for before, edit, after in triplets]
    rows = [[*left, None, *right] for left, right in zip_longest(cells[::2], cells[1::2], fillvalue=())]
    note = f"{len(cells)} triplets, drawn at random"
    return picture_grid(rows, "What is asked: this image, changed like that", note=note)


@style.themed("No picture to show.")
def picture_grid(
    rows: Sequence[Sequence[Picture | str | None]], title: str, titles: Sequence[str] = (), *, note: str = ""
) -> Figure | None:
    """Rows of pictures, edit texts and gaps (None), each under its own title; the heads of the first stand over all.

    `note` stands under the title of all.

    >>> figure = picture_grid([[Picture(write_image(folder / "a.png"), "reference"), "is red", None]], "Asked")
    """
    if not any(rows):
        return None
    pictures = [cell for row in rows for cell in row if isinstance(cell, Picture)]
    images: dict[Path, Image.Image] = {}
    for cell in pictures:
        with suppress(OSError, ValueError):  # it is missing or cannot be read
            images[cell.path] = open_rgb(cell.path)
    shapes = [images[cell.path].width / images[cell.path].height for cell in pictures if cell.path in images] or [1.0]
    wide = {Picture: TILE * float(np.clip(np.median(shapes), 0.66, 1.4)), str: EDIT}
    widths = [max(wide.get(type(cell), GAP) for cell in column) for column in zip_longest(*rows)]
    lefts = np.cumsum([0.0, *(each + BETWEEN for each in widths)])
    above = TITLE if any(titles) else 0.0
    size = (lefts[-1] - BETWEEN, len(rows) * (above + TILE + UNDER))
    figure = style.new_figure(size, title, note, heads=0.3)
    for number, (row, name) in enumerate(zip_longest(rows, titles, fillvalue="")):
        top = number * (above + TILE + UNDER)
        figure.text(0, 1 - (top + above / 2) / size[1], name, size=12.5, weight="bold", va="center", parse_math=False)
        for left, each, cell in zip(lefts, widths, row, strict=False):
            if cell is None:
                continue
            box = (left / size[0], 1 - (top + above + TILE) / size[1], each / size[0], TILE / size[1])
            axes = figure.add_axes(box, label=cell.head if isinstance(cell, Picture) else "edit")
            _picture(axes, cell, images.get(cell.path), each) if isinstance(cell, Picture) else _edit(axes, cell)
            if number == 0:
                head = {"size": 11, "color": style.MUTED, "ha": "center", "va": "bottom"}
                figure.text((left + each / 2) / size[0], 1 + 0.05 / size[1], axes.get_label(), **head)
    return figure


def heated(image: Image.Image, heat: NDArray[np.floating]) -> Image.Image:
    """The image in grey with ``heat`` (S, S), shares that add up to 1, over it: squares, from nothing to bright yellow.

    The brightest is the most of it, at least twice an even share: even attention is a dim glow, not a bright one.

    >>> heated(Image.new("RGB", (40, 30)), np.eye(4)).size
    (40, 30)
    """
    level = Image.fromarray((heat / max(heat.max(), 2 / heat.size)).astype(np.float32))
    strength = np.clip(np.asarray(level.resize(image.size, Image.Resampling.NEAREST)), 0, 1)  # (H, W)
    cover = 0.75 * strength[..., None]
    grey = np.asarray(image.convert("L").convert("RGB"), float)
    glow = 255 * mpl.colormaps["inferno"](strength)[..., :3]
    return Image.fromarray(((1 - cover) * 0.75 * grey + cover * glow).round().astype(np.uint8))


def _picture(axes: Axes, tile: Picture, image: Image.Image | None, width: float) -> None:
    """The image, letterboxed, in a thin grey frame or a thick green one."""
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, -0.05, tile.caption, transform=axes.transAxes, size=11, ha="center", va="top")
    if image is None:
        axes.set_facecolor(style.PAPER)
        axes.text(0.5, 0.5, "image\nmissing", transform=axes.transAxes, ha="center", va="center", color=style.MUTED)
    else:
        shown = image if tile.heat is None else heated(image, np.asarray(tile.heat, float))
        pixels = (round(style.DPI * width), round(style.DPI * TILE))
        boxed = ImageOps.pad(shown, pixels, method=Image.Resampling.LANCZOS, color=style.PAPER)
        axes.imshow(np.asarray(boxed), aspect="auto", interpolation="antialiased")
    frame = {"color": style.GREEN, "linewidth": 5} if tile.framed else {"color": style.FAINT, "linewidth": 0.8}
    axes.spines[:].set(visible=True, **frame)


def _edit(axes: Axes, text: str) -> None:
    """The edit text, wrapped, in the largest type that fits, over an arrow that points right."""
    axes.set(xlim=(0, EDIT), ylim=(TILE, 0))  # inches, downwards
    axes.axis("off")
    wide = 1 + sum(east_asian_width(letter) in "WF" for letter in text) / max(1, len(text))  # mean, of Latin letters
    for points in (12.0, 11.0, 10.0, 9.0):
        columns, most = int((EDIT - 0.36) * 72 / (0.53 * points * wide)), int((TILE - 0.22) * 72 / (LINE * points))
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
