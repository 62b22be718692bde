"""Sheets of pictures: what stands where, what is framed, what is missing."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from cirlib import figures
from cirlib.figures import Picture


def tiles(figure: Figure, label: str) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_label().startswith(label)]


def test_triplet_grid_shows_each_reference_edit_and_target(images, texts):
    edit = "the same dress in blue, with long sleeves and a much wider skirt"
    figure = figures.triplet_grid([(images[0], edit, images[1]), (images[2], "is red", images[3])] * 2)
    assert [len(tiles(figure, label)) for label in ("reference", "edit", "target")] == [4, 4, 4]
    assert texts(figure).count(edit) == texts(figure).count("reference") == 2  # one head a column of triplets
    assert len({axes.get_position().y0 for axes in tiles(figure, "target")}) == 2


def test_edit_text_is_wrapped_over_an_arrow_in_its_place_and_keeps_dollar_signs(images, texts):
    edit = "costs $5 less than the $9 one and is longer"
    figure = figures.triplet_grid([(images[0], edit, images[1]), (images[0], "MUCH WIDER LINES " * 20, images[1])])
    figure.canvas.draw()
    short, long = tiles(figure, "edit")
    assert "\n" in short.texts[0].get_text() and edit in texts(figure) and not short.texts[0].get_parse_math()
    assert short.texts[1].arrow_patch is not None and long.texts[0].get_text().endswith(" …")
    place, text = long.get_window_extent(), long.texts[0].get_window_extent()
    assert text.y0 >= place.y0 and text.y1 <= place.y1


def test_images_of_other_shapes_are_letterboxed_not_stretched(images):
    figure = figures.triplet_grid([(images[0], "is wider", images[5]), (images[1], "", images[2])])
    paper = np.array([0xF3] * 3)
    tall, wide = (np.asarray(tiles(figure, label)[0].images[0].get_array()) for label in ("reference", "target"))
    assert tall.shape == wide.shape
    bars = (wide == paper).all(axis=(1, 2))  # rows of the picture that are padding
    assert bars[0] and bars[-1] and not bars[len(bars) // 2]
    assert (~bars).sum() == pytest.approx(wide.shape[1] / 3, abs=2)
    assert not (tall == paper).all(axis=(1, 2)).any()


def test_a_missing_or_broken_image_is_said_to_be_missing(images, texts, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    rows = [(images[0], "is red", tmp_path / "no.png"), (tmp_path / "broken.png", "is red", images[0])]
    assert texts(figures.triplet_grid(rows)).count("image missing") == 2


def test_pictures_are_framed_titled_captioned_and_kept_apart_by_gaps(images, texts):
    found = [Picture(image, str(i), framed=i == 1) for i, image in enumerate(images[:5])]
    rows = [[*found, None, Picture(images[1], "target", caption="rank 2")], ["is $5 or $9", found[0]]]
    figure = figures.picture_grid(rows, "Found", ["Q-Former", ""])
    green = [axes.get_label() for axes in figure.axes if to_hex(axes.spines["left"].get_edgecolor()) == "#009e73"]
    assert green == ["1"] and {"Found", "Q-Former", "rank 2", "is $5 or $9", "0", "target"} <= set(texts(figure))
    edges = [axes.get_position() for axes in figure.axes[:6]]
    gaps = [after.x0 - before.x1 for before, after in pairwise(edges)]
    assert gaps[-1] > 2 * max(gaps[:-1])


def test_a_map_lies_over_its_picture_and_is_bright_where_it_is_high(images):
    corner = np.zeros((5, 5))
    corner[0, 0] = 0.2  # the left top
    figure = figures.picture_grid([[Picture(images[1], "target"), Picture(images[1], "map", heat=corner)]], "Attention")
    plain, shown = (axes.images[0].get_array().astype(float) for axes in figure.axes)
    assert shown.shape == plain.shape
    half = len(shown) // 2
    assert shown[:half].max() > 1.5 * shown[half:].mean()


def test_even_attention_is_a_dim_glow_and_never_as_bright_as_a_peak():
    grey = Image.new("RGB", (64, 64), "grey")
    peak = np.eye(4) / 4
    even, peaked = (np.asarray(figures.heated(grey, heat), float).sum(-1) for heat in (np.full((4, 4), 1 / 16), peak))
    assert even.std() < 1 and even.max() < 0.8 * peaked.max()


def test_a_note_stands_between_the_title_and_the_heads(images):
    row = [Picture(images[0], "reference"), *[Picture(image, "found") for image in images]]
    figure = figures.picture_grid([row], "Found", note="6 of 90 queries")
    places = {text.get_text().replace("\xa0", " "): text.get_window_extent() for text in figure.texts}
    note, head = places["6 of 90 queries"], places["reference"]
    assert places["Found"].y0 >= note.y1 - 1 and note.y0 > head.y1
