"""Plots of the failure analysis; its grids of pictures are in :mod:`cirlib.figures.image_grids`."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from cirlib.figures import style
from cirlib.study.method_registry import method_label

PARTS = {  # column of `exchange_bars`: (name in the legend, colour)
    "both": ("both find it", style.FAINT),
    "only_first": ("only the first", style.ORANGE),
    "only_second": ("only the second", style.GREEN),
    "neither": ("neither", style.MUTED),
}


@style.themed
def kind_bars(table: pd.DataFrame, *, context: str = "") -> Figure:
    """Recall@10 by kind of edit, best first: group, queries, and value, ci_low, ci_high, chance (fractions of 1).

    >>> figure = kind_bars(pd.read_csv(results / "failure_cases/kinds.csv"))
    """
    table = table.sort_values("value", ascending=False, kind="stable")
    labels = [f"{row.group}  (n = {row.queries:,})" for row in table.itertuples()]
    return style.row_chart(table, labels, "Recall@10 by kind of edit", context)


@style.themed
def recall_by(table: pd.DataFrame, *, context: str = "") -> Figure:
    """Recall@10 against what is asked, a panel each value of ``by``; its groups, in order, as in `kind_bars`.

    >>> figure = recall_by(pd.read_csv(results / "failure_cases/asked.csv"))
    """
    figure, charts = style.panels(table["by"].nunique(), (4.4, 4.4), "Recall@10 by what is asked", context, sharey=True)
    for axes, (name, rows) in zip(charts, table.groupby("by", sort=False), strict=True):
        places = np.arange(len(rows))
        style.value_bars(axes, places, {"": rows}, [style.BLUE], vertical=True)
        axes.axhline(100 * rows["chance"].mean(), **style.CHANCE, label="chance")
        groups = rows["group"].str.replace(" to ", " to\n").str.replace(r"(^|\n)-", r"\1−", regex=True)
        labels = [f"{group}\nn = {queries:,}" for group, queries in zip(groups, rows["queries"], strict=True)]
        axes.set_xticks(places, labels, size=10.5)
        axes.set(xlabel=name, xlim=(-0.5, len(rows) - 0.5))
        axes.grid(visible=False, axis="x")
    charts[0].set_ylabel("Recall@10 (%)")
    charts[0].legend(**style.ABOVE)
    return figure


@style.themed
def reason_bars(table: pd.DataFrame, *, context: str = "") -> Figure:
    """What share of a method's misses has which reason: method, reason, misses, value, ci_low, ci_high.

    >>> figure = reason_bars(pd.read_csv(results / "failure_cases/reasons.csv"))
    """
    reasons, colours = list(table["reason"].unique()), style.method_colours(list(table["method"].unique()))
    height = 1.3 + 0.3 * len(reasons) * (len(colours) + 0.7)
    figure, (axes,) = style.panels(1, (10.6, height), "Why targets are missed", context)
    groups = {
        f"{method_label(method)}  ({own['misses'].sum():,} misses)": own.set_index("reason").reindex(reasons)
        for method, own in table.groupby("method", sort=False)
    }
    style.value_bars(axes, style.label_rows(axes, reasons), groups, colours.values(), size=10)
    axes.set_xlabel("share of the misses (%)")
    axes.legend(**style.ABOVE, ncols=len(colours))
    return figure


@style.themed
def exchange_bars(table: pd.DataFrame, *, context: str = "") -> Figure:
    """How many queries both, one or neither of two methods (first, second) has in its first ten, as in ``PARTS``.

    Beside them the difference in Recall@10 (a fraction) and its p_holm.

    >>> figure = exchange_bars(pd.read_csv(results / "failure_cases/exchanges.csv"))
    """
    figure, (axes,) = style.panels(1, (11.5, 1.4 + 0.75 * len(table)), "Who finds what another misses", context)
    labels = [
        f"{method_label(row.first)}, then\n{method_label(row.second)}:  {style.points(row.difference)} points, "
        + (f"p = {row.p_holm:.2g}" if row.p_holm >= 0.001 else "p < 0.001")
        for row in table.itertuples()
    ]
    places, left = style.label_rows(axes, labels), np.zeros(len(table))
    shares = 100 * table[list(PARTS)].div(table[list(PARTS)].sum(axis=1), axis=0)
    for name, (label, colour) in PARTS.items():
        bars = axes.barh(places, shares[name], 0.62, left=left, color=colour, label=label, edgecolor="white")
        counts = [f"{n:,}" if share > 3.5 else "" for n, share in zip(table[name], shares[name], strict=True)]
        ink = "white" if name == "neither" else style.INK
        axes.bar_label(bars, counts, label_type="center", size=11, color=ink)
        left += shares[name].to_numpy()
    axes.set(xlabel="share of the queries (%)", xlim=(0, 100))
    axes.grid(visible=False)
    axes.legend(**style.ABOVE, ncols=4)
    return figure


@style.themed
def confusion_maps(tables: Mapping[str, pd.DataFrame], *, context: str = "") -> Figure:
    """Wanted values (rows) against retrieved ones (columns): counts, one table and one panel an attribute.

    A cell shows its share of its row in per cent; the diagonal is right.

    >>> figure = confusion_maps({"colour": pd.DataFrame([[3, 1], [0, 4]], ["red", "blue"], ["red", "blue"])})
    """
    figure, charts = style.panels(len(tables), (4.6, 4.3), "Wanted and retrieved", context, columns=3)
    for axes, (name, table) in zip(charts, tables.items(), strict=True):
        shares = 100 * table.div(table.sum(axis=1).clip(lower=1), axis=0)
        texts = shares.map(lambda share: f"{share:.0f}" if share >= 0.5 else "")
        size = 9.5 if len(table) <= 8 else 7
        look = {"cmap": "Blues", "vmin": 0, "vmax": 100, "square": True, "cbar": False, "annot_kws": {"size": size}}
        sns.heatmap(shares, ax=axes, annot=texts, fmt="", xticklabels=True, yticklabels=True, **look)
        right = 100 * np.trace(table) / table.to_numpy().sum()
        axes.set_title(f"{name.replace('_', ' ')}: {right:.1f} % right", loc="left", size=12)
        axes.tick_params(axis="x", labelsize=size, rotation=90)
        axes.tick_params(axis="y", labelsize=size, rotation=0)
        axes.set(xlabel="retrieved", ylabel="wanted")
    return figure
