"""Trajectories and mistakes: what is drawn where, with which interval."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from cirlib import figures
from cirlib.figures import style
from cirlib.figures.outcome_plots import CURVES


def test_trajectory_has_a_panel_a_quantity_with_its_bands(lines):
    rng = np.random.default_rng(0)
    names = [*CURVES, "ci_low", "ci_high", "chance", "rank_10", "rank_25", "rank_75", "rank_90"]
    steps = pd.DataFrame({"step": [0, 5, 10], "gallery": 500, **{name: rng.random(3) for name in names}})
    panels = dict(zip(CURVES, figures.trajectory(steps.iloc[::-1]).axes, strict=True))
    for column, axes in panels.items():
        scale = 100 if column in ("recall@10", "hubness") else 1
        assert axes.lines[0].get_ydata() == pytest.approx(scale * steps[column])
    assert lines(panels["recall@10"])["chance"] == pytest.approx([100 * steps["chance"].mean()] * 2)
    assert lines(panels["hubness"])["least possible"] == [2, 2]
    assert lines(panels["rank_50"])["chance"] == [250, 250]
    assert panels["rank_50"].get_yscale() == "log" and panels["rank_50"].yaxis_inverted()
    bands = {"rank_50": ["10–90 %", "25–75 %"], "recall@10": ["95 % interval"]}
    assert {c: [one.get_label() for one in axes.collections] for c, axes in panels.items() if axes.collections} == bands
    (band,) = panels["recall@10"].collections
    assert band.get_datalim(panels["recall@10"].transData).y1 == pytest.approx(
        100 * max(steps["ci_low"].max(), steps["ci_high"].max())
    )


def test_mistakes_are_multiples_of_chance_with_exact_intervals_coloured_by_verdict(lines, texts):
    rows = [
        ("first", 30, 0.03, 0.02, 0.04, "above chance"),
        ("first", 9, 0.009, 0.004, 0.017, "cannot tell"),
        ("second", 0, 0.0, 0.0, 0.0037, "below chance"),
        ("second", np.nan, np.nan, np.nan, np.nan, "cannot tell"),
    ]
    names = ["mistake", "hits", "recall@10", "ci_low", "ci_high", "verdict"]
    (axes, *_) = figures.mistakes(pd.DataFrame(rows, columns=names).assign(queries=1000, chance=0.01)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    dots = {line.get_label(): line for line in axes.lines}
    assert {name: dots[name].get_xdata().tolist() for name in ("above chance", "cannot tell", "below chance")} == {
        "above chance": pytest.approx([3]), "cannot tell": pytest.approx([0.9]), "below chance": [0]
    }  # fmt: skip
    assert to_hex(dots["below chance"].get_color()) == style.ORANGE.lower()
    ends = np.concatenate([[one[:, 0] for one in found.get_segments()] for found in axes.collections])
    assert ends == pytest.approx(np.array([[0, 0.37], [0.4, 1.7], [2, 4]]))
    assert dots["chance"].get_xdata() == [1, 1] and dots["the paper's 0.02 %, on FashionIQ"].get_xdata() == [0.1, 0.1]
    assert axes.get_xscale() == "symlog" and axes.get_xlim()[0] < 0
    assert {"30 · 9", "0"} <= set(texts(axes.figure))
    assert any("guessing hits 10.0" in text for text in texts(axes.figure))
