"""The figures of the DPO study draw what stands in small tables that have gaps."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from cirlib import figures
from cirlib.figures import style


def test_sweep_has_a_panel_an_index_and_a_line_a_sampling_that_averages_and_leaves_gaps(texts, lines):
    runs = product(["flat", "hnsw"], ["top", "random"], [0.5, 5])
    cells = pd.DataFrame(runs, columns=["index", "sampling", "beta"])
    cells["recall@10"] = 0.1 + 0.02 * (cells["beta"] == 5) + 0.1 * (cells["sampling"] == "random")
    cells = pd.concat([cells, cells.assign(**{"recall@10": cells["recall@10"] + 0.02})], ignore_index=True)
    cells.loc[(cells["index"] == "hnsw") & (cells["beta"] == 5), "recall@10"] = np.nan
    cells = cells.assign(ci_low=0.05, ci_high=0.25)
    figure = figures.sweep_grid(cells, text_only=0.25, chance=0.01, context="garments")
    flat, hnsw = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["flat", "hnsw"]
    levels = {"text only, zero-shot: 25.0 %": [25, 25], "chance: 1.0 %": [1, 1]}
    assert lines(flat) == {"top-k": pytest.approx([11, 13]), "random": pytest.approx([21, 23])} | levels
    assert lines(hnsw)["top-k"] == pytest.approx([11, np.nan], nan_ok=True)
    bands = [band.get_paths()[0].vertices[:, 1] for band in flat.collections]
    assert [[band.min(), band.max()] for band in bands] == [pytest.approx([5, 25])] * 2
    assert flat.get_xscale() == "log" and flat.get_ylim()[0] == 0
    assert any("garments" in text for text in texts(figure))


def test_effects_are_points_under_their_factor_hollow_where_the_interval_holds_0(texts):
    nan = np.nan
    rows = [
        ("fusion", "sum", 0.02, 0.01, 0.03),
        ("fusion", "qformer", -0.01, -0.02, 0.005),
        ("trains", "both_towers", nan, nan, nan),
    ]
    effects = pd.DataFrame(rows, columns=["factor", "level", "difference", "ci_low", "ci_high"])
    figure = figures.effects(effects.assign(against="text_only", q25=-0.03, q75=0.04))
    (axes,) = figure.axes
    weights = {label.get_text(): label.get_weight() for label in axes.get_yticklabels()}
    headings = ["fusion (against text only)", "what trains (against text only)"]
    assert weights == dict.fromkeys(headings, "bold") | dict.fromkeys(
        ["weighted sum", "Q-Former", "both towers"], "normal"
    )
    dots = axes.collections[-1]
    assert dots.get_offsets()[:, 0].filled(nan) == pytest.approx(np.array([nan, 2, -1, nan, nan]), nan_ok=True)
    assert [to_hex(face) for face in dots.get_facecolor()[1:3]] == [style.BLUE.lower(), "#ffffff"]
    (found,) = (found for found in axes.collections if found.get_label() == "_interval")
    ends = np.array([segment[:, 0] for segment in found.get_segments() if len(segment)])
    assert ends == pytest.approx(np.array([[1, 3], [-2, 0.5]]))
    assert {(bar.get_x(), bar.get_width()) for bar in axes.patches if bar.get_width() > 0} == {(-3, 7)}
    assert {"+2.0", "−1.0", "not run", "difference in Recall@10 (points)"} <= set(texts(figure))


def test_negative_quality_has_two_bars_a_row_and_says_what_they_are(texts):
    shares = {"satisfies_edit": [0.004, 0.55], "differs_in_one": [0.01, np.nan]}
    figure = figures.negative_quality(
        pd.DataFrame({"fusion": ["sum", "qformer"], "negatives": ["random", "top"]} | shares)
    )
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.4, 55, 1, 0])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["weighted sum: random", "Q-Former: top-k"]
    assert {"also satisfies the edit (false negative)", "one attribute off the target (useful)"} <= set(texts(figure))
    assert {"0.40 %", "55.0 %", "1.0 %", "not run"} <= set(texts(figure))


def test_recipes_show_recall_and_time(texts):
    recall = {"value": [0.25, 0.0002, np.nan], "ci_low": [0.2, 0.0, np.nan], "ci_high": [0.3, 0.001, np.nan]}
    rest = {"chance": 0.01, "seconds": [np.nan, 42.04, 3900]}
    figure = figures.recipe_bars(pd.DataFrame({"method": ["text_only", "DPO", "unrun"]} | recall | rest))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["text only", "DPO", "unrun"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([25, 0.02, 0])
    assert {"25.0", "0.02", "not run", "–", "42.0 s", "65.0 min"} <= set(texts(figure))


def test_factorial_map_averages_repetitions_leaves_blanks_and_marks_chance(lines):
    rows = [
        ("qformer", "both_towers", "info_nce_in_batch", "in-batch", 0.4),
        ("qformer", "query_projection", "dpo sigmoid", "remined", 0.1),
        ("qformer", "query_projection", "dpo sigmoid", "remined", 0.2),
        ("text_only", "query_projection", "dpo sigmoid", "top", 0.05),
        ("text_only", "query_projection", "info_nce_in_batch", "in-batch", np.nan),
    ]
    cells = pd.DataFrame(rows, columns=["fusion", "trains", "objective", "negatives", "recall@10"])
    axes, bar = figures.factorial_map(cells, chance=0.02).axes
    shown = np.ma.filled(axes.collections[0].get_array().reshape(3, 3), np.nan)
    nan = np.nan
    assert shown == pytest.approx(np.array([[40, nan, nan], [nan, 15, nan], [nan, nan, 5]]), nan_ok=True)
    columns = ["InfoNCE, in-batch: in-batch", "DPO, sigmoid: re-mined", "DPO, sigmoid: top-k"]
    assert [label.get_text() for label in axes.get_xticklabels()] == columns
    places = ["Q-Former: both towers", "Q-Former: query projection", "text only: query projection"]
    assert [label.get_text() for label in axes.get_yticklabels()] == places
    assert [text.get_text() for text in axes.texts] == ["40.0", "15.0", "5.0"]
    assert lines(bar)["chance"] == [2, 2]
