"""Curves: training by epoch and by step, and the ranks of the targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import ArrayLike

from cirlib.figures import style
from cirlib.study.methods import method_label


@style.themed
def learning_curves(history: pd.DataFrame, *, metric: str = "dev/recall@10") -> Figure:
    """Loss and held-out recall by epoch, a line a run, the run's best epoch marked on both.

    `history`: run, epoch, loss and `metric` (a fraction); NaN where an epoch was not measured.

    >>> [axes.get_ylabel() for axes in learning_curves(pd.read_csv(results / "qformer/history.csv")).axes]
    ['training loss', 'held-out recall@10 (%)']
    """
    style.check_fractions(history, metric)
    subtitle = "circles: the epoch with the best recall on queries held out of train"
    figure, (left, right) = style.panels(2, (6, 4.4), "Learning curves", subtitle)
    for run, colour in style.method_colours(list(history["run"].unique())).items():
        rows = history[history["run"] == run].sort_values("epoch", kind="stable", ignore_index=True)
        label, charts = method_label(run), ((left, rows["loss"]), (right, 100 * rows[metric]))
        if rows[metric].notna().any():
            best = rows[metric].idxmax()
            epoch, recall = rows.loc[best, ["epoch", metric]]
            label += f"  (best: epoch {epoch:g}, {style.percent(recall)} %)"
            for axes, values in charts:
                mark = {"s": 120, "color": "white", "edgecolor": colour, "linewidth": 2.5, "zorder": 4}
                axes.scatter([epoch], [values[best]], label="_best", **mark)
        for axes, values in charts:
            axes.plot(rows["epoch"][values.notna()], values.dropna(), color=colour, label=label)
    for axes, name in ((left, "training loss"), (right, f"held-out {metric.split('/')[-1]} (%)")):
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*right.get_legend_handles_labels(), **style.BELOW, ncols=2)
    return figure


@style.themed
def dpo_curves(history: pd.DataFrame) -> Figure:
    """DPO by step in three panels: loss; rewards of the chosen and the rejected, and the margin; accuracy.

    `history`: step, loss, margin, chosen_reward, rejected_reward, accuracy (a fraction). Long histories show
    a moving average over the thin raw line.

    >>> [axes.get_title("left") for axes in dpo_curves(pd.read_csv(results / "dpo/history.csv")).axes]
    ['loss', 'reward', 'accuracy (%)']
    """
    style.check_fractions(history, "accuracy")
    history = history.sort_values("step", kind="stable").set_index("step")
    subtitle = "accuracy: how often the target's reward is above its negative's  ·  dashed: of a coin toss"
    figure, (loss, rewards, accuracy) = style.panels(3, (4.4, 3.9), "Direct preference optimisation", subtitle)
    _smooth_line(loss, history["loss"], color=style.BLUE)
    _smooth_line(rewards, history["chosen_reward"], color=style.GREEN, label="chosen")
    _smooth_line(rewards, history["rejected_reward"], color=style.ORANGE, label="rejected")
    _smooth_line(rewards, history["margin"], color=style.INK, label="margin", linestyle="--")
    _smooth_line(accuracy, 100 * history["accuracy"], color=style.BLUE)
    accuracy.axhline(50, **style.CHANCE)
    accuracy.set_ylim(0, 103)
    for axes, name in ((loss, "loss"), (rewards, "reward"), (accuracy, "accuracy (%)")):
        axes.set_xlabel("step")
        axes.set_title(name, loc="left", size=13)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.legend(*rewards.get_legend_handles_labels(), **style.BELOW, ncols=3)
    return figure


def _smooth_line(axes: Axes, values: pd.Series, **look: Any) -> None:
    """The line; over 100 points a centred moving average, with the raw values thin behind."""
    if len(values) > 100:
        axes.plot(values, **look | {"linewidth": 0.8, "alpha": 0.25, "label": "_raw"})
        values = values.rolling(len(values) // 25, center=True, min_periods=1).mean()
    axes.plot(values, **look)


@style.themed
def rank_histogram(ranks: Mapping[str, ArrayLike], *, gallery_size: int) -> Figure:
    """The share of queries whose target is among the first k, for every k: one curve a method, and chance.

    `ranks`: method → the target's rank of each query, from 1 to `gallery_size`. Raises FigureError for others.

    >>> rank_histogram({"sum": [1, 2, 40]}, gallery_size=50).legends[0].get_texts()[0].get_text()
    'weighted sum  (median rank 2)'
    """
    subtitle = f"gallery of {gallery_size:,} images  ·  k on a log scale"
    figure, (axes,) = style.panels(1, (10, 4.8), "How far down is the target?", subtitle)
    for method, colour in style.method_colours(list(ranks)).items():
        values = np.asarray(ranks[method], dtype=float)
        if not values.size or not ((values >= 1) & (values <= gallery_size)).all():
            raise style.FigureError(f"the ranks of {method} must be from 1 to the gallery's size, {gallery_size}")
        axes.ecdf(values, color=colour, label=f"{method_label(method)}  (median rank {np.median(values):,.0f})")
    ks = np.geomspace(1, gallery_size, 400)
    axes.plot(ks, ks / gallery_size, **style.CHANCE, label="chance")
    axes.set_xscale("log")
    ticks = [k for k in (1, 5, 10, 50, 100, 500, 1000, 5000, 10_000) if k <= gallery_size]
    axes.set_xticks(ticks, [f"{k:,}" for k in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    axes.set(xlabel="k", ylabel="target among the first k (% of queries)", ylim=(0, 1.01), xlim=(1, gallery_size))
    figure.legend(*axes.get_legend_handles_labels(), **style.BELOW, ncols=3)
    return figure
