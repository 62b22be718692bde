"""From garment units to the pixels of a canvas, and colours on it."""

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from cirlib.benchmarks.garments.shapes import Cut, Points

Colour = tuple[int, ...]
METAL: Colour = (176, 178, 184)


@dataclass(frozen=True)
class Sheet:
    """Carries garment units to the pixels of a square canvas: turned, scaled and shifted."""

    side: int
    scale: float
    turn: NDArray[np.float64]  # (2, 2), a row vector in garment units times this is in pixels
    shift: NDArray[np.float64]  # where the garment's origin goes, pixels
    middle: float  # the garment's middle height, garment units

    def pixels(self, points: Points) -> Points:
        """Points in garment units to pixels, (n, 2) to (n, 2)."""
        return points @ self.turn + self.shift

    def grid(self, cells: int) -> tuple[Points, Points]:
        """Garment coordinates x and y at the centres of cells by cells patches of the canvas."""
        ticks = (np.arange(cells) + 0.5) * self.side / cells - self.shift[:, None]
        back = np.linalg.inv(self.turn)
        across, down = ticks[0][None, :], ticks[1][:, None]
        return across * back[0, 0] + down * back[1, 0], across * back[0, 1] + down * back[1, 1]

    def polygon(self, draw: ImageDraw.ImageDraw, points: Points, fill: Colour | int) -> None:
        """The area within the points."""
        draw.polygon(self.pixels(points).ravel().tolist(), fill=fill)

    def line(self, draw: ImageDraw.ImageDraw, points: Points, fill: Colour, width: float) -> None:
        """A line `width` garment units thick, at least two pixels."""
        flat, thick = self.pixels(points).ravel().tolist(), max(2, round(width * self.scale))
        draw.line(flat, fill=fill, width=thick, joint="curve" if thick > 4 else None)

    def disc(self, draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, fill: Colour | int) -> None:
        """A circle and what is in it."""
        x, y = self.pixels(np.array([centre]))[0]
        reach = radius * self.scale
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=fill)


def lay_out(cut: Cut, rng: np.random.Generator, side: int) -> Sheet:
    """Where on a canvas of `side` pixels the garment lies, and how it is turned.

    >>> from cirlib.benchmarks.garments.shapes import cut_garment
    >>> lay_out(cut_garment(garment, 1.0), np.random.default_rng(0), 64).side
    64
    """
    angle = np.deg2rad(rng.uniform(-15, 15))
    scale = rng.uniform(0.76, 0.93) * side / max(cut.length + cut.trim + 0.16, 2 * cut.extent[0] + 0.05, 1.3)
    turn = scale * np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    middle = (cut.length + cut.trim) / 2
    centre = side * (0.5 + rng.uniform(-0.055, 0.055, 2))
    return Sheet(side, float(scale), turn, centre - (0, middle) @ turn, middle)


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`share` of the second colour in the first; a negative share moves away from it.

    >>> mix((0, 0, 0), (100, 100, 100), 0.5)
    (50, 50, 50)
    """
    return tuple(min(255, round(a + (b - a) * share)) for a, b in zip(first, second, strict=True))


def jitter(rng: np.random.Generator, colour: Colour) -> Colour:
    """The same named colour from another dye lot: hue, saturation and value move a little.

    >>> len(jitter(np.random.default_rng(0), (200, 30, 40)))
    3
    """
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    shift = rng.uniform(-1, 1, 3)
    moved = (hue + 0.018 * shift[0]) % 1, saturation * (1 + 0.1 * shift[1]), value * (1 + 0.07 * shift[2])
    return tuple(round(255 * min(1, c)) for c in colorsys.hsv_to_rgb(moved[0], min(1, moved[1]), min(1, moved[2])))
