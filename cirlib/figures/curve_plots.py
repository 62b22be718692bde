"""Curves: training by epoch and by step, the ranks of the targets, and what training does to the query vectors."""

import textwrap
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
CURVES: dict[str, tuple[str, tuple[str, ...]]] = {  # title of a panel of `trajectory`: (its axis, its columns)
    "Recall@10": ("Recall@10 (%)", ("recall@10",)),
    "Alignment and uniformity": ("lower is better (no unit)", ("alignment", "uniformity")),
    "Effective rank of the queries": ("effective rank (dimensions)", ("effective_rank",)),
    "Norm and spread of the queries": ("length (embedding units)", ("norm", "spread")),
    "Hubness": ("share of top-10 places (%)", ("hubness",)),
    "Rank of the target": ("rank (log scale, best on top)", ("median",)),
}
PAPER_RATIO = 0.1  # the paper's 0.02 % is about a tenth of chance on FashionIQ


@style.themed
def learning_curves(history: pd.DataFrame) -> Figure:
    """Loss and held-out recall by epoch, a line a run, its best epoch marked on both.

    `history`: run, epoch, loss and dev/recall@10 (a fraction); NaN where an epoch was not measured.

    >>> figure = learning_curves(pd.read_csv(results / "qformer/history.csv"))
    """
    subtitle = "circles: the epoch with the best recall on queries held out of train"
    figure, (left, right) = style.panels(2, (6, 4.4), "Learning curves", subtitle)
    for run, colour in style.method_colours(list(history["run"].unique())).items():
        rows = history[history["run"] == run].sort_values("epoch", kind="stable", ignore_index=True)
        label, charts = method_label(run), ((left, rows["loss"]), (right, 100 * rows[RECALL]))
        if rows[RECALL].notna().any():
            best = rows[RECALL].idxmax()
            epoch, recall = rows.loc[best, ["epoch", RECALL]]
            label += f"  (best: epoch {epoch:g}, {style.percent(recall)} %)"
            for axes, values in charts:
                mark = {"s": 120, "color": "white", "edgecolor": colour, "linewidth": 2.5, "zorder": 4}
                axes.scatter([epoch], [values[best]], label="_best", **mark)
        for axes, values in charts:
            axes.plot(rows["epoch"][values.notna()], values.dropna(), color=colour, label=label)
    for axes, name in ((left, "training loss"), (right, "held-out recall@10 (%)")):
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*right.get_legend_handles_labels(), **style.BELOW, ncols=2)
    return figure


@style.themed
def dpo_curves(history: pd.DataFrame) -> Figure:
    """DPO by step in three panels: loss; rewards of the chosen and the rejected, and the margin; accuracy.

    `history`: step, loss, margin, chosen_reward, rejected_reward, accuracy (a fraction). Long histories show
    a moving average over the thin raw line.

    >>> figure = dpo_curves(pd.read_csv(results / "dpo/history.csv"))
    """
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

    `ranks`: method → the target's rank of each query, from 1 to `gallery_size`.

    >>> figure = rank_histogram({"sum": [1, 2, 40]}, gallery_size=50)
    """
    subtitle = f"gallery of {gallery_size:,} images  ·  k on a log scale"
    figure, (axes,) = style.panels(1, (10, 4.8), "How far down is the target?", subtitle)
    for method, colour in style.method_colours(list(ranks)).items():
        median = f"{method_label(method)}  (median rank {np.median(ranks[method]):,.0f})"
        axes.ecdf(ranks[method], color=colour, label=median)
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


@style.themed
def trajectory(table: pd.DataFrame, *, context: str = "") -> Figure:
    """What the query vectors do during training, in six panels over the training step.

    `table`, a row a step: step; recall@10, chance and hubness (the share of all top-10 places that the ten most
    retrieved images take) as fractions; alignment and uniformity (Wang and Isola 2020); effective_rank; norm and
    spread of the query vectors; the quantiles rank_10 … rank_90 of the target's rank, from 1; gallery (candidates).

    >>> figure = trajectory(pd.read_csv(results / "dpo_grid/default/trajectory.csv"))
    """
    table = table.sort_values("step", kind="stable").set_index("step").rename(columns={"rank_50": "median"})
    table[["recall@10", "chance", "hubness"]] *= 100
    notes = "hubness: share of all top-10 places taken by the ten most retrieved images"
    figure, axes = style.panels(6, (4.6, 3.8), "What changes during training", context, notes, columns=3)
    for panel, (title, (unit, columns)) in zip(axes, CURVES.items(), strict=True):
        for column, colour, marker in zip(columns, (style.BLUE, style.ORANGE), "os", strict=False):
            panel.plot(table[column], color=colour, marker=marker, markersize=5.5, label=method_label(column))
        panel.set(xlabel="training step", ylabel=unit)
        panel.set_title(title, loc="left", size=13, weight="bold", pad=27)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    recall, _, dimensions, length, hubs, ranks = axes
    gallery = float(table["gallery"].max())
    for low, high, colour in ((10, 90, "#D3E5F1"), (25, 75, "#8FBEDD")):
        band = (table.index, table[f"rank_{low}"], table[f"rank_{high}"])
        ranks.fill_between(*band, color=colour, linewidth=0, label=f"{low}–{high} %")
    recall.axhline(table["chance"].mean(), **style.CHANCE, label="chance")
    hubs.axhline(1000 / gallery, **style.CHANCE, label="least possible")
    ranks.axhline(gallery / 2, **style.CHANCE, label="chance")
    ranks.set(yscale="log", ylim=(1.15 * gallery, 0.85))
    ranks.yaxis.set_major_formatter("{x:,.0f}")
    for panel in (recall, dimensions, length, hubs):
        panel.set_ylim(bottom=0)
    for panel in axes:
        panel.legend(**style.ABOVE, ncols=4, fontsize=10, columnspacing=0.7, handlelength=1.4, handletextpad=0.3)
    return figure


@style.themed
def mistakes(table: pd.DataFrame, *, context: str = "") -> Figure:
    """Recall@10 as a multiple of chance over the training step, a panel a mistake, on a scale that shows 0.

    `table`: mistake (a sentence), step, recall@10 and chance (fractions, chance above 0). The last measured recall is
    printed in per cent.

    >>> figure = mistakes(pd.read_csv(results / "dpo_grid/default/mistakes.csv"))
    """
    table = table.assign(ratio=table["recall@10"] / table["chance"])
    number, shared = table["mistake"].nunique(), {"sharex": True, "sharey": True}
    notes = "Recall@10 as a multiple of chance, log scale above 0.1, linear below  ·  numbers: last Recall@10"
    title = "Training with one mistake at a time"
    figure, axes = style.panels(number, (max(4.4, 9 / number), 2.8), title, context, notes, columns=3, **shared)
    for panel, (name, own) in zip(axes, table.groupby("mistake", sort=False), strict=True):
        own = own.sort_values("step", kind="stable")
        panel.plot(own["step"], own["ratio"], color=style.BLUE, marker="o", markersize=5.5, clip_on=False, zorder=3)
        panel.axhline(1, **style.CHANCE, label="chance")
        panel.axhline(PAPER_RATIO, **style.DOTTED, label="the paper's result")
        measured = own.dropna(subset="ratio")
        for row in measured.tail(1).itertuples():
            look = {"size": 11.5, "weight": "bold", "path_effects": style.HALO, "va": "bottom"}
            last = style.percent(row.ratio * row.chance, " %")
            panel.annotate(last, (row.step, row.ratio), (6, 2), textcoords="offset points", **look)
        if measured.empty:
            panel.text(0.5, 0.5, style.percent(np.nan), transform=panel.transAxes, ha="center", color=style.MUTED)
        panel.set_title(textwrap.fill(name, 40), loc="left", size=12)
        panel.set(ylabel="Recall@10 / chance", xlabel="training step")
        panel.label_outer()
    axes[0].set_yscale("symlog", linthresh=PAPER_RATIO, linscale=0.6)
    axes[0].set_ylim(-0.02, max(2.0, 1.6 * table["ratio"].max()))
    axes[0].margins(x=0.2)
    axes[0].yaxis.set_major_formatter("{x:g}×")
    figure.legend(*axes[0].get_legend_handles_labels(), **style.BELOW, ncols=2)
    return figure
