"""Sheets of pictures: what stands where, what is framed, what is missing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from cirlib.figures import plots as figures, image_grids as sheets
from cirlib.figures.image_grids import AttentionRow, RetrievalRow


def texts(figure: Figure) -> list[str]:
    """Every text of the figure, the wrapped ones as one line."""
    return [" ".join(text.get_text().split()) for text in figure.findobj(Text) if text.get_text()]


def tiles(figure: Figure, label: str) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_label().startswith(label)]


def is_framed(axes: Axes) -> bool:
    """Whether the tile has the thick green frame; a thin grey one else."""
    spine = axes.spines["left"]
    frame = (to_hex(spine.get_edgecolor()), spine.get_linewidth() > 2)
    assert frame in {(figures.GREEN.lower(), True), (figures.FAINT.lower(), False)}
    return frame[1]


@pytest.fixture
def images(tmp_path: Path, write_image: Callable[..., Path]) -> list[Path]:
    """Six images: five tall ones, one wide."""
    sizes = [(40, 60)] * 5 + [(90, 30)]
    return [write_image(tmp_path / f"{i}.png", seed=i, size=size) for i, size in enumerate(sizes)]


def test_triplet_grid_shows_each_reference_edit_and_target(images: list[Path]) -> None:
    edit = "the same dress in blue, with long sleeves and a much wider skirt"
    figure = sheets.triplet_grid([(images[0], edit, images[1]), (images[2], "is red", images[3])] * 2)
    assert len(tiles(figure, "reference")) == len(tiles(figure, "edit")) == len(tiles(figure, "target")) == 4
    assert texts(figure).count(edit) == 2
    assert texts(figure).count("reference") == 2  # one head a column of triplets
    assert len({axes.get_position().y0 for axes in tiles(figure, "target")}) == 2


def test_edit_text_is_wrapped_with_an_arrow_and_keeps_dollar_signs(images: list[Path]) -> None:
    edit = "costs $5 less than the $9 one " + "and is longer " * 4
    figure = sheets.triplet_grid([(images[0], edit, images[1])])
    (axes,) = tiles(figure, "edit")
    assert axes.texts[0].get_text().count("\n") >= 2
    assert axes.texts[0].get_parse_math() is False
    assert axes.texts[1].arrow_patch is not None
    assert " ".join(edit.split()) in texts(figure)


def test_edit_text_stays_in_its_place(images: list[Path]) -> None:
    figure = sheets.triplet_grid([(images[0], "WIDE WORDS MAKE MUCH WIDER LINES " * 12, images[1])])
    figure.canvas.draw()
    (axes,) = tiles(figure, "edit")
    place, text = axes.get_window_extent(), axes.texts[0].get_window_extent()
    assert text.y0 >= place.y0 and text.y1 <= place.y1
    assert axes.texts[0].get_text().endswith(" …")


def test_images_of_other_shapes_are_letterboxed_not_stretched(images: list[Path]) -> None:
    figure = sheets.triplet_grid([(images[0], "is wider", images[5]), (images[1], "", images[2])])
    paper = np.array([0xF3] * 3)
    tall, wide = (np.asarray(tiles(figure, label)[0].images[0].get_array()) for label in ("reference", "target"))
    assert tall.shape == wide.shape
    bars = (wide == paper).all(axis=(1, 2))  # rows of the picture that are padding
    assert bars[0] and bars[-1] and not bars[len(bars) // 2]
    assert (~bars).sum() == pytest.approx(wide.shape[1] / 3, abs=2)
    assert not (tall == paper).all(axis=(1, 2)).any()


def test_a_missing_or_broken_image_is_said_to_be_missing(images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    figure = sheets.triplet_grid([(images[0], "is red", tmp_path / "no.png")])
    assert texts(figure).count("image missing") == 1
    figure = sheets.triplet_grid([(tmp_path / "broken.png", "is red", tmp_path / "no.png")])
    assert texts(figure).count("image missing") == 2


def test_transparent_images_stand_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (30, 30), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    figure = sheets.triplet_grid([(tmp_path / "clear.png", "is red", tmp_path / "clear.png")])
    assert (np.asarray(tiles(figure, "reference")[0].images[0].get_array()) == 255).all()


def test_retrieval_rows_frame_the_target_and_say_its_rank(images: list[Path]) -> None:
    hit = RetrievalRow(images[0], "is red", images[:5], [False, True, False, False, False], images[1], 2, "Q-Former")
    miss = RetrievalRow(images[0], "is blue", images[:5], [False] * 5, images[5], 1234)
    figure = sheets.retrieval_grid([hit, miss])
    framed = [is_framed(axes) for axes in tiles(figure, "result")]
    assert framed == [False, True, False, False, False] + [False] * 5
    assert not any(is_framed(axes) for axes in tiles(figure, "target") + tiles(figure, "reference"))
    shown = texts(figure)
    for text in ("is red", "is blue", "target: rank 2", "target: rank 1,234", "Q-Former", "1", "5"):
        assert text in shown


def test_retrieval_rows_keep_a_gap_before_the_target(images: list[Path]) -> None:
    figure = sheets.retrieval_grid([RetrievalRow(images[0], "is red", images[:5], [False] * 5, images[5], 9)])
    edges = [axes.get_position() for axes in [*tiles(figure, "result"), *tiles(figure, "target")]]
    gaps = [after.x0 - before.x1 for before, after in pairwise(edges)]
    assert gaps[-1] > 2 * max(gaps[:-1])


@pytest.mark.parametrize("correct", [[], [True] * 4])
def test_retrieval_rows_need_a_verdict_on_each_result(images: list[Path], correct: list[bool]) -> None:
    row = RetrievalRow(images[0], "is red", images[:5], correct, images[1], 2)
    with pytest.raises(ValueError, match=f"5 results and {len(correct)} in correct"):
        sheets.retrieval_grid([row])


def test_image_figures_need_rows(images: list[Path]) -> None:
    with pytest.raises(ValueError, match="needs rows"):
        sheets.retrieval_grid([])
    with pytest.raises(ValueError, match="0 rows and columns=2"):
        sheets.triplet_grid([])
    with pytest.raises(ValueError, match="columns=0"):
        sheets.triplet_grid([(images[0], "is red", images[1])], columns=0)


def test_look_rows_lay_each_map_over_its_image(images: list[Path]) -> None:
    corner = np.zeros((5, 5))
    corner[0, 0] = 0.2  # the left top
    row = AttentionRow(images[0], "is red", images[1], {"all": corner, "odd": corner.T}, {"best": corner}, "dress: rank 3")
    figure = sheets.attention_grid([row, row])
    assert [len(tiles(figure, label)) for label in ("reference", "target", "all", "odd", "best")] == [2] * 5
    shown = tiles(figure, "best")[0].images[0].get_array().astype(float)
    plain = tiles(figure, "target")[0].images[0].get_array().astype(float)
    assert shown.shape == plain.shape
    tile = shown[:, shown.shape[1] // 4 : -shown.shape[1] // 4]  # without the bars beside a tall image
    half = len(tile) // 2
    assert tile[:half].max() > 1.5 * tile[half:].mean()


def test_look_rows_need_the_same_maps_in_every_row(images: list[Path]) -> None:
    one = AttentionRow(images[0], "is red", images[1], {"all": np.ones((2, 2))}, {}, "a")
    other = AttentionRow(images[0], "is red", images[1], {"mean": np.ones((2, 2))}, {}, "b")
    with pytest.raises(ValueError, match="the same maps"):
        sheets.attention_grid([one, other])
    with pytest.raises(ValueError, match="needs rows"):
        sheets.attention_grid([])
