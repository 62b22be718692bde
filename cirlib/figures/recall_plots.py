"""Recall of methods, protocols and publications, from tables such as results/<study>/summary.csv."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cirlib.figures import style
from cirlib.study.method_registry import method_label

SOURCES = {  # source in `paper_vs_ours`: (name in the legend, colour)
    "paper": ("the paper", style.ORANGE),
    "published": ("other publications", "#9A9A9A"),
    "ours": ("this study", style.BLUE),
    "ours elsewhere": ("this study, on other data: not comparable", "#A6CBE3"),
}


@style.themed
def recall_bars(summary: pd.DataFrame) -> Figure:
    """Recall@10 per category, the mean last, in bars grouped by method; 95 % interval as whiskers, chance dashed.

    `summary`: results/<study>/summary.csv. Raises FigureError where it has more than one protocol, ValueError where a
    bar would have two values.

    >>> figure = recall_bars(pd.read_csv(results / "summary.csv"))
    """
    rows = summary[summary["metric"] == "recall@10"]
    methods = list(rows["method"].unique())
    categories = sorted(rows["category"].unique(), key=lambda category: category == "mean")
    width = float(np.clip(2.5 + 0.42 * len(methods) * len(categories), 10.6, 13.5))
    figure, (axes,) = style.panels(1, (width, 4.6), "Recall@10 by category", measured_on(rows))
    places = np.arange(len(categories)) + np.where(np.array(categories) == "mean", 0.15, 0)
    groups = {method_label(m): rows[rows["method"] == m].set_index("category").reindex(categories) for m in methods}
    size = min(11.0, 18.5 / max(3, len(methods)) * width / len(categories))
    style.value_bars(axes, places, groups, style.method_colours(methods).values(), vertical=True, size=size)
    by_category = rows.groupby("category")
    chance, complete = by_category["chance"].max()[categories], by_category["complete"].all()
    axes.hlines(100 * chance, places - 0.47, places + 0.47, **style.CHANCE, label="chance")
    axes.set_xticks(places, [name if complete[name] else f"{name} *" for name in categories])
    axes.set(ylabel="Recall@10 (%)", xlim=(places[0] - 0.6, places[-1] + 0.6))
    axes.grid(visible=False, axis="x")
    axes.legend(**style.ABOVE, ncols=min(5, len(methods) + 1))
    return figure


def measured_on(rows: pd.DataFrame, *, intervals: bool = True) -> str:
    """Protocol, queries and gallery of the rows, as a subtitle; ``intervals``: the chart draws them as lines.

    Raises FigureError where the rows are of several protocols: their numbers do not compare.

    >>> subtitle = measured_on(pd.read_csv(results / "summary.csv"))
    """
    if rows["protocol"].nunique() > 1:
        protocols = ", ".join(sorted(rows["protocol"].unique()))
        raise style.FigureError(f"a figure compares numbers of one protocol, the table has {protocols}")
    each = rows[rows["category"] != "mean"]
    each = rows if each.empty else each
    ends = [each[column].astype(int).agg(["min", "max"]) for column in ("queries", "gallery")]
    queries, gallery = (f"{low:,}" if low == high else f"{low:,}–{high:,}" for low, high in ends)
    per = " a category" if each["category"].nunique() > 1 else ""
    notes = [f"protocol: {rows['protocol'].iloc[0]}", f"{queries} queries and {gallery} gallery images{per}"]
    notes += intervals * ["lines: 95 % interval"] + (not rows["complete"].all()) * ["* gallery incomplete"]
    return "  ·  ".join(notes)


@style.themed
def recall_before_after(summary: pd.DataFrame, before: str, after: str) -> Figure:
    """Recall@K of two methods over all categories, side by side for each K, with 95 % intervals and chance.

    `summary` as in `recall_bars`. Raises KeyError for an unknown method.

    >>> figure = recall_before_after(pd.read_csv(results / "summary.csv"), "text_only", "retrieval_dpo")
    """
    rows = summary[(summary["category"] == "mean") & summary["metric"].str.startswith("recall@")]
    rows = rows[rows["method"].isin([before, after])]
    metrics = sorted(rows["metric"].unique(), key=lambda name: int(name.split("@")[1]))
    table = rows.set_index(["method", "metric"])
    groups = {method_label(method): table.loc[method].reindex(metrics) for method in (before, after)}
    size = (10, 1.3 + 0.8 * len(metrics))
    figure, (axes,) = style.panels(1, size, " → ".join(groups), "mean", measured_on(rows))
    places = style.label_rows(axes, [metric.capitalize() for metric in metrics])
    style.value_bars(axes, places, groups, style.method_colours([before, after]).values(), unit=" %")
    chance = 100 * rows.groupby("metric")["chance"].max()[metrics]
    axes.vlines(chance, places - 0.45, places + 0.45, **style.CHANCE, label="chance")
    axes.set_xlabel("recall (%)")
    axes.legend(**style.ABOVE, ncols=3)
    return figure


@style.themed
def protocol_bars(table: pd.DataFrame) -> Figure:
    """One model under several protocols, in the table's order: protocol, rule, value, ci_low, ci_high, chance.

    >>> figure = protocol_bars(pd.read_csv(results / "zero_shot/protocols.csv"))
    """
    subtitle = "in brackets: gallery · reference · captions  ·  lines: 95 % interval"
    labels = [f"{row.protocol}  ({_short_protocol(row.rule)})" for row in table.itertuples()]
    return style.row_chart(table, labels, "One model, several protocols", subtitle)


@style.themed
def paper_vs_ours(table: pd.DataFrame) -> Figure:
    """Published numbers and ours: method, source (a key of ``SOURCES``), recall@10 (fraction), protocol.

    Intervals are drawn where ``recall@10/ci_low`` and ``…/ci_high`` have them. Each source's rows stand together, best
    first; NaN reads "not run"; `protocol` is printed beside, since numbers of different protocols do not compare.

    >>> figure = paper_vs_ours(pd.read_csv(results / "paper_vs_ours.csv"))
    """
    names = {"recall@10": "value", "recall@10/ci_low": "ci_low", "recall@10/ci_high": "ci_high"}
    rows = table.reindex(columns=["method", "source", "protocol", *names]).rename(columns=names)
    rows["group"] = rows["source"].map(list(SOURCES).index)
    rows = rows.sort_values(["group", "value"], ascending=[True, False], kind="stable", ignore_index=True)
    places = rows.index + 0.5 * (rows["group"].rank(method="dense") - 1)  # a gap between sources
    title = "Recall@10: the paper, other publications, this study"
    subtitle = "mean of the categories  ·  numbers compare only where data and protocol (right) are the same"
    figure, (axes,) = style.panels(1, (13, 1.2 + 0.34 * (places.iloc[-1] + 1)), title, subtitle)
    protocols = [_short_protocol(protocol) for protocol in rows["protocol"].fillna("")]
    style.label_rows(axes, [method_label(method) for method in rows["method"]], places, right=protocols)
    for source, own in rows.groupby("source", sort=False):
        label, colour = SOURCES[source]
        style.value_bars(axes, places[own.index], {label: own}, [colour])
    axes.set_xlabel("Recall@10 (%)")
    axes.legend(**style.ABOVE, ncols=2)
    return figure


def _short_protocol(protocol: str) -> str:
    """``original gallery, reference removed, captions joined: and`` as ``original · removed · and``."""
    for words in (" gallery", "reference ", "captions joined: ", "captions: "):
        protocol = protocol.replace(words, "")
    return protocol.replace(", ", " · ")
