"""Image files as they come: the good ones are seen as a person would see them, the others named with a reason."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cirlib.benchmarks.image_checks import check_images
from cirlib.study.pictures import open_rgb

LEFT, RIGHT = (200, 30, 40), (30, 60, 200)


def halves(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", size, LEFT)
    picture.paste(RIGHT, (size[0] // 2, 0, *size))
    return picture


def turned() -> bytes:
    """The halves as a camera held sideways stores them: lying, with a note to turn them."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise is to be made
    return encoded(halves().rotate(90, expand=True), "JPEG", quality=95, exif=exif)


def encoded(picture: Image.Image, form: str, **options) -> bytes:
    content = io.BytesIO()
    picture.save(content, form, **options)
    return content.getvalue()


def transparent_palette() -> bytes:
    picture = halves().quantize(4)
    index = picture.getpixel((59, 0))  # blue is to be seen through
    return encoded(picture, "PNG", transparency=index)


GOOD = {
    "cmyk.jpg": (encoded(halves().convert("CMYK"), "JPEG", quality=95), LEFT, RIGHT),
    "palette.png": (transparent_palette(), LEFT, (255, 255, 255)),
    "sixteen.png": (
        encoded(Image.fromarray(np.repeat(np.uint16([[0x4000, 0xC000]]), 20, 1).repeat(10, 0)), "PNG"),
        (64, 64, 64),
        (192, 192, 192),
    ),
    "animated.gif": (encoded(halves(), "GIF", save_all=True, append_images=[Image.new("RGB", (60, 40))]), LEFT, RIGHT),
    "turned.jpg": (turned(), LEFT, RIGHT),
    "tiny.png": (encoded(Image.new("RGB", (1, 1), LEFT), "PNG"), LEFT, LEFT),
}
BAD = {
    "truncated.jpg": (encoded(halves((600, 400)), "JPEG")[:1500], "cannot be decoded"),
    "empty.jpg": (b"", "the file is empty"),
    "text.jpg": (b"<html>404</html>", "not an image of a known format"),
    "bomb.png": (encoded(Image.new("1", (20_000, 20_000)), "PNG"), "decompression bomb"),
}


@pytest.mark.parametrize("name", GOOD)
def test_odd_but_good_pictures_are_seen_as_a_person_sees_them(tmp_path, name):
    content, left, right = GOOD[name]
    (tmp_path / name).write_bytes(content)
    assert check_images({name: tmp_path / name})[name].problem is None
    picture = open_rgb(tmp_path / name)
    assert picture.mode == "RGB" and picture.width >= picture.height
    middle = picture.height // 2
    for place, colour in ((0, left), (picture.width - 1, right)):
        np.testing.assert_allclose(picture.getpixel((place, middle)), colour, atol=12)


def test_of_many_files_the_bad_ones_are_listed_with_their_reason_and_the_good_ones_kept(tmp_path: Path):
    for name, (content, *_) in (GOOD | BAD).items():
        (tmp_path / name).write_bytes(content)
    checks = check_images({path.stem: path for path in sorted(tmp_path.iterdir())})
    problems = {name: check.problem for name, check in checks.items() if check.problem}
    assert set(problems) == {Path(name).stem for name in BAD}
    for name, (_, reason) in BAD.items():
        assert reason in problems[Path(name).stem]
