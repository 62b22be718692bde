"""Plots of the failure analysis: what is drawn of groups, reasons, exchanges and attributes."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from cirlib import figures
from cirlib.figures import style
from cirlib.study.method_registry import METHODS


def groups(*names: str) -> pd.DataFrame:
    count = len(names)
    numbers = {"queries": [10] * count, "value": np.linspace(0.2, 0.8, count)}
    return pd.DataFrame({"group": names} | numbers).assign(ci_low=0.1, ci_high=0.9, chance=0.05)


def test_kinds_stand_best_first_with_their_number_and_chance(texts):
    figure = figures.kind_bars(groups("colour", "fit"), method="qformer", overall=0.4, context="here")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fit  (n = 10)", "colour  (n = 10)"]
    assert {"80.0", "20.0", "Recall@10 by kind of edit: Q-Former"} <= set(texts(figure))
    assert any(text.startswith("here · ") and "dotted: all queries, 40.0 %" in text for text in texts(figure))
    assert {to_hex(bar.get_facecolor()) for bar in axes.patches} == {METHODS["qformer"].colour.lower()}
    (chance,) = (found for found in axes.collections if found.get_label() == "chance")
    assert [segment[0, 0] for segment in chance.get_segments()] == pytest.approx([5, 5])


def test_what_is_asked_has_a_panel_each_and_names_its_method(texts):
    table = pd.concat([groups("1", "2").assign(by="words"), groups("a", "b", "c").assign(by="things")])
    figure = figures.recall_by(table, method="slerp")
    assert "Recall@10 by what is asked: slerp" in texts(figure)
    assert [axes.get_xlabel() for axes in figure.axes] == ["words", "things"]
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
    assert [np.round(each, 6).tolist() for each in heights] == [[20, 80], [20, 50, 80]]


def test_reasons_have_a_bar_a_method_in_its_own_colour_and_none_where_no_miss_has_them(texts):
    rows = [(m, r, 5, 0.5, 0.4, 0.6) for m in ("sum", "qformer") for r in ("ignored the edit", "near miss")]
    rows += [(m, "arguably right too", 0, 0.0, 0.0, 0.0) for m in ("sum", "qformer")]
    table = pd.DataFrame(rows, columns=["method", "reason", "misses", "value", "ci_low", "ci_high"])
    figure = figures.reason_bars(table)
    (axes,), (legend,) = figure.axes, figure.legends
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ignored the edit", "near miss"]
    assert any("no miss is “arguably right too”" in text for text in texts(figure))
    assert [text.get_text() for text in legend.get_texts()] == ["weighted sum  (10 misses)", "Q-Former  (10 misses)"]
    colours = [to_hex(bar.get_facecolor()) for bar in axes.patches]
    assert colours == [METHODS[name].colour.lower() for name in ("sum", "sum", "qformer", "qformer")]


def test_exchanges_say_counts_difference_and_p_in_the_methods_colours(texts):
    row = {"first": "sum", "second": "qformer", "both": 50, "only_first": 5, "only_second": 35, "neither": 10}
    figure = figures.exchange_bars(pd.DataFrame([row | {"difference": 0.3, "p": 0.0001, "p_holm": 0.0002}]))
    said = texts(figure)
    bars = figure.axes[0].patches
    assert [to_hex(bar.get_facecolor()) for bar in bars] == [
        METHODS[name].colour.lower() for name in ("sum", "qformer")
    ]
    assert [bar.get_width() for bar in bars] == pytest.approx([-5, 35])
    assert {"weighted sum (both 50, neither 10)", "Q-Former (+30.0 points, p < 0.001)", "5", "35"} <= set(said)


def test_confusions_have_a_panel_an_attribute_and_say_the_share_that_is_right(texts):
    table = pd.DataFrame([[3, 1], [0, 4]], index=["red", "blue"], columns=["red", "blue"])
    figure = figures.confusion_maps({"colour": table, "second_colour": table.iloc[:1, :1]}, method="slerp")
    assert "Attributes wanted and found first: slerp" in texts(figure)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["colour: 87.5 % right, chance 50.0 %", "second colour: 100.0 % right, chance 100.0 %"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["75", "25", "", "100"]
    assert [text.get_color() for text in figure.axes[0].texts] == ["white", style.INK, style.INK, "white"]


def test_a_confusion_of_many_values_says_from_where_on_its_cells_are_numbered(texts):
    names = [f"v{number}" for number in range(12)]
    many = pd.DataFrame(np.eye(12, dtype=int) * 19 + 1, index=names, columns=names)
    figure = figures.confusion_maps({"colour": many})
    assert any("of many values from 10 % on" in text for text in texts(figure))
    assert {text.get_text() for text in figure.axes[0].texts} == {"65", ""}
