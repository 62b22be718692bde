"""Recall in bars: values, intervals and chance of every group, and nothing compared that cannot be."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from cirlib import figures
from cirlib.figures.style import FigureError


def summary_of(methods: tuple[str, ...] = ("sum", "qformer"), protocol: str = "original") -> pd.DataFrame:
    """Recall@1 and @10 of dress, shirt and the mean; the same numbers in every category but the gallery."""
    galleries = {"mean": 450, "dress": 400, "shirt": 500}
    rows = [
        (method, category, f"recall@{k}", value + 0.1 * i, galleries[category], k / galleries[category])
        for (i, method), category, (k, value) in product(enumerate(methods), galleries, ((1, 0.2), (10, 0.4)))
    ]
    table = pd.DataFrame(rows, columns=["method", "category", "metric", "value", "gallery", "chance"])
    limits = {"ci_low": table["value"] - 0.05, "ci_high": table["value"] + 0.03}
    return table.assign(queries=1200, protocol=protocol, complete=True, **limits)


def test_recall_bars_show_values_intervals_and_chance_of_each_category(texts):
    figure = figures.recall_bars(summary_of())
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([40] * 3 + [50] * 3)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["dress", "shirt", "mean"]
    (chance,) = (lines for lines in axes.collections if lines.get_label() == "chance")
    assert [segment[0, 1] for segment in chance.get_segments()] == pytest.approx([2.5, 2.0, 1000 / 450])
    shown = " ".join(texts(figure))
    for text in ("Recall@10", "Q-Former", "protocol: original", "1,200 queries", "400–500 gallery", "95 %", "40.0"):
        assert text in shown


def test_recall_bars_mark_an_incomplete_gallery_and_leave_out_what_is_missing(texts):
    summary = summary_of()
    summary.loc[summary["category"] == "dress", "complete"] = False
    shown = texts(figures.recall_bars(summary))
    assert "dress *" in shown and "shirt" in shown
    assert any("* gallery incomplete" in text for text in shown)
    gone = (summary["method"] == "qformer") & (summary["category"] == "dress")
    assert texts(figures.recall_bars(summary[~gone])).count("50.0") == 2


def test_recall_bars_refuse_what_cannot_be_compared():
    mixed = pd.concat([summary_of(), summary_of(("slerp",), protocol="val_split")])
    with pytest.raises(FigureError, match="one protocol, the table has original, val_split"):
        figures.recall_bars(mixed)
    with pytest.raises(ValueError, match="duplicate"):
        figures.recall_bars(pd.concat([summary_of(), summary_of(("sum",))]))


def test_before_after_shows_the_two_recalls_of_each_k(texts):
    summary = summary_of()
    summary.loc[summary["method"] == "qformer", ["value", "ci_low", "ci_high"]] = [0.0002, 0.0, 0.001]
    figure = figures.recall_before_after(summary, "sum", "qformer")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([20, 40, 0.02, 0.02])
    (chance,) = (lines for lines in axes.collections if lines.get_label() == "chance")
    assert [segment[0, 0] for segment in chance.get_segments()] == pytest.approx([100 / 450, 1000 / 450])
    assert {"weighted sum → Q-Former", "Recall@1", "Recall@10", "40.0 %", "0.02 %", "chance"} <= set(texts(figure))
    with pytest.raises(KeyError, match="dpo"):
        figures.recall_before_after(summary, "sum", "dpo")


def test_protocol_bars_keep_the_order_and_shorten_the_rule():
    rules = ["original gallery, reference kept, captions joined: and", "val split gallery, captions: first"]
    numbers = {"value": [0.3, 0.5], "ci_low": [0.25, 0.4], "ci_high": [0.4, 0.55], "chance": [0.01, 0.02]}
    (axes,) = figures.protocol_bars(pd.DataFrame({"protocol": ["original", "VAL"], "rule": rules} | numbers)).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["original  (original · kept · and)", "VAL  (val split · first)"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([30, 50])


def test_paper_vs_ours_groups_sources_and_says_what_was_not_run(texts):
    rows = [
        ("ours_unrun", "ours", np.nan, "original"),
        ("SPRC", "published", 0.547, "VAL split"),
        ("Retrieval-DPO", "paper", 0.0002, "not stated"),
        ("Q-Former", "paper", 0.454, "not stated"),
    ]
    table = pd.DataFrame(rows, columns=["method", "source", "recall@10", "protocol"])
    figure = figures.paper_vs_ours(table)
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["Q-Former", "Retrieval-DPO", "SPRC", "ours unrun"]
    assert {"not run", "0.02", "45.4", "VAL split", "original", "the paper", "this study"} <= set(texts(figure))
    assert len({to_hex(bar.get_facecolor()) for bar in axes.patches}) == 3
    with pytest.raises(ValueError, match="blog"):
        figures.paper_vs_ours(table.replace("published", "blog"))
