"""The figures of the DPO study, from tidy tables; `context` (protocol, data, sample) opens the subtitle."""

import textwrap
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from cirlib.figures import style
from cirlib.study.method_registry import method_label

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


def _pretty(name: str) -> str:
    """The name in the figures of a level, method or switch in the tables."""
    return NAMES[name] if name in NAMES else method_label(name)


@style.themed
def sweep_grid(cells: pd.DataFrame, *, text_only: float, chance: float, context: str = "") -> Figure:
    """Recall@10 over DPO's β, a panel an index, a line a way to sample the negatives.

    `cells`: index, sampling, beta (above 0), recall@10 and its interval ci_low to ci_high (fractions); several rows of
    one cell are averaged, NaN leaves a gap. `text_only` (zero-shot) and `chance` are fractions.

    >>> figure = sweep_grid(pd.read_csv(results / "dpo_grid/default/sweep.csv"), text_only=0.07, chance=0.01)
    """
    panels = list(cells["index"].unique())
    title, notes = "Recall@10 by β, index and sampling of the negatives", "β on a log scale  ·  bands: 95 % interval"
    figure, axes = style.panels(len(panels), (max(3.8, 9 / len(panels)), 3.9), title, context, notes, sharey=True)
    for panel, index in zip(axes, panels, strict=True):
        for sampling, own in cells[cells["index"] == index].groupby("sampling", sort=False):
            line, look = 100 * own.groupby("beta")[["recall@10", "ci_low", "ci_high"]].mean(), SAMPLINGS[sampling]
            panel.plot(line["recall@10"], label=_pretty(sampling), markersize=7.5, **look)
            panel.fill_between(line.index, line["ci_low"], line["ci_high"], color=look["color"], alpha=0.13, lw=0)
        panel.axhline(100 * text_only, **style.DOTTED, label=f"text only, zero-shot: {style.percent(text_only)} %")
        panel.axhline(100 * chance, **style.CHANCE, label=f"chance: {style.percent(chance)} %")
        panel.set_title(index, size=13, loc="left")
        panel.set(xscale="log", xlabel="β")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_locator(NullLocator())
    axes[0].set(ylabel="Recall@10 (%)", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), **style.BELOW, ncols=4, handlelength=3)
    return figure


@style.themed
def effects(table: pd.DataFrame, *, context: str = "") -> Figure:
    """What a level changes in Recall@10 against another one of the same switch: dots with intervals, by switch.

    `table`, in the order it is drawn: factor, level, against (one a factor), and as fractions of 1, shown in points:
    difference, ci_low and ci_high (95 %), q25 and q75 (over the settings of the other switches). A NaN difference
    reads "not run". Dots are hollow where the interval holds 0.

    >>> figure = effects(pd.read_csv(results / "dpo_grid/default/effects.csv"))
    """
    parts = []
    for (factor, against), own in table.groupby(["factor", "against"], sort=False):
        parts.append(pd.DataFrame({"label": [f"{_pretty(factor)} (against {_pretty(against)})"]}))
        parts.append(own.assign(label=own["level"].map(_pretty), text=own["difference"].map(style.points)))
    rows = pd.concat(parts, ignore_index=True)
    notes = ["dot and line: mean and 95 % interval, hollow where it holds 0"]
    notes += ["bar: middle half of the settings of the other switches"]
    size = (12, 1.2 + 0.4 * len(rows))
    figure, (axes,) = style.panels(1, size, "What each switch changes in Recall@10", context, *notes)
    places = style.label_rows(axes, list(rows["label"]), right=list(rows["text"].fillna("")))
    for tick, level in zip(axes.get_yticklabels(), rows["level"], strict=True):
        tick.set_weight("normal" if isinstance(level, str) else "bold")
    points = 100 * rows[["difference", "ci_low", "ci_high", "q25", "q75"]].astype(float)
    axes.axvline(0, color=style.INK, linewidth=1.4, zorder=1)
    axes.barh(places, points["q75"] - points["q25"], 0.5, points["q25"], color="#CFE3F0", label="_spread", zorder=1.5)
    axes.hlines(places, points["ci_low"], points["ci_high"], style.BLUE, linewidth=4, label="_interval", zorder=2)
    faces = np.where((points["ci_low"] <= 0) & (points["ci_high"] >= 0), "white", style.BLUE)
    axes.scatter(points["difference"], places, s=95, color=faces, edgecolor=style.BLUE, linewidth=2.4, zorder=3)
    axes.set_xlabel("difference in Recall@10 (points)")
    axes.use_sticky_edges = False
    return figure


@style.themed
def negative_quality(table: pd.DataFrame, *, context: str = "") -> Figure:
    """How many of the sampled negatives are false ones and how many useful ones, in grouped bars.

    `table`: fusion, negatives (the way to sample), and the fractions satisfies_edit and differs_in_one, of which none
    or both may hold.

    >>> figure = negative_quality(pd.read_csv(results / "dpo_grid/default/negatives.csv"))
    """
    figure, (axes,) = style.panels(1, (11, 1.6 + 0.55 * len(table)), "What the sampled negatives are", context)
    places = style.label_rows(axes, [f"{_pretty(row.fusion)}: {_pretty(row.negatives)}" for row in table.itertuples()])
    groups = {label: table.rename(columns={column: "value"}) for column, (label, _) in QUALITIES.items()}
    style.value_bars(axes, places, groups, [colour for _, colour in QUALITIES.values()], unit=" %", size=11)
    axes.set_xlabel("share of the negatives (%)")
    axes.legend(**style.ABOVE)
    return figure


@style.themed
def recipe_bars(table: pd.DataFrame, *, context: str = "") -> Figure:
    """Recall@10 and training time of whole recipes, in the table's order, with 95 % intervals.

    `table`: method, value, ci_low, ci_high, chance (fractions), seconds of training (NaN: a dash).

    >>> figure = recipe_bars(pd.read_csv(results / "dpo_grid/default/recipe.csv"))
    """
    times = ["–" if np.isnan(s) else f"{s / 60:,.1f} min" if s >= 60 else f"{s:.1f} s" for s in table["seconds"]]
    labels = [textwrap.fill(_pretty(name), 36) for name in table["method"]]
    subtitle = f"{context}  ·  lines: 95 % interval  ·  right: training time"
    return style.row_chart(table, labels, "Recall@10 and training time by recipe", subtitle, right=times)


@style.themed
def factorial_map(cells: pd.DataFrame, *, chance: float, context: str = "") -> Figure:
    """Recall@10 of all combinations: a row a fusion and what trains, a column an objective and its negatives.

    `cells`: fusion, trains, objective, negatives, recall@10 (a fraction); repetitions of a cell are averaged, cells
    that are missing or NaN stay light grey. `chance`, a fraction, is marked on the colour bar.

    >>> figure = factorial_map(pd.read_csv(results / "dpo_grid/default/switches.csv"), chance=0.01)
    """
    means = 100 * cells.groupby(["fusion", "trains", "objective", "negatives"], sort=False)["recall@10"].mean()
    values = means.unstack(["objective", "negatives"], sort=False)
    labels = [[f"{_pretty(outer)}: {_pretty(inner)}" for outer, inner in axis] for axis in values.axes]
    size = (max(9.0, 4.6 + float(np.clip(10.2, 0.6 * len(labels[1]), 1.1 * len(labels[1])))), 3 + 0.46 * len(labels[0]))
    notes = f"Recall@10 in %  ·  grey: not run  ·  line on the colour bar: chance, {style.percent(chance)} %"
    figure, (axes,) = style.panels(1, size, "Recall@10 of every combination of the switches", context, notes)
    axes.set_facecolor("#E4E4E4")
    look: dict[str, Any] = {"vmin": 0, "vmax": np.nanmax([*means, 100 * chance]), "linewidths": 1, "cmap": "viridis"}
    look |= {"cbar_kws": {"label": "Recall@10 (%)", "pad": 0.02, "aspect": 22, "fraction": 0.04}}
    sns.heatmap(values, ax=axes, annot=True, fmt=".1f", yticklabels=labels[0], xticklabels=True, **look)
    axes.collections[0].colorbar.ax.axhline(100 * chance, color=style.ORANGE, linewidth=2.5, label="chance")
    axes.set(xlabel="", ylabel="")
    axes.set_xticklabels(labels[1], rotation=40, ha="right", rotation_mode="anchor")
    return figure
