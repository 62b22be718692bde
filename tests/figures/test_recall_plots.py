"""Recall in bars: values, intervals and chance of every group, and nothing compared that cannot be."""

from itertools import pairwise, product

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
    assert [axes.get_title("left") for axes in figure.axes] == ["dress", "shirt", "mean"]
    for axes, chance in zip(figure.axes, (2.5, 2.0, 1000 / 450), strict=True):
        assert [bar.get_width() for bar in axes.patches] == pytest.approx([40, 50])
        assert [to_hex(bar.get_facecolor()) for bar in axes.patches] == ["#0072b2", "#e69f00"]
        (line,) = (line for line in axes.lines if line.get_label() == "chance")
        assert line.get_xdata() == pytest.approx([chance] * 2)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["weighted sum", "Q-Former"]
    shown = " ".join(texts(figure))
    for text in (
        "Recall@10",
        "Q-Former",
        "protocol: original",
        "1,200 queries a category",
        "among 400–500",
        "95 %",
        "40.0",
    ):
        assert text in shown


def test_recall_bars_mark_an_incomplete_gallery_and_say_what_was_not_run(texts):
    summary = summary_of()
    summary.loc[summary["category"] == "dress", "complete"] = False
    shown = texts(figures.recall_bars(summary))
    assert "dress *" in shown and "shirt" in shown
    assert any("* gallery incomplete" in text for text in shown)
    gone = (summary["method"] == "qformer") & (summary["category"] == "dress")
    shown = texts(figures.recall_bars(summary[~gone]))
    assert (shown.count("50.0"), shown.count("not run")) == (2, 1)


def test_ten_methods_stand_in_rows_that_do_not_touch():
    summary = summary_of(tuple(f"method_{i}" for i in range(10)))
    figure = figures.recall_bars(summary.assign(value=0.5, ci_low=0.4, ci_high=0.6))
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == 10 and all(upper.y0 > lower.y1 for upper, lower in pairwise(boxes))


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
    assert {
        "Recall before and after training: weighted sum → Q-Former",
        "Recall@1",
        "Recall@10",
        "40.0 %",
        "0.02 %",
        "chance",
    } <= set(texts(figure))
    with pytest.raises(KeyError, match="dpo"):
        figures.recall_before_after(summary, "sum", "dpo")


def test_protocol_bars_keep_the_order_shorten_the_rule_and_draw_what_is_the_same_once(texts):
    rules = ["original gallery, reference kept, captions joined: and", "val split gallery, captions: first"]
    numbers = {"value": [0.3, 0.5, 0.3], "ci_low": 0.25, "ci_high": 0.55, "chance": 0.01, "queries": 1200}
    used_by = ["CLIP4Cir, SPRC", "older papers", "MagicLens (which strips)"]
    table = pd.DataFrame({"used_by": used_by, "rule": [*rules, rules[0]]} | numbers)
    figure = figures.protocol_bars(table.assign(gallery=[3000, 600, 2999]), method="sum")
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    first = "original gallery, reference kept\ncaptions joined by “and”  (CLIP4Cir, MagicLens)"
    assert labels == [first, "val split gallery\ncaptions: first  (older papers)"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([30, 50])
    assert any("1,200 queries" in text for text in texts(figure))
    assert "What the protocol alone is worth: weighted sum" in texts(figure)
    number, beside = axes.texts[-1].get_window_extent(), axes.child_axes[0].get_yticklabels()[-1].get_window_extent()
    assert number.x1 + 8 < beside.x0


def test_paper_vs_ours_keeps_data_and_training_apart_and_says_what_was_not_run(texts):
    nan = np.nan
    rows = [
        ("unrun", "ours", False, "garments", nan, nan, nan, "original"),
        ("sum", "ours", False, "garments", 0.3, nan, nan, "original"),
        ("qformer", "ours", True, "garments", 0.9, nan, nan, "original"),
        ("SPRC", "published", True, "fashioniq", 0.547, nan, nan, "VAL split"),
        ("Pic2Word", "published", False, "fashioniq", 0.247, nan, nan, "original"),
        ("separate encoders", "paper", False, "fashioniq", nan, 0.2, 0.25, "not stated"),
        ("Retrieval-DPO", "paper", True, "fashioniq", 0.0002, nan, nan, "not stated"),
    ]
    columns = ["method", "source", "trained", "data", "recall@10", "recall@10/from", "recall@10/to", "protocol"]
    table = pd.DataFrame(rows, columns=columns)
    figure = figures.paper_vs_ours(table)
    names = {axes.get_title("left"): [label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes}
    assert names == {
        "zero-shot, on garments (original)": ["weighted sum"],
        "zero-shot, on FashionIQ": ["separate encoders", "Pic2Word"],
        "trained, on garments (original)": ["Q-Former"],
        "trained, on FashionIQ": ["SPRC", "Retrieval-DPO"],
    }
    ranged = next(bar for bar in figure.axes[1].patches if bar.get_x() > 0)
    assert (ranged.get_x(), ranged.get_width()) == pytest.approx((20, 5))
    assert len({axes.get_xlim() for axes in figure.axes}) == 1  # bars of all panels compare in length
    assert {"0.02", "54.7", "VAL split", "the paper", "this study", "other publications"} <= set(texts(figure))
    assert any("not run: unrun" in text for text in texts(figure)) and "not run" not in texts(figure)
    with pytest.raises(KeyError, match="blog"):
        figures.paper_vs_ours(table.replace("published", "blog"))
