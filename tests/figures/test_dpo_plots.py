"""What the figures of the preference study say: lines, bars, texts; and that they do so for small tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from cirlib.figures.plots import save
from cirlib.figures import dpo_plots as figures


def texts(figure: Figure) -> list[str]:
    """Every text of the figure, the wrapped ones as one line."""
    return [" ".join(text.get_text().split()) for text in figure.findobj(Text) if text.get_text()]


def line(axes: Axes, label: str) -> list[float]:
    (found,) = (line for line in axes.lines if line.get_label() == label)
    return list(np.asarray(found.get_ydata(), dtype=float))


def intervals(axes: Axes) -> np.ndarray:
    """[low, high] of each interval drawn, those of NaN left out."""
    (found,) = (found for found in axes.collections if found.get_label() == "_interval")
    return np.array([segment[:, 0] for segment in found.get_segments() if len(segment)])


def sweep_runs() -> pd.DataFrame:
    rows = [
        {"index": index, "sampling": sampling, "beta": beta, "recall@10": 0.1 * (1 + i) + 0.02 * j}
        for index in ("flat", "hnsw")
        for i, sampling in enumerate(("top", "random"))
        for j, beta in enumerate((0.05, 0.5, 5))
    ]
    cells = pd.DataFrame(rows)
    return cells.assign(ci_low=cells["recall@10"] - 0.03, ci_high=cells["recall@10"] + 0.01)


def steps(number: int = 3) -> pd.DataFrame:
    at = np.arange(number)
    shares = {"recall@10": 0.3 - 0.1 * at, "chance": 0.01, "hubness": 0.1 + 0.2 * at}
    shape = {"alignment": 1 + at, "uniformity": at - 3.0, "effective_rank": 80 - at, "norm": 10 + at, "spread": 3 - at}
    ranks = {f"rank_{q}": q * (1.0 + at) for q in (10, 25, 50, 75, 90)}
    return pd.DataFrame({"step": 100 * at, "gallery": 1000} | shares | shape | ranks)


def mistakes_of(number: int = 2) -> pd.DataFrame:
    rows = [
        {"mistake": f"mistake {i}", "step": step, "recall@10": recall, "chance": 0.01}
        for i in range(number)
        for step, recall in ((0, 0.3), (50, 0.001), (100, 0.002 * i))
    ]
    return pd.DataFrame(rows)


def effects_of() -> pd.DataFrame:
    rows = [
        ("fusion", "sum", "text_only", 0.07, 0.05, 0.09, 0.02, 0.1),
        ("trains", "query_tower", "query_projection", -0.01, -0.03, 0.01, -0.05, 0.04),
        ("fusion", "qformer", "text_only", np.nan, np.nan, np.nan, np.nan, np.nan),
    ]
    names = ["factor", "level", "against", "difference", "ci_low", "ci_high", "q25", "q75"]
    return pd.DataFrame(rows, columns=names)


def factorial_runs() -> pd.DataFrame:
    rows = [
        ("qformer", "both_towers", "info_nce_in_batch", "in-batch", 0.4),
        ("qformer", "query_projection", "dpo sigmoid", "remined", 0.1),
        ("qformer", "query_projection", "dpo sigmoid", "remined", 0.2),
        ("text_only", "query_projection", "dpo sigmoid", "top", 0.05),
        ("text_only", "query_projection", "info_nce_in_batch", "in-batch", np.nan),
    ]
    return pd.DataFrame(rows, columns=["fusion", "trains", "objective", "negatives", "recall@10"])


def qualities() -> pd.DataFrame:
    shares = {"satisfies_edit": [0.004, 0.55], "differs_in_one": [0.01, np.nan]}
    return pd.DataFrame({"negatives": ["random", "top"]} | shares)


def recipes() -> pd.DataFrame:
    recall = {"value": [0.25, 0.0002, np.nan], "ci_low": [0.2, 0.0, np.nan], "ci_high": [0.3, 0.001, np.nan]}
    rest = {"chance": 0.01, "seconds": [np.nan, 200.4, 3900]}
    return pd.DataFrame({"method": ["text_only", "DPO", "unrun"]} | recall | rest)


def sweep_grid(cells: pd.DataFrame) -> Figure:
    return figures.sweep_grid(cells, text_only=0.25, chance=0.01, context="garments")


def factorial_map(cells: pd.DataFrame) -> Figure:
    return figures.factorial_map(cells, chance=0.02, context="garments")


# ------------------------------------------------------------------------------------------- small multiples


def test_sweep_has_a_panel_an_index_and_a_line_a_sampling() -> None:
    figure = sweep_grid(sweep_runs())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["flat", "hnsw"]
    for axes in figure.axes:
        assert line(axes, "top-k") == pytest.approx([10, 12, 14])
        assert line(axes, "random") == pytest.approx([20, 22, 24])
        bands = [band.get_paths()[0].vertices[:, 1] for band in axes.collections]
        ends = [pytest.approx([7, 15]), pytest.approx([17, 25])]
        assert sorted([band.min(), band.max()] for band in bands) == ends
        assert [found.get_ydata()[0] for found in axes.lines if found.get_label() == "_level"] == [25, 1]
        assert axes.get_xscale() == "log" and axes.get_ylim()[0] == 0
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0.05", "0.5", "5"]
    shown = texts(figure)
    assert shown.count("text only, zero-shot 25.0 %") == shown.count("chance 1.0 %") == 1
    assert any("garments" in text for text in shown)


def test_sweep_averages_repetitions_and_leaves_a_gap_for_nan() -> None:
    cells = pd.concat([sweep_runs(), sweep_runs().assign(**{"recall@10": sweep_runs()["recall@10"] + 0.02})])
    cells.loc[cells["beta"] == 0.5, "recall@10"] = np.nan
    assert line(sweep_grid(cells).axes[0], "top-k") == pytest.approx([11, np.nan, 15], nan_ok=True)


def test_sweep_refuses_levels_and_betas_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="beta above 0 for its log axis; it has down to 0"):
        sweep_grid(sweep_runs().assign(beta=0))
    with pytest.raises(ValueError, match="fractions of 1 in text_only; it has up to 25"):
        figures.sweep_grid(sweep_runs(), text_only=25, chance=0.01)


def test_close_levels_are_named_apart() -> None:
    figure = figures.sweep_grid(sweep_runs(), text_only=0.011, chance=0.01)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[1].texts]
    assert len(boxes) == 2 and not boxes[0].overlaps(boxes[1])


def test_trajectory_draws_every_column_over_the_step() -> None:
    table = steps()
    recall, wang, rank, length, hubs, places = figures.trajectory(table.iloc[::-1]).axes
    assert line(recall, "Recall@10") == pytest.approx([30, 20, 10]) and line(recall, "chance") == [1, 1, 1]
    assert line(wang, "alignment") == [1, 2, 3] and line(wang, "uniformity") == [-3, -2, -1]
    assert list(rank.lines[0].get_ydata()) == [80, 79, 78]
    assert line(length, "norm") == [10, 11, 12] and line(length, "spread") == [3, 2, 1]
    assert line(hubs, "hubness") == pytest.approx([10, 30, 50]) and line(hubs, "least possible") == [1, 1, 1]
    assert line(places, "median") == [50, 100, 150] and line(places, "chance") == [500] * 3
    assert places.get_yscale() == "log" and places.yaxis_inverted()
    bands = {found.get_label(): found.get_datalim(places.transData) for found in places.collections}
    assert (bands["10–90 %"].y0, bands["10–90 %"].y1) == pytest.approx((10, 270))
    assert (bands["25–75 %"].y0, bands["25–75 %"].y1) == pytest.approx((25, 225))


def test_trajectory_of_one_step_shows_points_and_levels() -> None:
    figure = figures.trajectory(steps(1))
    assert line(figure.axes[0], "Recall@10") == pytest.approx([30])
    assert line(figure.axes[0], "chance") == [1, 1]
    assert figure.axes[0].lines[0].get_marker() == "o"


def test_mistakes_are_multiples_of_chance_with_the_last_in_per_cent() -> None:
    figure = figures.mistakes(mistakes_of())
    first, second = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["mistake 0", "mistake 1"]
    assert first.lines[2].get_ydata() == pytest.approx([30, 0.1, 0])
    assert second.lines[2].get_ydata() == pytest.approx([30, 0.1, 0.2])
    assert line(first, "_chance") == [1, 1] and line(first, "_paper") == [0.1, 0.1]
    assert first.get_yscale() == "symlog" and first.get_ylim()[0] < 0
    assert first.texts[0].get_text() == "0.0 %" and second.texts[0].get_text() == "0.20 %"
    assert texts(figure).count("chance") == texts(figure).count("paper") == 1


def test_mistakes_fill_rows_of_three_and_only_those() -> None:
    figure = figures.mistakes(mistakes_of(4))
    assert len(figure.axes) == 4
    assert len({round(axes.get_position().y0, 3) for axes in figure.axes}) == 2
    assert [bool(axes.get_xlabel()) for axes in figure.axes] == [False, True, True, True]
    assert [bool(axes.get_ylabel()) for axes in figure.axes] == [True, False, False, True]


def test_mistakes_without_a_last_value_show_the_last_there_is() -> None:
    table = mistakes_of()
    table.loc[[2, 3, 4, 5], "recall@10"] = np.nan
    first, second = figures.mistakes(table).axes
    assert first.texts[0].get_text() == "0.10 %"
    assert second.texts[0].get_text() == "not run"


def test_mistakes_refuse_what_has_no_room() -> None:
    with pytest.raises(ValueError, match="room for 9 mistakes, got 10"):
        figures.mistakes(mistakes_of(10))
    with pytest.raises(ValueError, match="mistakes has room for 60 characters, got 61"):
        figures.mistakes(mistakes_of().assign(mistake="x" * 61))
    with pytest.raises(ValueError, match="divides by chance and needs it above 0"):
        figures.mistakes(mistakes_of().assign(chance=0))


# --------------------------------------------------------------------------------------------- dots and bars


def test_effects_are_points_under_their_factor() -> None:
    figure = figures.effects(effects_of())
    (axes,) = figure.axes
    labels = {label.get_text(): label.get_weight() for label in axes.get_yticklabels()}
    assert list(labels) == [
        "fusion (against text only)", "sum", "Q-Former", "what trains (against query projection)", "query tower",
    ]  # fmt: skip
    assert [name for name, weight in labels.items() if weight == "bold"] == [name for name in labels if "(" in name]
    (dots,) = (found for found in axes.collections if len(found.get_offsets()) == 3 and found.get_sizes()[0] > 50)
    assert dots.get_offsets()[:, 0].filled(np.nan) == pytest.approx([7, np.nan, -1], nan_ok=True)
    assert [to_hex(face) for face in dots.get_facecolor()][::2] == [figures.BLUE.lower(), "#ffffff"]
    assert intervals(axes) == pytest.approx(np.array([[5, 9], [-3, 1]]))
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches if np.isfinite(bar.get_width())]
    assert np.array(bars) == pytest.approx(np.array([[2, 8], [-5, 9]]))
    assert {"+7.0", "−1.0", "not run", "difference in Recall@10 (points)"} <= set(texts(figure))


def test_effects_refuse_per_cent_and_two_comparisons_in_one_factor() -> None:
    with pytest.raises(ValueError, match="differences of fractions of 1; it has 7"):
        figures.effects(effects_of().assign(difference=7.0))
    mixed = effects_of().assign(against=["text_only", "query_projection", "slerp"])
    with pytest.raises(ValueError, match="levels of fusion against one level"):
        figures.effects(mixed)


def test_negative_quality_has_two_bars_a_row_and_says_what_they_are() -> None:
    figure = figures.negative_quality(qualities())
    (axes,) = figure.axes
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert np.array(widths) == pytest.approx(np.array([[0.4, 55], [1, np.nan]]), nan_ok=True)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["random", "top-k"]
    mined = figures.negative_quality(qualities().assign(fusion=["sum", "qformer"])).axes[0]
    assert [label.get_text() for label in mined.get_yticklabels()] == ["sum: random", "Q-Former: top-k"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "also satisfies the edit (false negative)",
        "one attribute off the target (useful)",
    ]
    assert {"0.40 %", "55.0 %", "1.0 %", "not run"} <= set(texts(figure))


def test_recipe_dots_show_recall_intervals_and_time() -> None:
    figure = figures.recipe_dots(recipes())
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["text only", "DPO", "unrun"]
    assert intervals(axes)[:2] == pytest.approx(np.array([[20, 30], [0, 0.1]]))
    assert list(axes.collections[-1].get_offsets()[:2, 0]) == pytest.approx([25, 0.02])
    wanted = {"25.0 %", "0.02 %", "not run", "–", "3 min 20 s", "1 h 5 min", "training time", "Recall@10"}
    assert wanted <= set(texts(figure))
    assert "Recall@50 (%)" in texts(figures.recipe_dots(recipes(), metric="recall@50"))
    with pytest.raises(ValueError, match="recipe_dots has room for 60 characters, got 61"):
        figures.recipe_dots(recipes().assign(method="x" * 61))


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.24, "4.2 s"), (42, "42 s"), (59.7, "1 min 0 s"), (3600, "1 h 0 min"), (np.nan, "–")]
)
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert text in texts(figures.recipe_dots(recipes().assign(seconds=seconds)))


# ---------------------------------------------------------------------------------------------------- heatmap


def test_factorial_map_averages_repetitions_and_leaves_blanks() -> None:
    figure = factorial_map(factorial_runs())
    axes = figure.axes[0]
    shown = np.ma.filled(axes.collections[0].get_array().reshape(3, 3), np.nan)
    nan = np.nan
    assert shown == pytest.approx(np.array([[nan, 15, nan], [nan, nan, 40], [5, nan, nan]]), nan_ok=True)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["top-k", "re-mined", "in-batch"]
    rows = ["query projection", "both towers", "query projection"]
    assert [label.get_text() for label in axes.get_yticklabels()] == rows
    said = [" ".join(text.get_text().split()) for text in axes.texts]
    assert said == ["15.0", "40.0", "5.0", "DPO, sigmoid", "InfoNCE, in-batch", "Q-Former", "text only"]


def test_factorial_map_numbers_can_be_read_on_their_cell() -> None:
    axes = factorial_map(factorial_runs()).axes[0]
    assert [to_hex(text.get_color()) for text in axes.texts[1:3]] == [figures.INK, "#ffffff"]  # of yellow, of violet


def test_factorial_map_marks_chance_on_the_colour_bar() -> None:
    _, bar = factorial_map(factorial_runs()).axes
    assert line(bar, "chance") == [2, 2]
    labels = [label.get_text() for label in bar.get_yticklabels()]
    assert "2.0 chance" in labels and "0" not in labels  # 0 would lie under it
    with pytest.raises(ValueError, match="fractions of 1 in chance"):
        figures.factorial_map(factorial_runs(), chance=2.0)


# --------------------------------------------------------------------------------------------- every figure

FIGURES: dict[str, tuple[Callable[[pd.DataFrame], Figure], pd.DataFrame, str]] = {
    "sweep_grid": (sweep_grid, sweep_runs(), "sampling"),
    "trajectory": (figures.trajectory, steps(), "rank_25"),
    "mistakes": (figures.mistakes, mistakes_of(), "chance"),
    "effects": (figures.effects, effects_of(), "q75"),
    "factorial_map": (factorial_map, factorial_runs(), "objective"),
    "negative_quality": (figures.negative_quality, qualities(), "satisfies_edit"),
    "recipe_dots": (figures.recipe_dots, recipes(), "seconds"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_missing_column_is_one_clear_error(name: str) -> None:
    draw, table, column = FIGURES[name]
    have = ", ".join(other for other in table.columns if other != column)
    message = f"{name} needs the column(s) {column}; the table has: {have}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        draw(table.drop(columns=column))


@pytest.mark.parametrize("name", FIGURES)
def test_an_empty_table_is_an_error(name: str) -> None:
    draw, table, _ = FIGURES[name]
    with pytest.raises(ValueError, match=f"{name} got a table without rows"):
        draw(table.iloc[:0])


@pytest.mark.parametrize("rows", [slice(None), slice(1), slice(-1, None)], ids=["all", "first", "last"])
@pytest.mark.parametrize("name", FIGURES)
def test_any_rows_are_drawn_without_a_warning_and_left_as_they_were(
    name: str, rows: slice, recwarn: pytest.WarningsRecorder
) -> None:
    draw, table, _ = FIGURES[name]
    before = table.copy(deep=True)
    draw(table.iloc[rows]).canvas.draw()
    assert not [str(warning.message) for warning in recwarn]
    assert plt.get_fignums() == []
    pd.testing.assert_frame_equal(table, before)


@pytest.mark.parametrize("name", FIGURES)
def test_a_table_of_nan_is_drawn(name: str, recwarn: pytest.WarningsRecorder) -> None:
    draw, table, _ = FIGURES[name]
    measured = [
        column for column in table.select_dtypes("number") if column not in {"beta", "step", "chance", "gallery"}
    ]
    draw(table.assign(**dict.fromkeys(measured, np.nan))).canvas.draw()
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize("name", FIGURES)
def test_saved_figures_are_the_same_to_the_byte(name: str, tmp_path: Path) -> None:
    draw, table, _ = FIGURES[name]
    for file in ("first.png", "second.png"):
        save(draw(table), tmp_path / file)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
