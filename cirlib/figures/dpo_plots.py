"""The figures of the DPO study. Each takes a tidy table; titles say what is drawn, not what was found.

`context` (protocol, data, sample) opens the subtitle.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from cirlib.figures import style
from cirlib.study.methods import method_label

NAMES = {  # name in the tables: name in the figures, where `method_label` has no better one
    "trains": "what trains",
    "dpo sigmoid": "DPO, sigmoid",
    "dpo hinge": "DPO, hinge",
    "dpo ipo": "DPO, IPO",
    "info_nce_mined": "InfoNCE, mined",
    "info_nce_in_batch": "InfoNCE, in-batch",
    "top": "top-k",
    "band": "band of ranks",
    "semi_hard": "margin filter",
    "remined": "re-mined",
}
SAMPLINGS: dict[str, dict[str, Any]] = {
    "random": {"color": style.GREEN, "marker": "o", "linestyle": "-"},
    "band": {"color": style.BLUE, "marker": "s", "linestyle": "--"},
    "semi_hard": {"color": style.PINK, "marker": "D", "linestyle": "-."},
    "top": {"color": style.ORANGE, "marker": "^", "linestyle": ":"},
}
QUALITIES = {  # column of `negative_quality`: (name in the legend, colour)
    "satisfies_edit": ("also satisfies the edit (false negative)", style.YELLOW),
    "differs_in_one": ("one attribute off the target (useful)", style.BLUE),
}
CURVES: dict[str, tuple[str, tuple[str, ...]]] = {  # title of a panel of `trajectory`: (its axis, its columns)
    "Recall@10": ("Recall@10 (%)", ("recall@10",)),
    "Alignment and uniformity": ("lower is better (no unit)", ("alignment", "uniformity")),
    "Effective rank of the queries": ("effective rank (dimensions)", ("effective_rank",)),
    "Norm and spread of the queries": ("length (embedding units)", ("norm", "spread")),
    "Hubness": ("share of top-10 places (%)", ("hubness",)),
    "Rank of the target": ("rank (log scale, best on top)", ("median",)),
}
PAPER_RATIO = 0.1  # the paper's 0.02 % is about a tenth of chance on FashionIQ


def _pretty(name: str) -> str:
    """The name in the figures of a level, method or switch in the tables."""
    return NAMES[name] if name in NAMES else method_label(name)


@style.themed
def sweep_grid(cells: pd.DataFrame, *, text_only: float, chance: float, context: str = "") -> Figure:
    """Recall@10 over DPO's β, a panel an index, a line a way to sample the negatives.

    `cells`: index, sampling, beta (above 0), recall@10 and its interval ci_low to ci_high (fractions); several rows of
    one cell are averaged, NaN leaves a gap. `text_only` (zero-shot) and `chance` are fractions.

    >>> cells = pd.read_csv(results / "dpo_grid/default/sweep.csv").assign(ci_low=0, ci_high=1)
    >>> sweep_grid(cells, text_only=0.07, chance=0.01).axes[0].get_xlabel()
    'β'
    """
    fractions = ["recall@10", "ci_low", "ci_high"]
    style.check_fractions(cells.assign(text_only=text_only, chance=chance), *fractions, "text_only", "chance")
    panels = list(cells["index"].unique())
    title, notes = "Recall@10 by β, index and sampling of the negatives", "β on a log scale  ·  bands: 95 % interval"
    figure, axes = style.panels(
        len(panels), (max(3.8, 9 / len(panels)), 3.9), title, f"{context}  ·  {notes}", sharey=True
    )
    for panel, index in zip(axes, panels, strict=True):
        for sampling, own in cells[cells["index"] == index].groupby("sampling", sort=False):
            line = 100 * own.groupby("beta")[fractions].mean()
            look = SAMPLINGS.get(sampling, {"color": style.INK, "marker": "x"})
            panel.plot(line["recall@10"], label=_pretty(sampling), markersize=7.5, **look)
            panel.fill_between(line.index, line["ci_low"], line["ci_high"], color=look["color"], alpha=0.13, lw=0)
        panel.axhline(100 * text_only, **style.DOTTED, label=f"text only, zero-shot: {style.percent(text_only)} %")
        panel.axhline(100 * chance, **style.CHANCE, label=f"chance: {style.percent(chance)} %")
        panel.set_title(index, size=13, loc="left")
        panel.set(xscale="log", xlabel="β")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda beta, _: f"{beta:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
    axes[0].set(ylabel="Recall@10 (%)", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), **style.BELOW, ncols=4, handlelength=3)
    return figure


@style.themed
def trajectory(table: pd.DataFrame, *, context: str = "") -> Figure:
    """What the query vectors do during training, in six panels over the training step.

    `table`, a row a step: step; recall@10, chance and hubness (the share of all top-10 places that the ten most
    retrieved images take) as fractions; alignment and uniformity (Wang and Isola 2020); effective_rank; norm and
    spread of the query vectors; the quantiles rank_10 … rank_90 of the target's rank, from 1; gallery (candidates).

    >>> trajectory(pd.read_csv(results / "dpo_grid/default/trajectory.csv")).axes[4].get_title("left")
    'Hubness'
    """
    style.check_fractions(table, "recall@10", "chance", "hubness")
    table = table.sort_values("step", kind="stable").set_index("step").rename(columns={"rank_50": "median"})
    table[["recall@10", "chance", "hubness"]] *= 100
    notes = "hubness: share of all top-10 places taken by the ten most retrieved images"
    title = "What changes during training"
    figure, axes = style.panels(6, (4.6, 3.8), title, f"{context}  ·  {notes}", columns=3)
    for panel, (title, (unit, columns)) in zip(axes, CURVES.items(), strict=True):
        for column, colour, marker in zip(columns, (style.BLUE, style.ORANGE), "os", strict=False):
            panel.plot(table[column], color=colour, marker=marker, markersize=5.5, label=_pretty(column))
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
    ranks.yaxis.set_major_formatter(FuncFormatter(lambda rank, _: f"{rank:,.0f}"))
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

    >>> mistakes(pd.read_csv(results / "dpo_grid/default/mistakes.csv")).axes[0].get_ylabel()
    'Recall@10 / chance'
    """
    style.check_fractions(table, "recall@10", "chance")
    ratio, names = table["recall@10"] / table["chance"], list(table["mistake"].unique())
    notes = "Recall@10 as a multiple of chance, log scale above 0.1, linear below  ·  numbers: last Recall@10"
    title, shared = "Training with one mistake at a time", {"sharex": True, "sharey": True}
    figure, axes = style.panels(
        len(names), (max(4.4, 9 / len(names)), 2.8), title, f"{context}  ·  {notes}", columns=3, **shared
    )
    for i, (panel, name) in enumerate(zip(axes, names, strict=True)):
        own = table.assign(ratio=ratio)[table["mistake"] == name].sort_values("step", kind="stable")
        panel.plot(own["step"], own["ratio"], color=style.BLUE, marker="o", markersize=5.5, clip_on=False, zorder=3)
        panel.axhline(1, **style.CHANCE, label="chance")
        panel.axhline(PAPER_RATIO, **style.DOTTED, label="the paper's result")
        look: dict[str, Any] = {"size": 11.5, "weight": "bold", "path_effects": style.HALO, "va": "bottom"}
        for row in own.dropna(subset="ratio").tail(1).itertuples():
            last = style.percent(row.ratio * row.chance, " %")
            panel.annotate(last, (row.step, row.ratio), (6, 2), textcoords="offset points", **look)
        if own["ratio"].isna().all():
            panel.text(0.5, 0.5, style.percent(np.nan), transform=panel.transAxes, ha="center", color=style.MUTED)
        panel.set_title(textwrap.fill(name, 40), loc="left", size=12)
        panel.set(ylabel="" if i % 3 else "Recall@10 / chance", xlabel="training step")
        panel.label_outer()
    axes[0].set_yscale("symlog", linthresh=PAPER_RATIO, linscale=0.6)
    axes[0].set_ylim(-0.02, max(2.0, 1.6 * ratio.max(skipna=True)))
    axes[0].margins(x=0.2)
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda times, _: f"{times:g}×"))
    figure.legend(*axes[0].get_legend_handles_labels(), **style.BELOW, ncols=2)
    return figure


@style.themed
def effects(table: pd.DataFrame, *, context: str = "") -> Figure:
    """What a level changes in Recall@10 against another one of the same switch: dots with intervals, by switch.

    `table`, in the order it is drawn: factor, level, against (one a factor), and as fractions of 1, shown in points:
    difference, ci_low and ci_high (95 %), q25 and q75 (over the settings of the other switches). A NaN difference
    reads "not run". Dots are hollow where the interval holds 0.

    >>> effects(pd.read_csv(results / "dpo_grid/default/effects.csv")).axes[0].get_xlabel()
    'difference in Recall@10 (points)'
    """
    numbers = ["difference", "ci_low", "ci_high", "q25", "q75"]
    style.check_fractions(table, *numbers)
    parts = []
    for (factor, against), own in table.groupby(["factor", "against"], sort=False):
        parts.append(pd.DataFrame({"label": [f"{_pretty(factor)} (against {_pretty(against)})"]}))
        parts.append(own.assign(label=own["level"].map(_pretty), text=own["difference"].map(style.points)))
    rows = pd.concat(parts, ignore_index=True)
    notes = "dot and line: mean and 95 % interval, hollow where it holds 0"
    notes += "  ·  bar: middle half of the settings of the other switches"
    size, title = (12, 1.2 + 0.4 * len(rows)), "What each switch changes in Recall@10"
    figure, (axes,) = style.panels(1, size, title, f"{context}  ·  {notes}")
    places = style.label_rows(axes, list(rows["label"]), right=list(rows["text"].fillna("")))
    for tick, level in zip(axes.get_yticklabels(), rows["level"], strict=True):
        tick.set_weight("normal" if isinstance(level, str) else "bold")
    points = 100 * rows[numbers].astype(float)
    axes.axvline(0, color=style.INK, linewidth=1.4, zorder=1)
    axes.barh(places, points["q75"] - points["q25"], 0.5, points["q25"], color="#CFE3F0", label="_spread", zorder=1.5)
    look = {"color": style.BLUE, "linewidth": 4, "label": "_interval"}
    axes.hlines(places, points["ci_low"], points["ci_high"], zorder=2, **look)
    faces = np.where((points["ci_low"] <= 0) & (points["ci_high"] >= 0), "white", style.BLUE)
    axes.scatter(points["difference"], places, s=95, color=faces, edgecolor=style.BLUE, linewidth=2.4, zorder=3)
    axes.set_xlabel("difference in Recall@10 (points)")
    axes.use_sticky_edges = False
    return figure


@style.themed
def negative_quality(table: pd.DataFrame, *, context: str = "") -> Figure:
    """How many of the sampled negatives are false ones and how many useful ones, in grouped bars.

    `table`: fusion, negatives (the way to sample), and the fractions satisfies_edit and differs_in_one, which need not
    add up to 1; NaN reads "not run".

    >>> negative_quality(pd.read_csv(results / "dpo_grid/default/negatives.csv")).axes[0].get_xlabel()
    'share of the negatives (%)'
    """
    style.check_fractions(table, *QUALITIES)
    size = (11, 1.6 + 0.55 * len(table))
    figure, (axes,) = style.panels(1, size, "What the sampled negatives are", context)
    names = zip(table["fusion"], table["negatives"], strict=True)
    places = style.label_rows(axes, [f"{_pretty(fusion)}: {_pretty(negatives)}" for fusion, negatives in names])
    groups = {label: table.rename(columns={column: "value"}) for column, (label, _) in QUALITIES.items()}
    colours = [colour for _, colour in QUALITIES.values()]
    style.value_bars(axes, places, groups, colours, unit=" %", size=11)
    axes.set_xlabel("share of the negatives (%)")
    axes.legend(**style.ABOVE)
    return figure


@style.themed
def recipe_bars(table: pd.DataFrame, *, context: str = "") -> Figure:
    """Recall@10 and training time of whole recipes, in the table's order, with 95 % intervals.

    `table`: method, value, ci_low, ci_high, chance (fractions), seconds of training (NaN: a dash). A NaN value reads
    "not run".

    >>> recipe_bars(pd.read_csv(results / "dpo_grid/default/recipe.csv")).axes[0].get_xlabel()
    'Recall@10 (%)'
    """
    times = ["–" if np.isnan(s) else f"{s / 60:,.1f} min" if s >= 60 else f"{s:.1f} s" for s in table["seconds"]]
    labels = [textwrap.fill(_pretty(name), 36) for name in table["method"]]
    subtitle = f"{context}  ·  lines: 95 % interval  ·  right: training time"
    return style.row_chart(table, labels, "Recall@10 and training time by recipe", subtitle, right=times)


@style.themed
def factorial_map(cells: pd.DataFrame, *, chance: float, context: str = "") -> Figure:
    """Recall@10 of every combination of the switches: a row a fusion and what trains, a column an objective and
    its negatives.

    `cells`: fusion, trains, objective, negatives, recall@10 (a fraction); repetitions of a cell are averaged, cells
    that are missing or NaN stay light grey. `chance`, a fraction, is marked on the colour bar.

    >>> factorial_map(pd.read_csv(results / "dpo_grid/default/switches.csv"), chance=0.01).axes[1].get_ylabel()
    'Recall@10 (%)'
    """
    style.check_fractions(cells.assign(chance=chance), "recall@10", "chance")
    switches = ["fusion", "trains", "objective", "negatives"]
    means = 100 * cells.groupby(switches, sort=False)["recall@10"].mean()
    values = means.unstack(["objective", "negatives"], sort=False)
    labels = [[f"{_pretty(outer)}: {_pretty(inner)}" for outer, inner in axis] for axis in values.axes]
    size = (max(9.0, 4.6 + float(np.clip(10.2, 0.6 * len(labels[1]), 1.1 * len(labels[1])))), 3 + 0.46 * len(labels[0]))
    notes = f"Recall@10 in %  ·  grey: not run  ·  line on the colour bar: chance, {style.percent(chance)} %"
    title = "Recall@10 of every combination of the switches"
    figure, (axes,) = style.panels(1, size, title, f"{context}  ·  {notes}")
    axes.set_facecolor("#E4E4E4")
    look: dict[str, Any] = {"vmin": 0, "vmax": np.nanmax([*means, 100 * chance]), "linewidths": 1, "cmap": "viridis"}
    look |= {"cbar_kws": {"label": "Recall@10 (%)", "pad": 0.02, "aspect": 22, "fraction": 0.04}}
    sns.heatmap(values, ax=axes, annot=True, fmt=".1f", yticklabels=labels[0], xticklabels=labels[1], **look)
    axes.collections[0].colorbar.ax.axhline(100 * chance, color=style.ORANGE, linewidth=2.5, label="chance")
    axes.set(xlabel="", ylabel="")
    for tick in axes.get_xticklabels():
        tick.set(rotation=40, ha="right", rotation_mode="anchor")
    return figure
