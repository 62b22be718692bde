"""Recall of methods, protocols and publications, from tables such as results/<study>/summary.csv."""

from collections.abc import Sequence
from itertools import product

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cirlib.figures import style
from cirlib.study.method_registry import method_label

CAPTIONS = {  # how a query's captions become a text: in words
    "and": "joined by “and”",
    "both_orders": "joined in both orders",
    "first": "cut to the first",
    "template": "put in a template",
    "raw": "joined as they are",
}
SOURCES = {  # source in `paper_vs_ours`: (name in the legend, colour)
    "paper": ("the paper", style.ORANGE),
    "published": ("other publications", "#9A9A9A"),
    "ours": ("this study", style.BLUE),
}


@style.themed("No method was scored.")
def recall_bars(summary: pd.DataFrame) -> Figure | None:
    """Recall@10, a panel a category and the mean last, a bar a method; 95 % interval as lines, chance dashed.

    `summary`: results/<study>/summary.csv. Raises FigureError where it has more than one protocol, ValueError where a
    bar would have two values.

    >>> figure = recall_bars(pd.read_csv(results / "summary.csv"))
    """
    rows = summary[summary["metric"] == "recall@10"]
    if rows.empty:
        return None
    methods, categories = list(rows["method"].unique()), rows["category"].unique()
    categories = sorted(categories, key=lambda category: category == "mean")
    categories = categories[:1] if len(categories) == 2 else categories  # the mean of one is that one
    size, shared = (max(3.3, 9 / len(categories)), 1.1 + 0.37 * len(methods)), {"sharex": True, "sharey": True}
    title, notes = "Recall@10 by category", (measured_on(rows), "dashed: chance")
    figure, charts = style.panels(len(categories), size, title, *notes, **shared)
    for axes, category in zip(charts, categories, strict=True):
        own = rows[rows["category"] == category].set_index("method")
        places = style.label_rows(axes, [method_label(method) for method in methods])
        colours = list(style.method_colours(methods).values())
        style.value_bars(axes, places, {"": own.reindex(methods)}, [colours])
        axes.axvline(100 * own["chance"].max(), **style.CHANCE, label="chance")
        axes.set_title(category if own["complete"].all() else f"{category} *", loc="left", size=13, weight="bold")
        axes.set(xlabel="Recall@10 (%)")
        axes.margins(x=0.24)
        axes.label_outer()
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
    each = (rows if each.empty else each).drop_duplicates("category")
    notes = [sample_note(str(rows["protocol"].iloc[0]), each["queries"].astype(int), each["gallery"].astype(int))]
    notes += intervals * ["lines: 95 % interval over queries"] + (not rows["complete"].all()) * ["* gallery incomplete"]
    return "  ·  ".join(notes)


def sample_note(protocol: str, queries: Sequence[int], candidates: Sequence[int]) -> str:
    """Protocol, number of queries and of the images each is ranked among, as a subtitle; a number a category.

    >>> sample_note("original gallery, captions joined: and", [9, 9], [99, 98])
    'protocol: original gallery, captions joined by “and”  ·  9 queries a category, each among 98–99 images'
    """
    number, images = ("–".join(f"{n:,}" for n in sorted({min(some), max(some)})) for some in (queries, candidates))
    images += " images (not counting its reference)" if "reference removed" in protocol else " images"
    each = " a category" if len(queries) > 1 else ""
    return f"protocol: {_in_words(protocol)}  ·  {number} queries{each}, each among {images}"


def _in_words(protocol: str) -> str:
    rest, _, captions = protocol.partition("captions joined: ")
    return f"{rest}captions {CAPTIONS.get(captions, captions)}" if captions else rest


@style.themed("Nothing was trained.")
def recall_before_after(summary: pd.DataFrame, before: str, *after: str) -> Figure | None:
    """Recall@K of a method and of what came of it, over all categories, with 95 % intervals and chance.

    `summary` as in `recall_bars`. Raises KeyError for an unknown method.

    >>> figure = recall_before_after(pd.read_csv(results / "summary.csv"), "text_only", "retrieval_dpo")
    """
    rows = summary[(summary["category"] == "mean") & summary["metric"].str.startswith("recall@")]
    methods = [before, *after]
    rows = rows[rows["method"].isin(methods)]
    if rows.empty:
        return None
    metrics = sorted(rows["metric"].unique(), key=lambda name: int(name.split("@")[1]))
    table = rows.set_index(["method", "metric"])
    groups = {method_label(method): table.loc[method].reindex(metrics) for method in methods}
    size = (10, 1.3 + 0.4 * len(methods) * len(metrics))
    title = f"Recall before and after training: {method_label(before)} → {method_label(after[0])}"
    figure, (axes,) = style.panels(1, size, title, "mean of the categories", measured_on(rows))
    places = style.label_rows(axes, [metric.capitalize() for metric in metrics])
    style.value_bars(axes, places, groups, style.method_colours(methods).values(), unit=" %")
    chance = 100 * rows.groupby("metric")["chance"].max()[metrics]
    axes.vlines(chance, places - 0.45, places + 0.45, **style.CHANCE, label="chance")
    axes.set_xlabel("recall (%)")
    figure.legend(*axes.get_legend_handles_labels(), **style.BELOW, ncols=4)
    return figure


@style.themed("No protocol was scored.")
def protocol_bars(table: pd.DataFrame, *, method: str = "") -> Figure:
    """A method under several protocols: used_by, rule, value, ci_low, ci_high, queries, gallery, chance.

    Protocols of one rule and value are one bar, in the table's order, named by the first of those that use each.

    >>> figure = protocol_bars(pd.read_csv(results / "zero_shot/protocols.csv"), method="sum")
    """
    table = table.assign(used_by=table["used_by"].str.split(r"[,(:]").str[0].str.strip())
    same = table.groupby(["rule", "value"], sort=False, dropna=False)
    rows = same.first().reset_index().assign(used_by=same["used_by"].agg(", ".join).to_numpy())
    labels = [
        f"{_in_words(row.rule)}  ({row.used_by})".replace(", captions", "\ncaptions") for row in rows.itertuples()
    ]
    title, colour = style.of_method("What the protocol alone is worth", method)
    notes = f"mean of the categories  ·  {rows['queries'].max():,} queries  ·  lines: 95 % interval over queries  ·  "
    notes += "in brackets: who measures so  ·  right: images that a query is ranked among"
    right = [f"{gallery:,}" for gallery in rows["gallery"]]
    return style.row_chart(rows, labels, title, notes, colour=colour, right=right)


@style.themed("No number to compare.")
def paper_vs_ours(table: pd.DataFrame, *, context: str = "") -> Figure:
    """Published numbers and ours: method, source (a key of ``SOURCES``), trained, data, recall@10 (fraction), protocol.

    A column of panels each value of ``data``; zero-shot methods above trained ones, each best first. Intervals are
    drawn where ``recall@10/ci_low`` and ``…/ci_high`` have them, a range from ``recall@10/from`` to ``…/to``. What has
    no number is named under the title; `protocol` is printed beside, or over a panel that has only one, since numbers
    of different ones do not compare. `context` is of this study's numbers.

    >>> figure = paper_vs_ours(pd.read_csv(results / "paper_vs_ours.csv"))
    """
    names = {"recall@10": "value"} | {f"recall@10/{end}": end for end in ("ci_low", "ci_high", "from", "to")}
    columns = ["method", "source", "trained", "data", "protocol", *names]
    rows = table.reindex(columns=columns).rename(columns=names)
    unknown = rows[rows[["value", "to"]].isna().all(axis=1)]
    rows = rows.drop(unknown.index) if len(unknown) < len(rows) else rows
    data, blocks = list(rows["data"].unique()), sorted(rows["trained"].unique())
    counts = [rows[rows["trained"] == block].groupby("data").size().max() for block in blocks]
    size = (15 / len(data), 0.34 * sum(counts) / len(blocks) + 0.9)
    shape = {"sharex": True, "gridspec_kw": {"height_ratios": counts}}
    notes = ["mean of the categories", "only equal data and protocol (gallery · reference · captions) compare"]
    notes += [f"this study: {context.removeprefix('protocol: ')}"] if context else []
    notes += ["not run: " + "; ".join(unknown["method"])] if len(unknown) else []
    title = "Recall@10: the paper, other publications, this study"
    figure, charts = style.panels(len(data) * len(blocks), size, title, *notes, columns=len(data), **shape)
    for axes, (block, one) in zip(charts, product(range(len(blocks)), data), strict=True):
        own = rows[(rows["trained"] == blocks[block]) & (rows["data"] == one)]
        if own.empty:  # a study that trained nothing
            axes.set_axis_off()
            continue
        own = own.assign(order=own["value"].fillna(own["to"]), protocol=own["protocol"].fillna("").map(_short_protocol))
        protocols = own["protocol"].unique()
        _panel_of_sources(axes, own if len(protocols) > 1 else own.assign(protocol=""))
        axes.set_ylim(counts[block] - 0.4, -0.6)
        title = f"{'trained' if blocks[block] else 'zero-shot'}, on {one.replace('fashioniq', 'FashionIQ')}"
        title += f" ({protocols[0]})" if len(protocols) == 1 else ""
        axes.set_title(title, loc="left", size=13, weight="bold")
    known = {label: handle for axes in charts for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known.keys(), **style.BELOW, ncols=len(known))
    return figure


def _panel_of_sources(axes: Axes, rows: pd.DataFrame) -> None:
    """A bar a row, best first, in the colour of its source, with its protocol on the right; ranges float."""
    rows = rows.sort_values("order", ascending=False, kind="stable", ignore_index=True)
    labels = [method_label(method) for method in rows["method"]]
    places = style.label_rows(axes, labels, right=list(rows["protocol"]) if rows["protocol"].any() else [])
    for tick, source in zip(axes.get_yticklabels(), rows["source"], strict=True):
        tick.set_weight("bold" if source == "paper" else "normal")
    for source, own in rows.groupby("source", sort=False):
        (label, colour), ranged = SOURCES[source], own["to"].notna().to_numpy()
        style.value_bars(axes, places[own.index[~ranged]], {label: own[~ranged]}, [colour])
        ends = 100 * own.loc[ranged, ["from", "to"]]
        look = {"color": colour, "label": "_range", "alpha": 0.55}
        axes.barh(places[own.index[ranged]], ends["to"] - ends["from"], 0.56, left=ends["from"], **look)
    axes.set_xlabel("Recall@10 (%)")
    axes.margins(x=0.22)
    axes.tick_params(labelbottom=True)


def _short_protocol(protocol: str) -> str:
    """``original gallery, reference removed, captions joined: and`` as ``original · removed · and``."""
    for words in (" gallery", "reference ", "captions joined: ", "captions: "):
        protocol = protocol.replace(words, "")
    return protocol.replace(", ", " · ")
