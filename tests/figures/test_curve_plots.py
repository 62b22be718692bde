"""Curves: what is marked, smoothed and accumulated."""

import numpy as np
import pandas as pd
import pytest

from cirlib import figures


def test_learning_curves_mark_the_best_epoch_of_each_run_whatever_the_index(texts):
    recalls = {"qformer": [np.nan, 0.6, 0.5], "plain": [0.1, 0.2, 0.3], "unmeasured": [np.nan] * 3}
    rows = [(run, i, 3.0 - i, recall) for run, values in recalls.items() for i, recall in enumerate(values)]
    history = pd.DataFrame(rows, columns=["run", "epoch", "loss", "dev/recall@10"], index=np.zeros(9, int))
    figure = figures.learning_curves(history, context="90 dev queries")
    *losses, dev = figure.axes
    best = [found.get_offsets().tolist() for found in dev.collections if found.get_label() == "_best"]
    assert best == [[[1.0, 60.0]], [[2.0, 30.0]]]
    assert [axes.get_title("left") for axes in losses] == ["Q-Former", "plain", "unmeasured"]
    assert [len(axes.lines) for axes in losses] == [1, 1, 1]  # losses of different runs share no axis
    assert dev.lines[0].get_xdata().tolist() == [1, 2]  # the epoch that was not measured is left out
    said = set(texts(figure))
    assert {"Q-Former (best: epoch 1, 60.0 %)", "plain (best: epoch 2, 30.0 %)"} <= said
    assert any("90 dev queries" in text for text in said)


def test_a_run_of_one_epoch_is_no_curve_unless_there_is_no_other():
    history = pd.DataFrame(
        {"run": ["once", "qformer", "qformer"], "epoch": [1, 1, 2], "loss": 1.0, "dev/recall@10": 0.5}
    )
    for rows, drawn in ((history, ["Q-Former"]), (history[:1], ["once"])):
        *losses, _ = figures.learning_curves(rows).axes
        assert [axes.get_title("left") for axes in losses] == drawn


def test_dpo_curves_show_rewards_and_accuracy_and_smooth_long_ones_over_the_raw_values(lines):
    step = np.arange(200)
    rewards = {"chosen_reward": 0.1 * step, "rejected_reward": -0.2 * step, "margin": 0.3 * step}
    history = pd.DataFrame({"step": step, "loss": 0.7 / (1 + step), "accuracy": 0.75} | rewards)
    loss, reward, accuracy = figures.dpo_curves(history.iloc[:5]).axes
    assert list(lines(reward)) == ["chosen", "rejected", "margin"]
    assert lines(reward)["chosen"] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert accuracy.lines[0].get_ydata().tolist() == [75.0] * 5 and len(loss.lines) == 1
    raw, smooth = figures.dpo_curves(history).axes[0].lines
    assert raw.get_ydata()[0] == 0.7 > smooth.get_ydata()[0]


def test_rank_histogram_accumulates_ranks_over_a_log_axis():
    figure = figures.rank_histogram({"sum": [1, 1, 3, 100], "qformer": np.ones(7)}, gallery_size=100)
    (axes,) = figure.axes
    curves = {line.get_label(): dict(zip(*line.get_data(), strict=True)) for line in axes.lines}
    curve = curves["weighted sum  (median rank 2)"]
    assert [curve[k] for k in (1, 3, 100)] == [0.5, 0.75, 1]  # of the queries; the axis says per cent
    assert curves["Q-Former  (median rank 1)"][1] == 1
    assert [curves["chance"][k] for k in (1, 100)] == pytest.approx([0.01, 1])
    assert axes.get_xscale() == "log"


def test_equal_rank_curves_are_both_seen():
    (axes,) = figures.rank_histogram({"sum": [1, 2, 9], "slerp": [1, 2, 9]}, gallery_size=10, context="garments").axes
    below, above = axes.lines[:2]
    assert below.get_linewidth() > above.get_linewidth() and below.get_zorder() < above.get_zorder()
    assert above.is_dashed()
