"""Pictures as a person would see them, whatever the file says them in."""

import io

import numpy as np
import pytest
from PIL import Image

from cirlib.study.pictures import open_rgb, to_rgb


def reopened(image: Image.Image, kind: str = "PNG", **options) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return Image.open(stream)


def test_sixteen_bits_are_scaled_not_cut_off():
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    got = np.asarray(to_rgb(reopened(Image.fromarray(ramp))))
    assert got.shape == (16, 16, 3)
    np.testing.assert_array_equal(got[..., 0], ramp >> 8)


def test_a_wide_format_with_small_numbers_is_left_as_it_is():
    got = np.asarray(to_rgb(Image.fromarray(np.array([[0, 100, 255]], np.int32))))
    assert got[0, :, 0].tolist() == [0, 100, 255]


def test_a_photo_taken_sideways_is_upright(tmp_path):
    photo = Image.new("RGB", (80, 40), "teal")
    photo.paste("red", (0, 0, 10, 40))  # the left edge
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    photo.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    got = open_rgb(tmp_path / "photo.jpg")
    assert got.size == (40, 80)
    assert np.asarray(got)[2, 20, 0] > 200  # the left edge is on top


RED = Image.new("RGB", (4, 4), "red")


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), {}),
        (RED.convert("P", palette=Image.Palette.ADAPTIVE), {"transparency": 0}),
        (RED, {"transparency": (255, 0, 0)}),
    ],
)
def test_what_is_transparent_is_white(image, options):
    assert np.asarray(to_rgb(reopened(image, **options))).min() == 255


def test_cmyk_is_converted():
    got = np.asarray(to_rgb(reopened(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "JPEG")))
    assert got.min() > 250


def test_floating_point_pixels_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        to_rgb(Image.new("F", (4, 4)))


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "it is empty"), (b"<html>", "it is not of a format that is read"), (None, "it is 20,001 pixels long")],
)
def test_what_cannot_be_opened_says_why(tmp_path, content, told):
    file = tmp_path / "a.png"
    if content is None:
        Image.new("1", (20_001, 1)).save(file)
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{told}"):
        open_rgb(file)
