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


def test_effects_have_a_panel_a_fusion_and_switch_with_an_interval_each_hollow_where_it_holds_0(texts):
    nan = np.nan
    rows = [
        ("change", "query_tower", "own start", "sum", "top", 0.2, -0.1, -0.12, -0.08),
        ("change", "query_tower", "own start", "sum", "random", 0.2, 0.01, -0.01, 0.03),
        ("change", "query_tower", "own start", "sum", "remined", 0.2, 0.9, 0.8, 0.95),
        ("trains", "query_projection", "query_tower", "sum", "top", 0.2, nan, nan, nan),
        ("trains", "query_projection", "query_tower", "qformer", "top", 0.04, 0.0005, 0.0002, 0.0008),
    ]
    names = ["factor", "level", "against", "fusion", "within", "start", "difference", "ci_low", "ci_high"]
    figure = figures.effects(pd.DataFrame(rows, columns=names), context="garments")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "DPO: change", "not run", "what trains: instead of query tower", "what trains: instead of query tower",
    ]  # fmt: skip
    assert {"weighted sum 20.0 % before", "Q-Former, pretrained only 4.0 % before"} <= set(texts(figure))
    intervals = [
        [line.get_xdata().tolist() for line in axes.lines if line.get_label() == "_interval"] for axes in figure.axes
    ]
    assert intervals == [[pytest.approx([-12, -8]), pytest.approx([-1, 3])], [], [], [pytest.approx([0.02, 0.08])]]
    marks = {line.get_label(): line for line in figure.axes[0].lines}
    assert to_hex(marks["_top"].get_markerfacecolor()) == style.ORANGE.lower()
    assert marks["_random"].get_markerfacecolor() == "white"
    assert {"−10.0", "+1.0", "+0.1", "query tower"} <= set(texts(figure)) and "+90.0" not in texts(figure)
    assert figure.axes[0].get_xlim() != figure.axes[3].get_xlim()  # each its own scale


def test_recipes_are_paired_differences_under_what_they_are_held_against(texts):
    gains = {"difference": [0.02, np.nan, 0.01], "ci_low": [0.01, np.nan, -0.01], "ci_high": [0.03, np.nan, 0.02]}
    rest = {"start": 0.5, "value": [0.52, np.nan, 0.53]}
    against = ["the fine-tuned Q-Former", "the fine-tuned Q-Former", "DPO"]
    figure = figures.recipe_gains(pd.DataFrame({"method": ["DPO", "unrun", "sum"], "against": against} | gains | rest))
    (axes,) = figure.axes
    weights = {label.get_text(): label.get_weight() for label in axes.get_yticklabels()}
    assert weights == {
        "against the fine-tuned Q-Former (50.0 %)": "bold", "DPO": "normal", "unrun": "normal", "against DPO": "bold",
        "weighted sum": "normal",
    }  # fmt: skip
    (found,) = (found for found in axes.collections if found.get_label() == "_interval")
    ends = np.array([segment[:, 0] for segment in found.get_segments() if len(segment)])
    assert ends == pytest.approx(np.array([[1, 3], [-1, 2]]))
    assert {"+2.0 → 52.0 %", "not run", "+1.0 → 53.0 %"} <= set(texts(figure))


def test_factorial_map_shows_changes_on_one_scale_around_0_and_only_what_a_fusion_trained():
    rows = [
        ("qformer", "query_tower", "info_nce_in_batch", "in-batch", 0.2),
        ("qformer", "query_projection", "dpo sigmoid", "remined", 0.1),
        ("qformer", "query_projection", "dpo sigmoid", "remined", 0.2),
        ("text_only", "query_projection", "dpo sigmoid", "top", -0.05),
        ("text_only", "query_projection", "info_nce_in_batch", "in-batch", np.nan),
    ]
    cells = pd.DataFrame(rows, columns=["fusion", "trains", "objective", "negatives", "change"])
    cells["start_recall@10"] = cells["fusion"].map({"qformer": 0.3, "text_only": 0.075})
    fused, text, bar = figures.factorial_map(cells).axes
    nan = np.nan
    shown = [np.ma.filled(axes.collections[0].get_array().reshape(-1, 3), nan) for axes in (fused, text)]
    assert shown[0] == pytest.approx(np.array([[20, nan, nan], [nan, 15, nan]]), nan_ok=True)
    assert shown[1] == pytest.approx(np.array([[nan, nan, -5]]), nan_ok=True)
    assert [axes.collections[0].get_clim() for axes in (fused, text)] == [(-20, 20)] * 2
    columns = ["InfoNCE, in-batch", "DPO, sigmoid: re-mined", "DPO, sigmoid: top-k"]
    assert [label.get_text() for label in text.get_xticklabels()] == columns
    titles = ["Q-Former, pretrained only: 30.0 % before", "text only: 7.5 % before"]
    assert [axes.get_title(loc="left") for axes in (fused, text)] == titles
    assert [text.get_text() for text in fused.texts] == ["+20.0", "+15.0"]
    ticks = [label.get_text() for label in bar.get_yticklabels()]
    assert ticks == ["−1", "−3", "−10", "+1", "+3", "+10", "0"]
