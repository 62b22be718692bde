"""Dyes and patterns. A pattern fills the whole canvas; the garment's outline cuts it later."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from cirlib.benchmarks.garments.attributes import PALETTE, Garment
from cirlib.benchmarks.garments.shapes import Cut, Points
from cirlib.benchmarks.garments.sheet import Colour, Sheet, jitter, mix

Line = NDArray[np.float64]  # (n,)


def _dark(colour: Colour, share: float = 0.35) -> Colour:
    """A seam's colour on this cloth: darker, or lighter where the cloth is nearly black."""
    return mix(colour, (0, 0, 0), share) if sum(colour) > 190 else mix(colour, (255, 255, 255), share * 0.55)


@dataclass(frozen=True)
class Dye:
    """The colours one picture uses: the cloth, the second colour, seams and the outline."""

    main: Colour
    second: Colour
    seam: Colour
    outline: Colour


def mix_dye(garment: Garment, rng: np.random.Generator) -> Dye:
    """This picture's shades of the garment's two colours.

    >>> len(mix_dye(garment, np.random.default_rng(0)).main)
    3
    """
    main = jitter(rng, PALETTE[garment.colour])
    second = jitter(rng, PALETTE[garment.second_colour or garment.colour])
    return Dye(main, second, _dark(main), mix(main, (20, 18, 26), 0.72))


def band(y0: float, y1: float, x0: float = -1.7, x1: float = 1.7) -> Points:
    """A rectangle between two heights.

    >>> band(0, 1).shape
    (4, 2)
    """
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def weave(garment: Garment, cut: Cut, dye: Dye, sheet: Sheet, rng: np.random.Generator) -> Image.Image:
    """A canvas of this garment's fabric, patterned wherever the garment may be.

    >>> from cirlib.benchmarks.garments.drawing import cut_garment, lay_out
    >>> cut, rng = cut_garment(garment, 1.0), np.random.default_rng(0)
    >>> weave(garment, cut, mix_dye(garment, rng), lay_out(cut, rng, 64), rng).size
    (64, 64)
    """
    image = Image.new("RGB", (sheet.side, sheet.side), dye.main)
    grain, phase = rng.uniform(0.88, 1.14), rng.uniform(0, 1)
    kind, grid = garment.pattern, partial(_rows_and_columns, cut.extent, phase=phase)
    if kind == "color block":
        edge = cut.length * rng.uniform(0.54, 0.6)
        sheet.polygon(ImageDraw.Draw(image), band(edge, 3.5, -1.2, 1.2), dye.second)
    elif kind in ("horizontal stripes", "vertical stripes"):
        _stripes(image, dye, sheet, *grid(0.17 * grain), upright=kind == "vertical stripes")
    elif kind == "checks":
        _checks(image, dye, sheet, *grid(0.2 * grain))
    elif kind == "zigzag":
        _zigzag(image, dye, sheet, *grid(0.2 * grain))
    elif kind == "polka dots":
        places = _lattice(sheet, *grid(0.23 * grain))
        _scatter(image, dye.second, _dot_stamp(0.06 * grain * sheet.scale), places)
    elif kind == "floral":
        _floral(image, dye, sheet, rng, _lattice(sheet, *grid(0.27 * grain)))
    return image


def _rows_and_columns(extent: tuple[float, float], period: float, phase: float) -> tuple[Line, Line]:
    """Heights and sideways positions, `period` apart, that cover the garment."""
    reach, bottom = extent
    start = (phase - 1) * period
    return np.arange(start - 0.1, bottom + 0.1, period), np.arange(start - reach, reach, period)


def _stripes(image: Image.Image, dye: Dye, sheet: Sheet, rows: Line, columns: Line, *, upright: bool) -> None:
    draw, starts = ImageDraw.Draw(image), columns if upright else rows
    width = 0.4 * (starts[1] - starts[0])
    for start in starts:
        stripe = band(start, start + width, -2.8, 2.8)
        sheet.polygon(draw, stripe[:, ::-1] if upright else stripe, dye.second)


def _checks(image: Image.Image, dye: Dye, sheet: Sheet, rows: Line, columns: Line) -> None:
    """Stripes both ways, half see-through: the second colour is full only where they cross."""
    width = 0.42 * (rows[1] - rows[0])
    across, down = Image.new("L", image.size), Image.new("L", image.size)
    for y in rows:
        sheet.polygon(ImageDraw.Draw(across), band(y, y + width), 255)
    for x in columns:
        sheet.polygon(ImageDraw.Draw(down), band(-0.5, 2.8, x, x + width), 255)
    image.paste(mix(dye.main, dye.second, 0.55), mask=ImageChops.lighter(across, down))
    image.paste(dye.second, mask=ImageChops.darker(across, down))


def _zigzag(image: Image.Image, dye: Dye, sheet: Sheet, rows: Line, columns: Line) -> None:
    draw, height = ImageDraw.Draw(image), 0.38 * (rows[1] - rows[0])
    x = np.arange(columns[0] - 0.1, columns[-1] + 0.3, 0.1)
    teeth = np.where(np.arange(len(x)) % 2, 0.07, 0.0)
    for start in rows:
        upper = np.stack([x, start + teeth], axis=1)
        lower = upper[::-1] + np.array((0, height))
        sheet.polygon(draw, np.concatenate([upper, lower]), dye.second)


def _lattice(sheet: Sheet, rows: Line, columns: Line) -> Points:
    """Staggered positions all over the garment, in pixels, only those on the canvas."""
    period = columns[1] - columns[0]
    rows = rows[0] + 0.75 * period * np.arange(len(rows) * 4 // 3 + 1)
    x = columns[None, :] + np.where(np.arange(len(rows)) % 2, period / 2, 0)[:, None]
    places = sheet.pixels(np.stack([x.ravel(), np.repeat(rows, len(columns))], axis=1))
    return places[((places > 0) & (places < sheet.side)).all(axis=1)]


def _dot_stamp(radius: float) -> Image.Image:
    side = 2 * round(radius) + 3
    stamp = Image.new("L", (side, side))
    ImageDraw.Draw(stamp).ellipse((1, 1, side - 2, side - 2), fill=255)
    return stamp


def _petal_stamp(radius: float, turn: float) -> Image.Image:
    """A five-petalled flower with its middle left open."""
    side = 2 * round(radius) + 3
    stamp = Image.new("L", (side, side))
    draw, middle = ImageDraw.Draw(stamp), side / 2
    for angle in turn + np.arange(5) * 2 * np.pi / 5:
        x, y, r = middle + 0.58 * radius * np.cos(angle), middle + 0.58 * radius * np.sin(angle), 0.4 * radius
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return stamp


def _scatter(image: Image.Image, colour: Colour, stamp: Image.Image, places: Iterable[Points]) -> None:
    half = stamp.width // 2
    for x, y in places:
        image.paste(colour, (round(x) - half, round(y) - half), stamp)


def _floral(image: Image.Image, dye: Dye, sheet: Sheet, rng: np.random.Generator, places: Points) -> None:
    """Flowers in two sizes with a centre and small leaves between them."""
    places = places + rng.uniform(-0.035, 0.035, places.shape) * sheet.scale
    large = 0.115 * sheet.scale
    leaf = mix(mix(dye.main, dye.second, 0.5), (70, 130, 70), 0.35)
    _scatter(image, leaf, _dot_stamp(0.022 * sheet.scale), places + np.array((0.13, 0.03)) * sheet.scale)
    for group, size in ((places[::2], large), (places[1::2], large * 0.74)):
        _scatter(image, dye.second, _petal_stamp(size, rng.uniform(0, 2)), group)
        _scatter(image, dye.main, _dot_stamp(size * 0.22), group)
