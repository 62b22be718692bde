"""Small pictures as files hold them."""

import io

from PIL import Image


def picture(kind: str = "JPEG", size: tuple[int, int] = (40, 30), colour: str = "teal") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, kind)
    return stream.getvalue()
