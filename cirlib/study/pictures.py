"""A picture as a person would see it, in RGB: what encoders, figures and pages open pictures with."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def open_rgb(path: Path) -> Image.Image:
    """The picture in the file ``path``, see :func:`to_rgb`.

    >>> open_rgb(write_image(folder / "a.png", size=(40, 30))).size
    (40, 30)
    """
    with Image.open(path) as image:
        return to_rgb(image)


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
