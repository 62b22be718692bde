"""All around the garment: background, clutter, light, shadow and the camera."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cirlib.benchmarks.garments.attributes import PALETTE
from cirlib.benchmarks.garments.shapes import CIRCLE, Cut, curve
from cirlib.benchmarks.garments.sheet import METAL, Colour, Sheet, jitter, mix

BACKDROPS: tuple[Colour, ...] = (
    (238, 236, 230), (222, 214, 202), (206, 218, 226), (228, 208, 206), (204, 216, 200), (186, 190, 198),
    (240, 224, 186), (176, 160, 144), (150, 172, 180), (206, 192, 220), (112, 120, 132), (92, 104, 96),
    (198, 134, 108), (250, 250, 250), (84, 78, 92), (164, 186, 150),
)  # fmt: skip
WOOD: Colour = (150, 108, 70)


def _gradient(rng: np.random.Generator, first: Colour, second: Colour, side: int) -> Image.Image:
    """From one colour to the other, down or across the canvas."""
    ramp = np.linspace(first, second, side).astype(np.uint8)  # (side, 3)
    ramp = ramp[:, None] if rng.random() < 0.5 else ramp[None]
    return Image.fromarray(ramp).resize((side, side), Image.Resampling.NEAREST)


def lay_background(rng: np.random.Generator, sheet: Sheet) -> Image.Image:
    """What lies behind and beside the garment, on the sheet's canvas.

    >>> lay_background(np.random.default_rng(0), Sheet(64, 1.0, np.eye(2), np.zeros(2), 0.5)).size
    (64, 64)
    """
    scene = _backdrop(rng, sheet.side)
    _scatter_clutter(ImageDraw.Draw(scene), rng, sheet)
    return scene


def _backdrop(rng: np.random.Generator, side: int) -> Image.Image:
    """Flat, shaded, wall and floor, planks, tiles, cloth or paper shapes, in calm colours."""
    first, second = (jitter(rng, BACKDROPS[i]) for i in rng.permutation(len(BACKDROPS))[:2])
    kind = int(rng.integers(7))
    if kind == 0:
        return Image.new("RGB", (side, side), first)
    if kind == 1:
        return _gradient(rng, first, second, side)
    image = _gradient(rng, first, mix(first, (0, 0, 0), rng.uniform(-0.12, 0.16)), side)
    draw = ImageDraw.Draw(image)
    if kind == 2:
        floor = side * rng.uniform(0.62, 0.85)
        draw.rectangle((0, floor, side, side), fill=second)
        draw.rectangle((0, floor - 5, side, floor), fill=mix(first, (255, 255, 255), 0.5))
    elif kind == 3:
        _planks(draw, rng, mix(first, WOOD, 0.5), side)
    elif kind == 4:
        _tiles(draw, rng, mix(first, second, 0.3), side)
    elif kind == 5:
        _blobs(draw, rng, second, side)
    return image


def _planks(draw: ImageDraw.ImageDraw, rng: np.random.Generator, colour: Colour, side: int) -> None:
    width = side / int(rng.integers(4, 8))
    upright = bool(rng.integers(2))
    for start in np.arange(0, side, width):
        tone = mix(colour, (255, 240, 220), rng.uniform(0.0, 0.35))
        box = (start, 0, start + width - 3, side) if upright else (0, start, side, start + width - 3)
        draw.rectangle(box, fill=tone)


def _tiles(draw: ImageDraw.ImageDraw, rng: np.random.Generator, colour: Colour, side: int) -> None:
    step = side / int(rng.integers(3, 7))
    for at in np.arange(rng.uniform(0, step), side, step):
        draw.line((at, 0, at, side), fill=colour, width=4)
        draw.line((0, at, side, at), fill=colour, width=4)


def _blobs(draw: ImageDraw.ImageDraw, rng: np.random.Generator, colour: Colour, side: int) -> None:
    """Large soft shapes that enter from the edges."""
    for _ in range(int(rng.integers(2, 5))):
        x, y = rng.choice((-0.05, 1.05)) * side, rng.uniform(0, 1) * side
        reach = rng.uniform(0.14, 0.34) * side
        box = (x - reach, y - reach, x + reach, y + reach)
        draw.ellipse(box, fill=colour) if rng.random() < 0.6 else draw.rectangle(box, fill=colour)


def _scatter_clutter(draw: ImageDraw.ImageDraw, rng: np.random.Generator, sheet: Sheet) -> None:
    """Sometimes a hanger behind the garment, sometimes things that lie in a corner."""
    if rng.random() < 0.35:
        tone = WOOD if rng.random() < 0.5 else (58, 58, 64)
        sheet.line(draw, np.array([(-0.32, 0.06), (0, -0.08), (0.32, 0.06)]), tone, 0.045)
        hook = curve((0, -0.08), (0, -0.15), (0.06, -0.2), (0.04, -0.27), (-0.03, -0.26))
        sheet.line(draw, hook, METAL, 0.022)
    for _ in range(int(rng.integers(0, 3))):
        _thing(draw, rng, sheet.side)


def _thing(draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int) -> None:
    """A coin, a card or a leaf near a corner."""
    x, y = (rng.choice((0.06, 0.94)) + rng.uniform(-0.06, 0.06) for _ in range(2))
    colour = jitter(rng, list(PALETTE.values())[int(rng.integers(len(PALETTE)))])
    shape = CIRCLE * (0.06, 0.06) if rng.random() < 0.4 else CIRCLE[::6] * rng.uniform(0.05, 0.12, 2)
    shape = CIRCLE * (0.11, 0.035) if rng.random() < 0.3 else shape
    angle = rng.uniform(0, np.pi)
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    draw.polygon(((shape @ turn + (x, y)) * side).ravel().tolist(), fill=mix(colour, (210, 205, 200), 0.35))


def shine(cut: Cut, sheet: Sheet, rng: np.random.Generator) -> Image.Image:
    """How the light falls: an RGB image for `hard_light` (128 changes nothing), half the canvas's size.

    >>> from cirlib.benchmarks.garments.drawing import cut_garment, lay_out
    >>> cut, rng = cut_garment(garment, 1.0), np.random.default_rng(0)
    >>> shine(cut, lay_out(cut, rng, 64), rng).size
    (32, 32)
    """
    x, y = sheet.grid(40)
    (reach, _), angle, phase = cut.extent, rng.uniform(0, 2 * np.pi), rng.uniform(0, 6, 2)
    edge = np.minimum(np.abs(x) / cut.half_width(y), 1.15)
    slope = (x * np.cos(angle) + (y - sheet.middle) * np.sin(angle)) / max(reach, cut.length / 2)
    ramp = np.clip((y - 0.35) / (cut.length - 0.3), 0.12, 1)
    waves = rng.uniform(13, 19) * x / (0.6 + ramp * reach) + 0.7 * np.sin(2.2 * y + phase[0])
    change = 0.08 * slope + 0.075 * ramp * np.sin(waves + phase[1]) - 0.13 * edge**3
    plane = Image.fromarray(np.clip(128 + 128 * change, 70, 150).astype(np.uint8))
    plane = plane.resize((sheet.side // 2, sheet.side // 2), Image.Resampling.BILINEAR)
    return Image.merge("RGB", (plane, plane, plane))


def cast_shadow(scene: Image.Image, mask: Image.Image, rng: np.random.Generator) -> None:
    """A soft shadow beside the garment, away from the light.

    >>> cast_shadow(Image.new("RGB", (32, 32)), Image.new("L", (32, 32)), np.random.default_rng(0))
    """
    small = mask.resize((80, 80), Image.Resampling.BOX).filter(ImageFilter.BoxBlur(2))
    faint = Image.blend(Image.new("L", small.size), small, rng.uniform(0.3, 0.6))
    soft = faint.resize(mask.size, Image.Resampling.BILINEAR)
    shift = rng.uniform(-0.03, 0.03, 2) * mask.width
    scene.paste((24, 22, 30), (round(shift[0]), round(shift[1] + 0.012 * mask.width)), soft)


def grade(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The camera's exposure and white balance.

    >>> grade(Image.new("RGB", (32, 32)), np.random.default_rng(0)).size
    (32, 32)
    """
    gains = rng.uniform(0.87, 1.09) * rng.uniform(0.97, 1.03, 3)
    red, green, blue = gains.tolist()
    return image.convert("RGB", (red, 0, 0, 0, 0, green, 0, 0, 0, 0, blue, 0))
