"""A picture as a person would see it, in RGB: what encoders, figures and pages open pictures with."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = {  # those that are read, by Pillow's names, with the endings of their files; the first is what is written
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),  # of several in one file, as phones write, the first
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
}
EXTENSIONS = tuple(ending for endings in FORMATS.values() for ending in endings)
MOST_SIDE = 20_000  # pixels: a model's square around a longer picture would fill the memory
NOT_READ = f"not of a format that is read ({', '.join(FORMATS)}): convert it, for example to JPEG"


def open_rgb(path: Path) -> Image.Image:
    """The picture in the file ``path``, see :func:`to_rgb`.

    >>> open_rgb(write_image(folder / "a.png", size=(40, 30))).size
    (40, 30)
    """
    with open_picture(path) as image:
        return to_rgb(image)


def open_picture(source: Path | BytesIO) -> Image.Image:
    """The picture, its pixels not decoded yet; a ValueError where it is none of `FORMATS`, or longer than `MOST_SIDE`.

    >>> open_picture(write_image(folder / "a.png")).format
    'PNG'
    """
    try:
        image = Image.open(source, formats=list(FORMATS))
    except UnidentifiedImageError:
        empty = not (source.stat().st_size if isinstance(source, Path) else source.getbuffer().nbytes)
        raise ValueError("it is empty" if empty else f"it is {NOT_READ}") from None
    if max(image.size) > MOST_SIDE:
        raise ValueError(f"it is {max(image.size):,} pixels long, at most {MOST_SIDE:,} are read")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture upright, in RGB, transparency on white; 16 bits a pixel are scaled to 8.

    Raises:
        ValueError: its pixels are floating-point numbers, of which nobody can say what is white.

    >>> to_rgb(Image.new("RGBA", (1, 1))).getpixel((0, 0))
    (255, 255, 255)
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.int64)
        image = Image.fromarray((pixels >> 8 if pixels.max(initial=0) > 255 else pixels).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "P") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
