"""Plots of the failure analysis; its grids of pictures are in :mod:`cirlib.figures.image_grids`."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cirlib.figures import style
from cirlib.study.method_registry import method_label

PARTS = ("both", "only_first", "only_second", "neither")  # columns of `exchange_bars`, from left to right


@style.themed("No query to take apart.")
def kind_bars(table: pd.DataFrame, *, method: str = "", context: str = "") -> Figure:
    """A method's recall@10 by kind of edit, best first: group, queries; value, ci_low, ci_high, chance (of 1).

    >>> figure = kind_bars(pd.read_csv(results / "failure_cases/kinds.csv"), method="qformer")
    """
    table = table.sort_values("value", ascending=False, kind="stable")
    labels = [f"{row.group}  (n = {row.queries:,})" for row in table.itertuples()]
    title, colour = _of_method("Recall@10 by kind of edit", method)
    return style.row_chart(table, labels, title, context, colour=colour)


@style.themed("No query to take apart.")
def recall_by(table: pd.DataFrame, *, method: str = "", context: str = "") -> Figure:
    """A method's recall@10 against what is asked, a panel each value of ``by``; its groups, as in `kind_bars`.

    >>> figure = recall_by(pd.read_csv(results / "failure_cases/asked.csv"), method="qformer")
    """
    title, colour = _of_method("Recall@10 by what is asked", method)
    notes = (context, "dashed: chance")
    figure, charts = style.panels(table["by"].nunique(), (4.4, 4.4), title, *notes, sharey=True)
    for axes, (name, rows) in zip(charts, table.groupby("by", sort=False), strict=True):
        places = np.arange(len(rows))
        style.value_bars(axes, places, {"": rows}, [colour], vertical=True)
        axes.axhline(100 * rows["chance"].mean(), **style.CHANCE, label="chance")
        groups = rows["group"].str.replace(" to ", " to\n").str.replace(r"(^|\n)-", r"\1−", regex=True)
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
    none = ", ".join(found.index[found == 0])
    context += f"  ·  no miss of anybody: {none}" if none else ""
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
    """How many queries both, one or neither of two methods (first, second) has in its first ten, as in ``PARTS``.

    Beside them the difference in Recall@10 (a fraction) and its p_holm.

    >>> figure = exchange_bars(pd.read_csv(results / "failure_cases/exchanges.csv"))
    """
    notes = ("numbers: queries", "p: paired test, by Holm")
    title = "Who finds what another misses, in the first ten"
    figure, (axes,) = style.panels(1, (12, 1.2 + 0.7 * len(table)), title, context, *notes)
    labels = [
        f"{method_label(row.first)}, then\n{method_label(row.second)}:  {style.points(row.difference)} points, "
        + (f"p = {row.p_holm:.2g}" if row.p_holm >= 0.001 else "p < 0.001")
        for row in table.itertuples()
    ]
    places, left = style.label_rows(axes, labels), np.zeros(len(table))
    own = style.method_colours(list(dict.fromkeys([*table["first"], *table["second"]])))
    colours = {"both": style.FAINT, "neither": style.MUTED}
    colours |= {f"only_{each}": table[each].map(own).tolist() for each in ("first", "second")}
    shares = 100 * table[list(PARTS)].div(table[list(PARTS)].sum(axis=1), axis=0)
    for name in PARTS:
        bars = axes.barh(places, shares[name], 0.62, left=left, color=colours[name], edgecolor="white")
        counts = [f"{n:,}" if share > 3.5 else "" for n, share in zip(table[name], shares[name], strict=True)]
        axes.bar_label(bars, counts, label_type="center", size=11, path_effects=style.HALO)
        left += shares[name].to_numpy()
    axes.set(xlabel="share of the queries (%)", xlim=(0, 100))
    axes.grid(visible=False)
    keys = {"both find it": style.FAINT} | {f"only {method_label(name)}": own[name] for name in own}
    handles = [Patch(color=colour, label=label) for label, colour in (keys | {"neither": style.MUTED}).items()]
    figure.legend(handles=handles, **style.BELOW, ncols=3)
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
    title, _ = _of_method("Wanted and retrieved", method)
    notes = ("of the first result", "cells: % of the row", "no intervals")
    figure, charts = style.panels(len(tables), (4.6, 4.3), title, context, *notes, columns=3)
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


def _of_method(title: str, method: str) -> tuple[str, str]:
    """The title with the method's name, and the method's colour."""
    return (
        (f"{title}: {method_label(method)}", style.method_colours([method])[method]) if method else (title, style.BLUE)
    )
