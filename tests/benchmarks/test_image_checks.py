"""Image files as they come: the bad ones named with a reason, the same picture found again."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cirlib.benchmarks.image_checks import MAX_COLOUR_LEVELS, MAX_HASH_BITS, check_images, count_duplicates
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
    "cut.webp": (encoded(halves((600, 400)), "WEBP", lossless=True)[:-10], "cannot be decoded"),
    "empty.jpg": (b"", "it is empty"),
    "text.jpg": (b"<html>404</html>", "not of a format that is read (JPEG, PNG"),
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
    files = {path.stem: path for path in sorted(tmp_path.iterdir())} | {"gone": tmp_path / "gone.jpg"}
    problems = {name: check.problem for name, check in check_images(files).items() if check.problem}
    assert set(problems) == {Path(name).stem for name in BAD} | {"gone"}
    for name, (_, reason) in BAD.items():
        assert reason in problems[Path(name).stem]
    assert "No such file" in problems["gone"]


# ------------------------------------------------------------------ the same picture again
def photo(seed=0, side=200):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def duplicates(folder: Path, **pictures: tuple) -> tuple[int, ...]:
    """(exact groups, exact images, near pairs, near images) of pictures that are saved as name=(picture, suffix, …)."""
    files = {}
    for name, (picture, suffix, options) in pictures.items():
        files[name] = folder / f"{name}.{suffix}"
        picture.save(files[name], **options)
    return tuple(count_duplicates(files, check_images(files)).values())


def test_a_picture_saved_again_in_another_size_and_quality_is_a_near_duplicate(tmp_path):
    again = (photo().resize((150, 150)), "jpg", {"quality": 60})
    assert duplicates(tmp_path, a=(photo(), "png", {}), other=(photo(1), "png", {}), b=again) == (0, 0, 1, 2)


def test_the_same_shape_in_another_colour_is_no_duplicate(tmp_path):
    def shirt(colour):
        picture = np.full((120, 120, 3), 250, np.uint8)
        picture[30:90, 40:80] = colour
        return Image.fromarray(picture), "png", {}

    assert duplicates(tmp_path, red=shirt((150, 20, 20)), blue=shirt((20, 20, 170))) == (0, 0, 0, 0)


def test_copies_count_as_exact_and_only_their_first_is_compared_further(tmp_path):
    picture, again = (photo(), "png", {}), (photo(), "jpg", {"quality": 90})
    assert duplicates(tmp_path, a=picture, b=picture, c=picture, d=again) == (1, 3, 1, 2)


def test_the_search_finds_what_the_full_matrix_finds(tmp_path):
    files = {}
    rng = np.random.default_rng(0)
    for i in range(150):  # 50 pictures in 3 versions with growing noise, the last of them darker, some too much
        pixels = np.asarray(photo(i % 50, 64), np.int16) + rng.integers(-1, 2, (64, 64, 3)) * (i // 50) * 12
        pixels -= (i % 20) * (i // 100)
        files[str(i)] = tmp_path / f"{i}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(files[str(i)])
    checks = check_images(files)
    bits = np.array([np.unpackbits(np.frombuffer(checks[i].bits, np.uint8)) for i in files])  # (150, 64)
    colours = np.array([np.frombuffer(checks[i].colours, np.uint8) for i in files], int)  # (150, 48)
    near = ((bits[:, None] != bits[None]).sum(2) <= MAX_HASH_BITS) & (
        np.abs(colours[:, None] - colours[None]).max(2) <= MAX_COLOUR_LEVELS
    )
    np.fill_diagonal(near, False)
    found = count_duplicates(files, checks)
    assert found["near_pairs"] == near.sum() // 2 and 50 < found["near_pairs"] < 150
    assert found["near_images"] == near.any(0).sum()


@pytest.mark.parametrize("kind", ["catalogue", "photos"])
def test_real_photographs_saved_again_are_found_and_others_are_not(real_data, tmp_path, kind):
    files = {p.stem: p for p in sorted((real_data(kind) / "images").rglob("*.*"))[:150]}
    for i, path in enumerate(list(files.values())):
        picture = open_rgb(path)
        files[f"again-{path.stem}"] = tmp_path / f"{path.stem}.jpg"
        smaller = picture.resize((picture.width * 3 // 4, picture.height * 3 // 4))
        (smaller if i % 2 else picture).save(files[f"again-{path.stem}"], quality=50)
    found = count_duplicates(files, check_images(files))
    assert found["exact_groups"] == 0
    assert 0.99 * len(files) <= found["near_images"] and found["near_pairs"] <= 1.02 * len(files) / 2


def test_a_gallery_without_usable_images_has_no_duplicates(tmp_path):
    assert set(count_duplicates(["a"], check_images({"a": tmp_path / "a.jpg"})).values()) == {0}
