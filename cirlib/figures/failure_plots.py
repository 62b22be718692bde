"""Plots of the failure analysis; its grids of pictures are in :mod:`cirlib.figures.image_grids`."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from cirlib.figures import style
from cirlib.study.method_registry import method_label

PARTS = ["both", "only_first", "only_second", "neither"]  # columns of `exchange_bars`: numbers of queries
CROWDED = 8  # values of an attribute: with more, a cell of `confusion_maps` under 10 % has no number


@style.themed("No query to take apart.")
def kind_bars(table: pd.DataFrame, *, method: str = "", overall: float | None = None, context: str = "") -> Figure:
    """A method's recall@10 by kind of edit, best first: group, queries; value, ci_low, ci_high, chance (of 1).

    ``overall``: recall@10 of all queries, a dotted line.

    >>> figure = kind_bars(pd.read_csv(results / "failure_cases/kinds.csv"), method="qformer")
    """
    table = table.sort_values("value", ascending=False, kind="stable")
    labels = [f"{row.group}  (n = {row.queries:,})" for row in table.itertuples()]
    title, colour = style.of_method("Recall@10 by kind of edit", method)
    notes = [context, "a query counts in every kind that its edit is of", *_overall_note(overall)]
    figure = style.row_chart(table, labels, title, "  ·  ".join(notes), colour=colour)
    if overall is not None:
        figure.axes[0].axvline(100 * overall, **style.DOTTED)
    return figure


@style.themed("No query to take apart.")
def recall_by(table: pd.DataFrame, *, method: str = "", overall: float | None = None, context: str = "") -> Figure:
    """A method's recall@10 against what is asked, a panel each value of ``by``; its groups, as in `kind_bars`.

    >>> figure = recall_by(pd.read_csv(results / "failure_cases/asked.csv"), method="qformer")
    """
    title, colour = style.of_method("Recall@10 by what is asked", method)
    notes = (context, "dashed: chance", *_overall_note(overall))
    figure, charts = style.panels(table["by"].nunique(), (4.4, 4.4), title, *notes, sharey=True)
    for axes, (name, rows) in zip(charts, table.groupby("by", sort=False), strict=True):
        places = np.arange(len(rows))
        style.value_bars(axes, places, {"": rows}, [colour], vertical=True)
        axes.axhline(100 * rows["chance"].mean(), **style.CHANCE, label="chance")
        if overall is not None:
            axes.axhline(100 * overall, **style.DOTTED)
        groups = rows["group"].str.replace("-", "−")
        groups = groups.where(groups.str.len() < 9, groups.str.replace(" to ", " to\n"))
        labels = [f"{group}\nn = {queries:,}" for group, queries in zip(groups, rows["queries"], strict=True)]
        axes.set_xticks(places, labels, size=10.5)
        axes.set(xlabel=name, xlim=(-0.5, len(rows) - 0.5))
        axes.grid(visible=False, axis="x")
    charts[0].set_ylabel("Recall@10 (%)")
    return figure


@style.themed("No target is missed in the first ten.")
def reason_bars(table: pd.DataFrame, *, context: str = "") -> Figure | None:
    """What share of a method's misses has which reason: method, reason, misses, value, ci_low, ci_high.

    A reason that no miss has is named under the title and has no row.

    >>> figure = reason_bars(pd.read_csv(results / "failure_cases/reasons.csv"))
    """
    found = table.groupby("reason", sort=False)["misses"].sum()
    if not found.any():
        return None
    reasons, colours = list(found.index[found > 0]), style.method_colours(list(table["method"].unique()))
    none = "” or “".join(found.index[found == 0])
    context += "  ·  missed: not among the first ten; judged by the first image that is not the target"
    context += f"  ·  no miss is “{none}”" if none else ""
    height = 1.3 + 0.3 * len(reasons) * (len(colours) + 0.7)
    figure, (axes,) = style.panels(1, (12, height), "Why targets are missed", context)
    groups = {
        f"{method_label(method)}  ({own['misses'].sum():,} misses)": own.set_index("reason").reindex(reasons)
        for method, own in table.groupby("method", sort=False)
    }
    style.value_bars(axes, style.label_rows(axes, reasons), groups, colours.values(), size=10)
    axes.set_xlabel("share of the method's misses (%)")
    figure.legend(*axes.get_legend_handles_labels(), **style.BELOW, ncols=min(3, len(colours)))
    return figure


@style.themed("The study has one kind of method.")
def exchange_bars(table: pd.DataFrame, *, context: str = "") -> Figure:
    """The queries that only one of two methods (first, second) has in its first ten, to the left and to the right.

    `table`: first, second, and of their queries ``PARTS``; the difference in Recall@10 (a fraction) and its p_holm.

    >>> figure = exchange_bars(pd.read_csv(results / "failure_cases/exchanges.csv"))
    """
    notes = ("numbers: queries", "points: Recall@10, right less left, with its paired test, by Holm")
    title = "Who finds what another misses, in the first ten"
    figure, (axes,) = style.panels(1, (10, 1.0 + 0.72 * len(table)), title, context, *notes)
    first = [f"{method_label(row.first)}\n(both {row.both:,}, neither {row.neither:,})" for row in table.itertuples()]
    second = [
        f"{method_label(row.second)}\n({style.points(row.difference)} points, "
        + ("p < 0.001)" if row.p_holm < 0.001 else f"p = {row.p_holm:.2g})")
        for row in table.itertuples()
    ]
    places = style.label_rows(axes, first, right=second)
    own = style.method_colours(list(dict.fromkeys([*table["first"], *table["second"]])))
    for side, sign in (("first", -1), ("second", 1)):
        counts = table[f"only_{side}"]
        bars = axes.barh(places, sign * 100 * counts / table[PARTS].sum(axis=1), 0.62, color=table[side].map(own))
        axes.bar_label(bars, [f"{count:,}" for count in counts], padding=4, size=11.5)
    most = 1.2 * np.abs(axes.get_xlim()).max()
    axes.set(xlim=(-most, most), xlabel="share of the queries that only the left, only the right one finds (%)")
    axes.axvline(0, color=style.INK, linewidth=1.2)
    axes.xaxis.set_major_formatter(lambda share, _: f"{abs(share):g}")
    return figure


@style.themed("Not measured: this data does not say which attributes its pictures have.")
def confusion_maps(tables: Mapping[str, pd.DataFrame], *, method: str = "", context: str = "") -> Figure | None:
    """A method's wanted values (rows) against retrieved ones (columns): counts, a table and a panel an attribute.

    A cell shows its share of its row in per cent; the diagonal is right.

    >>> figure = confusion_maps({"colour": pd.DataFrame([[3, 1], [0, 4]], ["red", "blue"], ["red", "blue"])})
    """
    tables = {name: table for name, table in tables.items() if table.to_numpy().any()}
    if not tables:
        return None
    title, _ = style.of_method("Attributes wanted and found first", method)
    crowded = any(len(table) > CROWDED for table in tables.values())
    cells = "cells: % of the row" + ", of many values from 10 % on" * crowded
    notes = (cells, "chance: the first images dealt out at random", "no intervals")
    figure, charts = style.panels(len(tables), (4.9, 4.6), title, context, *notes, columns=3)
    for axes, (name, table) in zip(charts, tables.items(), strict=True):
        counts, total = table.to_numpy(float), table.to_numpy().sum()
        shares = 100 * table.div(table.sum(axis=1).clip(lower=1), axis=0)
        least, size = (10, 8) if len(table) > CROWDED else (0.5, 10)
        texts = shares.map(lambda share, least=least: f"{share:.0f}" if share >= least else "")
        look = {"cmap": "Blues", "vmin": 0, "vmax": 100, "square": True, "cbar": False, "annot_kws": {"size": size}}
        sns.heatmap(shares, ax=axes, annot=texts, fmt="", xticklabels=True, yticklabels=True, **look)
        style.ink_cells(axes)
        right, by_chance = np.trace(counts) / total, counts.sum(0) @ counts.sum(1) / total**2
        said = f"{style.percent(right)} % right, chance {style.percent(by_chance)} %"
        axes.set_title(f"{name.replace('_', ' ')}: {said}", loc="left", size=12)
        axes.tick_params(axis="x", labelsize=size, rotation=90)
        axes.tick_params(axis="y", labelsize=size, rotation=0)
        axes.set(xlabel="found first", ylabel="wanted")
    return figure


def _overall_note(overall: float | None) -> list[str]:
    return [] if overall is None else [f"dotted: all queries, {style.percent(overall)} %"]
