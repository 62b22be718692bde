"""The figures of the DPO study draw what stands in the committed tables, and small ones that have gaps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from cirlib import figures
from cirlib.figures import style

RESULTS = Path(__file__).resolve().parents[2] / "results" / "garments" / "dpo_grid" / "full"


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / f"{name}.csv")


def line(axes: Axes, label: str) -> list[float]:
    (found,) = (line for line in axes.lines if line.get_label() == label)
    return list(np.asarray(found.get_ydata(), dtype=float))


def test_sweep_has_a_panel_an_index_and_a_line_a_sampling_that_averages_and_leaves_gaps(texts):
    runs = [
        (index, sampling, beta) for index in ("flat", "hnsw") for sampling in ("top", "random") for beta in (0.5, 5)
    ]
    cells = pd.DataFrame(runs, columns=["index", "sampling", "beta"])
    cells["recall@10"] = 0.1 + 0.02 * (cells["beta"] == 5) + 0.1 * (cells["sampling"] == "random")
    cells = pd.concat([cells, cells.assign(**{"recall@10": cells["recall@10"] + 0.02})], ignore_index=True)
    cells.loc[(cells["index"] == "hnsw") & (cells["beta"] == 5), "recall@10"] = np.nan
    cells = cells.assign(ci_low=0.05, ci_high=0.25)
    figure = figures.sweep_grid(cells, text_only=0.25, chance=0.01, context="garments")
    flat, hnsw = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["flat", "hnsw"]
    assert line(flat, "top-k") == pytest.approx([11, 13]) and line(flat, "random") == pytest.approx([21, 23])
    assert line(hnsw, "top-k") == pytest.approx([11, np.nan], nan_ok=True)
    bands = [band.get_paths()[0].vertices[:, 1] for band in flat.collections]
    assert [[band.min(), band.max()] for band in bands] == [pytest.approx([5, 25])] * 2
    assert line(flat, "text only, zero-shot: 25.0 %") == [25, 25] and line(flat, "chance: 1.0 %") == [1, 1]
    assert flat.get_xscale() == "log" and flat.get_ylim()[0] == 0
    assert any("garments" in text for text in texts(figure))


def test_trajectory_draws_every_column_over_the_step():
    steps = table("trajectory")
    recall, wang, rank, length, hubs, places = figures.trajectory(steps.iloc[::-1]).axes
    chance, gallery = 100 * steps["chance"][0], steps["gallery"][0]
    assert line(recall, "recall@10") == pytest.approx(100 * steps["recall@10"])
    assert line(recall, "chance") == pytest.approx([chance] * 2) and line(places, "chance") == [gallery / 2] * 2
    assert line(hubs, "hubness") == pytest.approx(100 * steps["hubness"])
    assert line(hubs, "least possible") == pytest.approx([1000 / gallery] * 2)
    for axes, column in zip((wang, wang, rank, length, length), steps.columns[3:8], strict=True):
        assert line(axes, column.replace("_", " ")) == pytest.approx(steps[column])
    assert line(places, "median") == pytest.approx(steps["rank_50"])
    assert places.get_yscale() == "log" and places.yaxis_inverted()
    bands = {found.get_label(): found.get_datalim(places.transData) for found in places.collections}
    for band, low, high in (("10–90 %", "rank_10", "rank_90"), ("25–75 %", "rank_25", "rank_75")):
        assert (bands[band].y0, bands[band].y1) == pytest.approx((steps[low].min(), steps[high].max()))


def test_mistakes_are_multiples_of_chance_with_the_last_in_per_cent():
    recalls = {"first": [0.3, 0.001, 0.002], "second": [np.nan, 0.001, np.nan], "third": [np.nan] * 3}
    rows = [(name, 50 * i, recall) for name, values in recalls.items() for i, recall in enumerate(values)]
    figure = figures.mistakes(pd.DataFrame(rows, columns=["mistake", "step", "recall@10"]).assign(chance=0.01))
    first = figure.axes[0]
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(recalls)
    assert first.lines[0].get_ydata() == pytest.approx([30, 0.1, 0.2])
    assert line(first, "chance") == [1, 1] and line(first, "the paper's result") == [0.1, 0.1]
    assert first.get_yscale() == "symlog" and first.get_ylim()[0] < 0
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["0.20 %", "0.10 %", "not run"]


def test_effects_are_points_under_their_factor_hollow_where_the_interval_holds_0(texts):
    effects = table("effects")
    effects.loc[len(effects)] = effects.iloc[-1].copy()
    effects.loc[len(effects) - 1, ["difference", "ci_low", "ci_high", "q25", "q75"]] = np.nan
    figure = figures.effects(effects)
    (axes,) = figure.axes
    labels = axes.get_yticklabels()
    headings = [label.get_text() for label in labels if label.get_weight() == "bold"]
    assert headings[0] == "fusion (against text only)" and len(headings) == effects["factor"].nunique()
    own = [i for i, label in enumerate(labels) if label.get_weight() != "bold"]
    (dots,) = (found for found in axes.collections if len(found.get_offsets()) == len(labels))
    drawn = dots.get_offsets()[:, 0].filled(np.nan)[own]
    assert drawn == pytest.approx(100 * effects["difference"].to_numpy(), nan_ok=True)
    hollow = (effects["ci_low"] <= 0) & (effects["ci_high"] >= 0)
    faces = np.where(hollow, "#ffffff", style.BLUE.lower())
    assert [to_hex(dots.get_facecolor()[i]) for i in own] == list(faces) and 0 < hollow.sum() < len(effects) - 1
    (found,) = (found for found in axes.collections if found.get_label() == "_interval")
    ends = np.array([segment[:, 0] for segment in found.get_segments() if len(segment)])
    assert ends == pytest.approx(100 * effects[["ci_low", "ci_high"]].dropna().to_numpy())
    assert {style.points(effects["difference"][0]), "not run", "difference in Recall@10 (points)"} <= set(texts(figure))


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


def test_factorial_map_averages_repetitions_leaves_blanks_and_marks_chance():
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
    assert line(bar, "chance") == [2, 2]
