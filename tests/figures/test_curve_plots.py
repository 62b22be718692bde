"""Curves: what is marked, smoothed and accumulated."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cirlib import figures

TRAJECTORY = Path(__file__).resolve().parents[2] / "results" / "garments" / "dpo_grid" / "full" / "trajectory.csv"


def test_learning_curves_mark_the_best_epoch_of_each_run_whatever_the_index(texts):
    recalls = {"qformer": [np.nan, 0.6, 0.5], "plain": [0.1, 0.2, 0.3], "unmeasured": [np.nan] * 3}
    rows = [(run, i, 3.0 - i, recall) for run, values in recalls.items() for i, recall in enumerate(values)]
    history = pd.DataFrame(rows, columns=["run", "epoch", "loss", "dev/recall@10"], index=np.zeros(9, int))
    figure = figures.learning_curves(history)
    loss, dev = figure.axes
    best = [found.get_offsets().tolist() for found in dev.collections if found.get_label() == "_best"]
    assert best == [[[1.0, 60.0]], [[2.0, 30.0]]] and len(loss.lines) == 3
    assert dev.lines[0].get_xdata().tolist() == [1, 2]  # the epoch that was not measured is left out
    assert {"Q-Former (best: epoch 1, 60.0 %)", "plain (best: epoch 2, 30.0 %)", "unmeasured"} <= set(texts(figure))


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


def test_trajectory_draws_every_column_over_the_step(lines):
    steps = pd.read_csv(TRAJECTORY)
    recall, wang, rank, length, hubs, places = figures.trajectory(steps.iloc[::-1]).axes
    chance, gallery = 100 * steps["chance"][0], steps["gallery"][0]
    assert lines(recall) == {
        "recall@10": pytest.approx(100 * steps["recall@10"]),
        "chance": pytest.approx([chance] * 2),
    }
    least = pytest.approx([1000 / gallery] * 2)
    assert lines(hubs) == {"hubness": pytest.approx(100 * steps["hubness"]), "least possible": least}
    for axes, column in zip((wang, wang, rank, length, length), steps.columns[3:8], strict=True):
        assert lines(axes)[column.replace("_", " ")] == pytest.approx(steps[column])
    assert lines(places) == {"median": pytest.approx(steps["rank_50"]), "chance": [gallery / 2] * 2}
    assert places.get_yscale() == "log" and places.yaxis_inverted()
    bands = {found.get_label(): found.get_datalim(places.transData) for found in places.collections}
    for band, low, high in (("10–90 %", "rank_10", "rank_90"), ("25–75 %", "rank_25", "rank_75")):
        assert (bands[band].y0, bands[band].y1) == pytest.approx((steps[low].min(), steps[high].max()))


def test_mistakes_are_multiples_of_chance_with_the_last_in_per_cent(lines):
    recalls = {"first": [0.3, 0.001, 0.002], "second": [np.nan, 0.001, np.nan], "third": [np.nan] * 3}
    rows = [(name, 50 * i, recall) for name, values in recalls.items() for i, recall in enumerate(values)]
    figure = figures.mistakes(pd.DataFrame(rows, columns=["mistake", "step", "recall@10"]).assign(chance=0.01))
    first = figure.axes[0]
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(recalls)
    assert first.lines[0].get_ydata() == pytest.approx([30, 0.1, 0.2])
    assert lines(first)["chance"] == [1, 1] and lines(first)["the paper's result"] == [0.1, 0.1]
    assert first.get_yscale() == "symlog" and first.get_ylim()[0] < 0
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["0.20 %", "0.10 %", "not run"]
