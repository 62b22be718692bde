"""Plots of the failure analysis; its picture sheets are :mod:`cirlib.figures.image_grids`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cirlib.figures.plots import (
    BLUE,
    FAINT,
    GREEN,
    HEADER,
    INK,
    METHODS,
    MUTED,
    ORANGE,
    check_table,
    method_label,
    new_figure,
    percent,
    signed,
    themed,
    whiskers,
)

COLUMNS = ("group", "queries", "value", "ci_low", "ci_high", "chance")


@themed
def kind_bars(table: pd.DataFrame, *, context: str = "") -> Figure:
    """Recall@10 by kind of edit, best first: :data:`COLUMNS`, fractions of 1."""
    check_table(table, "kind_bars", COLUMNS, COLUMNS[2:])
    table = table.sort_values("value", ascending=False, kind="stable")
    figure, axes = _one(10, 0.42 * len(table), "Recall@10 by kind of edit", context)
    places = np.arange(len(table), dtype=float)
    axes.barh(places, 100 * table["value"], 0.62, color=BLUE)
    whiskers(axes, places, table, horizontal=True)
    for place, row in zip(places, table.itertuples(), strict=True):
        axes.annotate(percent(row.value), (100 * row.ci_high, place), (6, 0), textcoords="offset points", va="center")
    _chance(axes, table["chance"].mean(), vertical=True)
    axes.set_yticks(places, [f"{row.group}  (n = {row.queries:,})" for row in table.itertuples()])
    axes.set(xlabel="Recall@10 (%)", xlim=(0, 110 * table["ci_high"].max()), ylim=(len(table) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")
    return figure


@themed
def recall_by(table: pd.DataFrame, *, context: str = "") -> Figure:
    """Recall@10 against what is asked, a panel each value of ``by``: by and :data:`COLUMNS`, groups in order."""
    check_table(table, "recall_by", ("by", *COLUMNS), COLUMNS[2:])
    tables = dict(list(table.groupby("by", sort=False)))
    figure = new_figure(13, 5.2, "Recall@10 by what is asked", context, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - HEADER / 5.2), wspace=0.05)
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, (name, rows) in zip(panels, tables.items(), strict=True):
        places = np.arange(len(rows), dtype=float)
        axes.plot(places, 100 * rows["value"], "o-", color=BLUE, markersize=8)
        whiskers(axes, places, rows)
        _chance(axes, rows["chance"].mean())
        groups = rows["group"].str.replace(" to ", " to\n").str.replace(r"(^|\n)-", r"\1−", regex=True)
        labels = [f"{group}\nn = {queries:,}" for group, queries in zip(groups, rows["queries"], strict=True)]
        axes.set_xticks(places, labels, size=10.5)
        axes.set(xlabel=name, xlim=(-0.5, len(rows) - 0.5))
        axes.grid(visible=False, axis="x")
    panels[0].set(ylabel="Recall@10 (%)", ylim=(0, min(106, 112 * table["ci_high"].max())))
    return figure


@themed
def reason_bars(table: pd.DataFrame, *, context: str = "") -> Figure:
    """What share of a method's misses has which reason: method, reason, misses, value, ci_low, ci_high."""
    columns = ("method", "reason", "misses", "value", "ci_low", "ci_high")
    check_table(table, "reason_bars", columns, columns[3:])
    reasons, tables = list(table["reason"].unique()), dict(list(table.groupby("method", sort=False)))
    figure, axes = _one(10.6, 0.2 + 0.3 * len(reasons) * (len(tables) + 0.7), "Why targets are missed", context)
    step = 0.84 / len(tables)
    for number, (method, rows) in enumerate(tables.items()):
        rows = rows.set_index("reason").reindex(reasons)
        places = np.arange(len(reasons)) + (number - (len(tables) - 1) / 2) * step
        label = f"{method_label(method)}  ({int(rows['misses'].sum()):,} misses)"
        colour = METHODS[method][1] if method in METHODS else MUTED
        axes.barh(places, 100 * rows["value"], 0.9 * step, color=colour, label=label)
        whiskers(axes, places, rows, horizontal=True)
        for place, row in zip(places, rows.itertuples(), strict=True):
            at = (100 * row.ci_high, place)
            axes.annotate(percent(row.value), at, (5, 0), textcoords="offset points", va="center", size=10)
    axes.set_yticks(np.arange(len(reasons)), reasons)
    axes.set(xlabel="share of the misses (%)", xlim=(0, 112 * table["ci_high"].max()), ylim=(len(reasons) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(tables), borderaxespad=0.2)
    return figure


@themed
def exchange_bars(table: pd.DataFrame, *, context: str = "") -> Figure:
    """Who finds what: of all queries those that both, one or neither of two methods has in its first ten."""
    parts = {
        "both": ("both find it", FAINT),
        "only_first": ("only the first", ORANGE),
        "only_second": ("only the second", GREEN),
        "neither": ("neither", "#6B6B6B"),
    }
    check_table(table, "exchange_bars", ("first", "second", *parts, "difference", "p_holm"))
    figure, axes = _one(11.5, 0.3 + 0.75 * len(table), "Who finds what another misses", context)
    total = table[list(parts)].sum(axis=1)
    places, left = np.arange(len(table), dtype=float), np.zeros(len(table))
    for name, (label, colour) in parts.items():
        share = (100 * table[name] / total).to_numpy()
        axes.barh(places, share, 0.62, left=left, color=colour, label=label, edgecolor="white")
        for place, width, start, count in zip(places, share, left, table[name], strict=True):
            ink = "white" if name == "neither" else INK
            if width > 3.5:
                axes.text(start + width / 2, place, f"{count:,}", ha="center", va="center", color=ink, size=11)
        left += share
    labels = [
        f"{method_label(row.first)}, then\n{method_label(row.second)}:  {signed(100 * row.difference)} points, "
        + (f"p = {row.p_holm:.2g}" if row.p_holm >= 0.001 else "p < 0.001")
        for row in table.itertuples()
    ]
    axes.set_yticks(places, labels, size=11)
    axes.set(xlabel="share of the queries (%)", xlim=(0, 100), ylim=(len(table) - 0.5, -0.5))
    axes.grid(visible=False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)
    return figure


@themed
def confusion_maps(tables: Mapping[str, pd.DataFrame], *, context: str = "") -> Figure:
    """Wanted (rows) against retrieved values (columns) of each attribute, a panel an attribute: counts.

    A cell is the share of its row; the diagonal is right.
    """
    if not tables:
        raise ValueError("confusion_maps needs attributes")
    columns = min(3, len(tables))
    lines = -(-len(tables) // columns)
    size = (4.6 * columns, 1.2 + 4.3 * lines)
    figure = new_figure(*size, "Wanted and retrieved", context, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - HEADER / size[1]))
    panels = figure.subplots(lines, columns, squeeze=False)
    for axes in panels.flat[len(tables) :]:
        axes.set_axis_off()
    for axes, (name, table) in zip(panels.flat, tables.items(), strict=False):
        _confusion(axes, name, table)
    return figure


def _confusion(axes: Axes, name: str, table: pd.DataFrame) -> None:
    counts = table.to_numpy(float)
    shares = 100 * counts / np.fmax(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    size = 9.5 if len(table) <= 8 else 7
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.5:
            ink = "white" if share > 55 else INK
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", size=size, color=ink)
    right = 100 * np.trace(counts) / counts.sum()
    axes.set_title(f"{name.replace('_', ' ')}: {right:.1f} % right", loc="left", size=12)
    axes.set_xticks(range(len(table)), table.columns, rotation=90, size=size)
    axes.set_yticks(range(len(table)), table.index, size=size)
    axes.set(xlabel="retrieved", ylabel="wanted")
    axes.grid(visible=False)


def _one(width: float, height: float, title: str, context: str) -> tuple[Figure, Axes]:
    """One chart with ``height`` inches for its rows."""
    height += 2.1
    figure = new_figure(width, height, title, context, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - HEADER / height))
    return figure, figure.subplots()


def _chance(axes: Axes, chance: float, *, vertical: bool = False) -> None:
    line = axes.axvline if vertical else axes.axhline
    line(100 * chance, color=INK, linestyle="--", linewidth=1.4)
    place = {"xy": (100 * chance, 1), "xycoords": ("data", "axes fraction"), "xytext": (4, 3), "ha": "left"}
    if not vertical:
        place = {"xy": (1, 100 * chance), "xycoords": ("axes fraction", "data"), "xytext": (-2, 3), "ha": "right"}
    axes.annotate("chance", textcoords="offset points", va="bottom", size=10, color=MUTED, **place)
