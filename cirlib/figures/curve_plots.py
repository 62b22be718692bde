"""Curves: training by epoch and by step, and the ranks of the targets."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import ArrayLike

from cirlib.figures import style
from cirlib.study.method_registry import method_label

RECALL = "dev/recall@10"


@style.themed("Nothing was trained.")
def learning_curves(history: pd.DataFrame, *, context: str = "") -> Figure:
    """Small multiples over the epoch: the loss of each run on a scale of its own, and the held-out recall of all.

    `history`: run, epoch, loss and dev/recall@10 (a fraction); NaN where an epoch was not measured. The best epoch of a
    run is marked on both. Losses of different runs are different functions, so they share no axis. Where others have
    more, a run of one epoch is no curve and left out.

    >>> figure = learning_curves(pd.read_csv(results / "qformer/history.csv"), context="450 dev queries")
    """
    long = history.groupby("run")["epoch"].transform("size") > 1
    history = history[long] if long.any() else history
    runs = style.method_colours(list(history["run"].unique()))
    notes = "circles: the epoch that dev chose"
    shape = {"columns": 3 if len(runs) > 3 else len(runs) + 1}
    size = (max(3.6, 12 / shape["columns"]), 3.6)
    figure, (*losses, recall) = style.panels(
        len(runs) + 1, size, "Training loss and dev recall by epoch", context, notes, **shape
    )
    for number, ((run, colour), loss) in enumerate(zip(runs.items(), losses, strict=True)):
        rows = history[history["run"] == run].sort_values("epoch", kind="stable", ignore_index=True)
        label, charts = method_label(run), ((loss, rows["loss"]), (recall, 100 * rows[RECALL]))
        loss.set_title(label, loc="left", size=13)
        if rows[RECALL].notna().any():
            best = rows[RECALL].idxmax()
            epoch, value = rows.loc[best, ["epoch", RECALL]]
            label += f"  (best: epoch {epoch:g}, {style.percent(value)} %)"
            for axes, values in charts:
                mark = {"s": 120, "color": "white", "edgecolor": colour, "linewidth": 2.5, "zorder": 4}
                axes.scatter([epoch], [values[best]], label="_best", clip_on=False, **mark)
        look = {"color": colour, "label": label, "marker": "o", "markersize": 5, "linestyle": style.DASHES[number % 4]}
        for axes, values in charts:
            if values.notna().any():
                axes.plot(rows["epoch"][values.notna()], values.dropna(), **look)
        loss.set(ylabel="training loss", ylim=(0, None))
    recall.set(ylabel="Recall@10 on dev (%)", ylim=(0, None))
    recall.set_title("dev, all runs", loc="left", size=13)
    for axes in (*losses, recall):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*recall.get_legend_handles_labels(), **style.BELOW, ncols=2, handlelength=3)
    return figure


@style.themed("No rewards: nothing was preferred to anything.")
def dpo_curves(history: pd.DataFrame, *, context: str = "") -> Figure:
    """DPO by step in three panels: loss; rewards of the chosen and the rejected, and the margin; accuracy.

    `history`: step, loss, margin, chosen_reward, rejected_reward, accuracy (a fraction). Long histories show
    a moving average over the thin raw line.

    >>> figure = dpo_curves(pd.read_csv(results / "dpo/history.csv"))
    """
    history = history.sort_values("step", kind="stable").set_index("step")
    notes = (
        "one training, no intervals  ·  accuracy: how often the target's reward is above its negative's; dashed: chance"
    )
    title = "Training Retrieval-DPO: loss, rewards, accuracy"
    figure, (loss, rewards, accuracy) = style.panels(3, (4.4, 3.9), title, context, notes)
    _smooth_line(loss, history["loss"], color=style.BLUE)
    _smooth_line(rewards, history["chosen_reward"], color=style.GREEN, label="chosen")
    _smooth_line(rewards, history["rejected_reward"], color=style.ORANGE, label="rejected")
    _smooth_line(rewards, history["margin"], color=style.INK, label="margin", linestyle="--")
    _smooth_line(accuracy, 100 * history["accuracy"], color=style.BLUE)
    accuracy.axhline(50, **style.CHANCE)
    accuracy.set_ylim(0, 103)
    for axes, name in ((loss, "loss"), (rewards, "reward"), (accuracy, "accuracy (%)")):
        axes.set_xlabel("step")
        axes.set_title(name, loc="left", size=13, pad=28)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    rewards.legend(**style.ABOVE, ncols=3, columnspacing=1)
    return figure


def _smooth_line(axes: Axes, values: pd.Series, **look: Any) -> None:
    """The line; over 100 points a centred moving average, with the raw values thin behind."""
    if len(values) > 100:
        axes.plot(values, **look | {"linewidth": 0.8, "alpha": 0.25, "label": "_raw"})
        values = values.rolling(len(values) // 25, center=True, min_periods=1).mean()
    axes.plot(values, **look)


@style.themed("No query was ranked.")
def rank_histogram(ranks: Mapping[str, ArrayLike], *, gallery_size: int, context: str = "") -> Figure | None:
    """The share of queries whose target is among the first k, for every k: one curve a method, and chance.

    `ranks`: method → the target's rank of each query, from 1 to `gallery_size`. Neighbours differ in width and dashes,
    so that equal curves are both seen.

    >>> figure = rank_histogram({"sum": [1, 2, 40]}, gallery_size=50)
    """
    ranks = {method: own for method, own in ranks.items() if len(np.asarray(own))}
    if not ranks:
        return None
    queries = max(len(np.asarray(each)) for each in ranks.values())
    subtitle = context or f"{queries:,} queries  ·  gallery of {gallery_size:,} images"
    notes = (subtitle, "k on a log scale", "intervals: in the result table")
    figure, (axes,) = style.panels(1, (12, 5.2), "How far down is the target? Recall@k of every method", *notes)
    for number, (method, colour) in enumerate(style.method_colours(list(ranks)).items()):
        median = f"{method_label(method)}  (median rank {np.median(ranks[method]):,.0f})"
        look = {
            "linewidth": (4.6, 2.8, 1.6)[number % 3],
            "linestyle": style.DASHES[number % 3],
            "zorder": 2 + number % 3,
        }
        axes.ecdf(ranks[method], color=colour, label=median, **look)
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
