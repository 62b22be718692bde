"""Sheets of pictures: what stands where, what is framed, what is missing."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from cirlib import figures
from cirlib.figures import AttentionRow, RetrievalRow, style


def tiles(figure: Figure, label: str) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_label().startswith(label)]


def results(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_label().isdigit()]


def is_framed(axes: Axes) -> bool:
    """Whether the tile has the thick green frame; a thin grey one else."""
    spine = axes.spines["left"]
    frame = (to_hex(spine.get_edgecolor()), spine.get_linewidth() > 2)
    assert frame in {(style.GREEN.lower(), True), (style.FAINT.lower(), False)}
    return frame[1]


def test_triplet_grid_shows_each_reference_edit_and_target(images, texts):
    edit = "the same dress in blue, with long sleeves and a much wider skirt"
    figure = figures.triplet_grid([(images[0], edit, images[1]), (images[2], "is red", images[3])] * 2)
    assert len(tiles(figure, "reference")) == len(tiles(figure, "edit")) == len(tiles(figure, "target")) == 4
    assert texts(figure).count(edit) == 2
    assert texts(figure).count("reference") == 2  # one head a column of triplets
    assert len({axes.get_position().y0 for axes in tiles(figure, "target")}) == 2


def test_edit_text_is_wrapped_with_an_arrow_and_keeps_dollar_signs(images, texts):
    edit = "costs $5 less than the $9 one " + "and is longer " * 4
    figure = figures.triplet_grid([(images[0], edit, images[1])])
    (axes,) = tiles(figure, "edit")
    assert axes.texts[0].get_text().count("\n") >= 2
    assert axes.texts[0].get_parse_math() is False
    assert axes.texts[1].arrow_patch is not None
    assert " ".join(edit.split()) in texts(figure)


def test_edit_text_stays_in_its_place(images, texts):
    figure = figures.triplet_grid([(images[0], "WIDE WORDS MAKE MUCH WIDER LINES " * 12, images[1])])
    figure.canvas.draw()
    (axes,) = tiles(figure, "edit")
    place, text = axes.get_window_extent(), axes.texts[0].get_window_extent()
    assert text.y0 >= place.y0 and text.y1 <= place.y1
    assert axes.texts[0].get_text().endswith(" …")


def test_images_of_other_shapes_are_letterboxed_not_stretched(images, texts):
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
    figure = figures.triplet_grid([(images[0], "is red", tmp_path / "no.png")])
    assert texts(figure).count("image missing") == 1
    figure = figures.triplet_grid([(tmp_path / "broken.png", "is red", tmp_path / "no.png")])
    assert texts(figure).count("image missing") == 2


def test_transparent_images_stand_on_white(tmp_path: Path):
    Image.new("RGBA", (30, 30), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    figure = figures.triplet_grid([(tmp_path / "clear.png", "is red", tmp_path / "clear.png")])
    assert (np.asarray(tiles(figure, "reference")[0].images[0].get_array()) == 255).all()


def test_retrieval_rows_frame_the_target_and_say_its_rank(images, texts):
    hit = RetrievalRow(images[0], "is red", images[:5], [False, True, False, False, False], images[1], 2, "Q-Former")
    miss = RetrievalRow(images[0], "is blue", images[:5], [False] * 5, images[5], 1234)
    figure = figures.retrieval_grid([hit, miss])
    framed = [is_framed(axes) for axes in results(figure)]
    assert framed == [False, True, False, False, False] + [False] * 5
    assert not any(is_framed(axes) for axes in tiles(figure, "target") + tiles(figure, "reference"))
    shown = texts(figure)
    for text in ("is red", "is blue", "target: rank 2", "target: rank 1,234", "Q-Former", "1", "5"):
        assert text in shown


def test_retrieval_rows_keep_a_gap_before_the_target(images, texts):
    figure = figures.retrieval_grid([RetrievalRow(images[0], "is red", images[:5], [False] * 5, images[5], 9)])
    edges = [axes.get_position() for axes in [*results(figure), *tiles(figure, "target")]]
    gaps = [after.x0 - before.x1 for before, after in pairwise(edges)]
    assert gaps[-1] > 2 * max(gaps[:-1])


def test_grids_need_rows_and_a_verdict_on_each_result(images):
    for draw in (figures.retrieval_grid, figures.triplet_grid, figures.attention_grid):
        with pytest.raises(style.FigureError, match="at least one row"):
            draw([])
    with pytest.raises(ValueError, match="shorter"):
        figures.retrieval_grid([RetrievalRow(images[0], "is red", images[:5], [True] * 4, images[1], 2)])


def test_attention_grids_lay_each_map_over_its_image(images, texts):
    corner = np.zeros((5, 5))
    corner[0, 0] = 0.2  # the left top
    row = AttentionRow(
        images[0], "is red", images[1], {"all": corner, "odd": corner.T}, {"best": corner}, "dress: rank 3"
    )
    figure = figures.attention_grid([row, row])
    assert [len(tiles(figure, label)) for label in ("reference", "target", "all", "odd", "best")] == [2] * 5
    shown = tiles(figure, "best")[0].images[0].get_array().astype(float)
    plain = tiles(figure, "target")[0].images[0].get_array().astype(float)
    assert shown.shape == plain.shape
    tile = shown[:, shown.shape[1] // 4 : -shown.shape[1] // 4]  # without the bars beside a tall image
    half = len(tile) // 2
    assert tile[:half].max() > 1.5 * tile[half:].mean()
