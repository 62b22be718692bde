"""Curves: what is marked, smoothed and accumulated."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cirlib import figures
from cirlib.figures.style import FigureError


def history_of_runs() -> pd.DataFrame:
    recalls = {"qformer": [np.nan, 0.6, 0.5], "plain": [0.1, 0.2, 0.3]}
    rows = [
        {"run": run, "epoch": epoch, "loss": 3.0 - epoch, "dev/recall@10": recall}
        for run, values in recalls.items()
        for epoch, recall in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_learning_curves_mark_the_best_epoch_of_each_run_whatever_the_index(texts):
    figure = figures.learning_curves(history_of_runs().set_index(np.zeros(6, dtype=int)))
    loss, dev = figure.axes
    best = [found.get_offsets().tolist() for found in dev.collections if found.get_label() == "_best"]
    assert best == [[[1.0, 60.0]], [[2.0, 30.0]]]
    assert len(loss.lines) == len(dev.lines) == 2
    assert dev.lines[0].get_xdata().tolist() == [1, 2]  # the epoch that was not measured is left out
    shown = texts(figure)
    assert "Q-Former (best: epoch 1, 60.0 %)" in shown and "plain (best: epoch 2, 30.0 %)" in shown


def test_learning_curves_without_any_dev_recall_mark_nothing():
    figure = figures.learning_curves(history_of_runs().assign(**{"dev/recall@10": np.nan}))
    assert not any(axes.collections for axes in figure.axes)


def test_dpo_curves_show_rewards_and_accuracy_and_smooth_long_ones_over_the_raw_values():
    step = np.arange(200)
    rewards = {"chosen_reward": 0.1 * step, "rejected_reward": -0.2 * step, "margin": 0.3 * step}
    history = pd.DataFrame({"step": step, "loss": 0.7 / (1 + step), "accuracy": 0.75} | rewards)
    loss, reward, accuracy = figures.dpo_curves(history.iloc[:5]).axes
    assert [line.get_label() for line in reward.lines] == ["chosen", "rejected", "margin"]
    assert reward.lines[0].get_ydata() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert accuracy.lines[0].get_ydata().tolist() == [75.0] * 5 and len(loss.lines) == 1
    raw, smooth = figures.dpo_curves(history).axes[0].lines
    assert raw.get_label() == "_raw" and raw.get_alpha() < 0.5
    assert raw.get_ydata()[0] == 0.7 > smooth.get_ydata()[0]


def test_rank_histogram_accumulates_ranks_over_a_log_axis():
    figure = figures.rank_histogram({"sum": [1, 1, 3, 100], "qformer": np.ones(7)}, gallery_size=100)
    (axes,) = figure.axes
    lines = {line.get_label(): dict(zip(*line.get_data(), strict=True)) for line in axes.lines}
    curve = lines["weighted sum  (median rank 2)"]
    assert [curve[k] for k in (1, 3, 100)] == [0.5, 0.75, 1]  # of the queries; the axis says per cent
    assert lines["Q-Former  (median rank 1)"][1] == 1
    assert [lines["chance"][k] for k in (1, 100)] == pytest.approx([0.01, 1])
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize("ranks", [[], [0, 1], [1, 101], [np.nan]])
def test_rank_histogram_refuses_impossible_ranks(ranks):
    with pytest.raises(FigureError, match="ranks of sum must be from 1 to the gallery's size, 100"):
        figures.rank_histogram({"sum": ranks}, gallery_size=100)
