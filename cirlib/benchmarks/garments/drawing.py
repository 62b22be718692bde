"""Draws one garment as a flat-lay illustration.

Everything a caption speaks of comes from the `Garment`, everything else from the random generator. The
drawing is twice as large as the picture and then halved, which smooths every edge.
"""

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from cirlib.benchmarks.garments.attributes import Garment
from cirlib.benchmarks.garments.cloth import Dye, mix_dye, weave
from cirlib.benchmarks.garments.scene import cast_shadow, grade, lay_background, shine
from cirlib.benchmarks.garments.shapes import Cut, cut_garment, mirrored
from cirlib.benchmarks.garments.sheet import Sheet, lay_out, mix
from cirlib.benchmarks.garments.trims import sew_trims


def _sew(
    garment: Garment, cut: Cut, dye: Dye, sheet: Sheet, rng: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """The garment's cloth with all that is on it, and the mask of where the garment is."""
    cloth = weave(garment, cut, dye, sheet, rng)
    body = Image.new("L", cloth.size)
    shape = ImageDraw.Draw(body)
    sheet.polygon(shape, cut.body, 255)
    image = cloth.copy()
    mask = _sleeves(cut, dye, sheet, image, body)
    image.paste(cloth, mask=body)
    draw = ImageDraw.Draw(image)
    sheet.polygon(draw, cut.back, mix(dye.main, (14, 12, 20), 0.45))
    sheet.polygon(ImageDraw.Draw(mask), cut.back, 255)
    sew_trims(garment, cut, dye, sheet, draw, ImageDraw.Draw(mask))
    return image, mask


def _sleeves(cut: Cut, dye: Dye, sheet: Sheet, image: Image.Image, body: Image.Image) -> Image.Image:
    """Outlines both sleeves on the cloth; returns the body's mask with the sleeves added."""
    mask = body.copy()
    if cut.sleeve is None:
        return mask
    draw, shape = ImageDraw.Draw(image), ImageDraw.Draw(mask)
    for sleeve in (cut.sleeve, mirrored(cut.sleeve)):
        sheet.polygon(shape, sleeve, 255)
        sheet.line(draw, np.concatenate([sleeve, sleeve[:1]]), dye.outline, 0.016)
    return mask


def render_garment(garment: Garment, rng: np.random.Generator, size: int) -> Image.Image:
    """A picture of this garment, size by size RGB; what is not in `garment` is drawn from `rng`.

    >>> render_garment(garment, np.random.default_rng(0), 48).size
    (48, 48)
    """
    side = 2 * size
    cut = cut_garment(garment, np.deg2rad(rng.uniform(56, 72)))
    sheet, dye = lay_out(cut, rng, side), mix_dye(garment, rng)
    scene = lay_background(rng, sheet)
    image, mask = (layer.reduce(2) for layer in _sew(garment, cut, dye, sheet, rng))
    image = ImageChops.hard_light(image, shine(cut, sheet, rng))
    scene = scene.reduce(2)
    cast_shadow(scene, mask, rng)
    scene.paste(image, mask=mask)
    return grade(scene, rng)
