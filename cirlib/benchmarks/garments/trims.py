"""What is sewn on the cloth: seams, neck finish, extras and graphics."""

import numpy as np
from PIL import ImageDraw

from cirlib.benchmarks.garments.attributes import Garment
from cirlib.benchmarks.garments.cloth import Dye, band
from cirlib.benchmarks.garments.shapes import CIRCLE, Cut, Points, curve, mirrored
from cirlib.benchmarks.garments.sheet import METAL, Sheet, mix


def sew_trims(
    garment: Garment, cut: Cut, dye: Dye, sheet: Sheet, draw: ImageDraw.ImageDraw, mask: ImageDraw.ImageDraw
) -> None:
    """Everything that is sewn on the cloth, drawn on it from below to above; `mask` grows by the ruffle.

    >>> from cirlib.benchmarks.garments.drawing import Image, cut_garment, lay_out, mix_dye
    >>> draw, cut, rng = ImageDraw.Draw(Image.new("RGB", (64, 64))), cut_garment(garment, 1.0), np.random.default_rng(0)
    >>> sew_trims(garment, cut, mix_dye(garment, rng), lay_out(cut, rng, 64), draw, draw)
    """
    if garment.extra == "ruffle":
        _sew_ruffle(cut, dye, sheet, draw, mask)
    _sew_seams(garment, cut, dye, sheet, draw)
    sheet.line(draw, np.concatenate([cut.body, cut.body[:1]]), dye.outline, 0.016)
    _sew_front(garment, cut, dye, sheet, draw)
    _print_graphic(garment, cut, dye, sheet, draw)
    _sew_on_top(garment, cut, dye, sheet, draw)
    _sew_neck(garment, cut, dye, sheet, draw)


def _sew_seams(garment: Garment, cut: Cut, dye: Dye, sheet: Sheet, draw: ImageDraw.ImageDraw) -> None:
    """Armholes, waist and hem lines and the neck's edge."""
    if cut.sleeve is not None:
        sheet.line(draw, cut.armhole, dye.seam, 0.014)
        sheet.line(draw, mirrored(cut.armhole), dye.seam, 0.014)
    sheet.line(draw, cut.hem - (0, 0.05), dye.seam, 0.008)
    if garment.category == "dress":
        half = float(cut.half_width(0.66))
        sheet.line(draw, curve((-half, 0.65), (0, 0.67), (half, 0.65)), dye.seam, 0.012)
    if garment.neckline not in ("collar", "stand"):
        sheet.line(draw, cut.neck + (0, 0.018), dye.seam, 0.032)


def _sew_neck(garment: Garment, cut: Cut, dye: Dye, sheet: Sheet, draw: ImageDraw.ImageDraw) -> None:
    """A pointed collar with a short placket, or a stand-up band."""
    cloth = mix(dye.main, (255, 255, 255), 0.14)
    if garment.neckline == "collar":
        sheet.line(draw, np.array([(0, 0.15), (0, 0.42)]), dye.seam, 0.014)
        flap = np.array([(0.0, 0.165), (0.11, 0.27), (0.225, 0.07), (0.13, -0.05), (0.09, -0.02)])
        for half in (flap, flap * (-1, 1)):
            sheet.polygon(draw, half, cloth)
            sheet.line(draw, np.concatenate([half, half[:1]]), dye.outline, 0.014)
    elif garment.neckline == "stand":
        stand = np.concatenate([cut.neck + (0, 0.03), cut.neck[::-1] * (0.94, 1) - (0, 0.055)])
        sheet.polygon(draw, stand, cloth)
        sheet.line(draw, np.concatenate([stand, stand[:1]]), dye.outline, 0.014)
        sheet.line(draw, np.array([(0, 0.02), (0, 0.34)]), dye.outline, 0.014)


def _sew_front(garment: Garment, cut: Cut, dye: Dye, sheet: Sheet, draw: ImageDraw.ImageDraw) -> None:
    """What closes the front; a graphic is printed over it."""
    if garment.extra == "buttons":
        _buttons(cut, dye, sheet, draw)
    elif garment.extra == "zipper":
        _zipper(cut, dye, sheet, draw)


def _sew_on_top(garment: Garment, cut: Cut, dye: Dye, sheet: Sheet, draw: ImageDraw.ImageDraw) -> None:
    """What lies over a graphic."""
    if garment.extra == "belt":
        _belt(cut, dye, sheet, draw)
    elif garment.extra == "bow":
        _bow(cut, dye, sheet, draw)
    elif garment.extra == "pocket":
        _pocket(dye, sheet, draw)


def _pocket(dye: Dye, sheet: Sheet, draw: ImageDraw.ImageDraw) -> None:
    pocket = np.array([(0.16, 0.23), (0.33, 0.23), (0.33, 0.38), (0.245, 0.43), (0.16, 0.38)])
    sheet.polygon(draw, pocket, mix(dye.main, dye.seam, 0.35))
    sheet.line(draw, np.concatenate([pocket, pocket[:1]]), dye.outline, 0.016)
    sheet.line(draw, np.array([(0.16, 0.265), (0.33, 0.265)]), dye.outline, 0.012)


def _belt(cut: Cut, dye: Dye, sheet: Sheet, draw: ImageDraw.ImageDraw) -> None:
    y = min(0.66, cut.length - 0.08)
    half = float(cut.half_width(y)) + 0.01
    leather = (70, 44, 30) if sum(dye.main) > 330 else (206, 164, 112)
    edge = curve((-half, y - 0.045), (0, y - 0.03), (half, y - 0.045))
    sheet.polygon(draw, np.concatenate([edge, edge[::-1] + (0, 0.09)]), leather)
    sheet.polygon(draw, band(y - 0.05, y + 0.075, -0.06, 0.06), (226, 190, 92))
    sheet.polygon(draw, band(y - 0.018, y + 0.043, -0.032, 0.032), leather)


def _buttons(cut: Cut, dye: Dye, sheet: Sheet, draw: ImageDraw.ImageDraw) -> None:
    top, bottom = cut.neck_depth + 0.04, cut.length + 0.05
    for x in (-0.05, 0.05):
        sheet.line(draw, np.array([(x, top - 0.03), (x, bottom)]), dye.seam, 0.01)
    colour = (250, 246, 232) if sum(dye.main) < 480 else (74, 58, 52)
    for y in np.arange(top + 0.03, bottom - 0.06, 0.135):
        sheet.disc(draw, (0, y), 0.04, dye.outline)
        sheet.disc(draw, (0, y), 0.031, colour)


def _zipper(cut: Cut, dye: Dye, sheet: Sheet, draw: ImageDraw.ImageDraw) -> None:
    top, bottom = cut.neck_depth, cut.length + 0.06
    sheet.line(draw, np.array([(0, top), (0, bottom)]), dye.outline, 0.075)
    for y in np.arange(top, bottom, 0.045):
        sheet.line(draw, np.array([(-0.024, y), (0.024, y)]), METAL, 0.02)
    sheet.polygon(draw, band(top + 0.03, top + 0.15, -0.03, 0.03), (226, 228, 232))


def _bow(cut: Cut, dye: Dye, sheet: Sheet, draw: ImageDraw.ImageDraw) -> None:
    cloth, y = mix(dye.main, (255, 255, 255), 0.2), cut.neck_depth + 0.03
    tail = np.array([(0, y), (0.035, y + 0.17), (0.10, y + 0.15)])
    loop = curve((0, y), (0.1, y - 0.085), (0.16, y - 0.05), (0.16, y + 0.05), (0.1, y + 0.085), (0, y))
    for shape in (tail, tail * (-1, 1), loop, loop * (-1, 1)):
        sheet.polygon(draw, shape, cloth)
        sheet.line(draw, np.concatenate([shape, shape[:1]]), dye.outline, 0.014)
    sheet.disc(draw, (0, y), 0.04, dye.outline)
    sheet.disc(draw, (0, y), 0.028, cloth)


def _sew_ruffle(cut: Cut, dye: Dye, sheet: Sheet, draw: ImageDraw.ImageDraw, shape: ImageDraw.ImageDraw) -> None:
    """A gathered frill below the hem: a wavy lower edge and a pleat up from every other wave."""
    waves, steps = 6, np.linspace(0, len(cut.hem) - 1, 61)
    hem = np.stack([np.interp(steps, np.arange(len(cut.hem)), cut.hem[:, axis]) for axis in (0, 1)], axis=1)
    depth = 0.8 * cut.trim - 0.2 * cut.trim * np.cos(np.linspace(0, waves * 2 * np.pi, len(hem)))
    lower = hem * (1.08, 1) + np.stack([np.zeros(len(hem)), depth], axis=1)
    frill = np.concatenate([hem - (0, 0.06), lower[::-1]])
    sheet.polygon(shape, frill, 255)
    sheet.polygon(draw, frill, mix(dye.main, (255, 255, 255), 0.22))
    sheet.line(draw, np.concatenate([frill, frill[:1]]), dye.outline, 0.016)
    for k in range(10, len(hem) - 1, 10):
        sheet.line(draw, np.stack([hem[k] - (0, 0.05), lower[k]]), dye.seam, 0.014)


def _star(radius: float) -> Points:
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2, 0.42, 1.0) * radius
    return np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1)


def _heart(radius: float) -> Points:
    t = np.linspace(0, 2 * np.pi, 32)
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2], axis=1) * radius / 16.5


def _print_graphic(garment: Garment, cut: Cut, dye: Dye, sheet: Sheet, draw: ImageDraw.ImageDraw) -> None:
    """The motif on the chest, in the second colour, on a plain patch where the cloth is patterned."""
    kind, radius = garment.graphic, 0.155
    if kind == "none":
        return
    low = min(0.485, cut.length - 0.28) if garment.extra != "bow" else min(cut.neck_depth + 0.34, cut.length - 0.2)
    at = np.array((0, low))
    if garment.pattern != "plain" or garment.extra in ("buttons", "zipper"):
        patch = (1.15, 0.95) if kind == "text" else (1.2, 1.2)
        sheet.polygon(draw, CIRCLE * radius * patch + at, dye.main)
    if kind in ("star", "heart"):
        sheet.polygon(draw, (_star(radius) if kind == "star" else _heart(radius * 0.95)) + at, dye.second)
    elif kind == "circle":
        for reach, colour in ((1.0, dye.second), (0.74, dye.main), (0.5, dye.second)):
            sheet.disc(draw, (0, low), radius * reach, colour)
    elif kind == "flower":
        _flower(dye, sheet, draw, low, radius)
    else:
        _lettering(dye, sheet, draw, low, radius)


def _flower(dye: Dye, sheet: Sheet, draw: ImageDraw.ImageDraw, low: float, radius: float) -> None:
    for angle in np.arange(6) * np.pi / 3:
        place = (0.58 * radius * np.cos(angle), low + 0.58 * radius * np.sin(angle))
        sheet.disc(draw, place, radius * 0.36, dye.second)
    sheet.disc(draw, (0, low), radius * 0.3, dye.main)


def _lettering(dye: Dye, sheet: Sheet, draw: ImageDraw.ImageDraw, low: float, radius: float) -> None:
    """Three rows of blocks that read as lines of print."""
    for row, (left, right) in enumerate(((-1.0, 1.0), (-0.75, 0.8), (-0.95, 0.55))):
        y = low + (row - 1) * radius * 0.56
        for x in np.arange(left, right, 0.36):
            word = band(y - radius * 0.2, y + radius * 0.2, x * radius, (x + 0.25) * radius)
            sheet.polygon(draw, word, dye.second)
