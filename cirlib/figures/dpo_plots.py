"""The figures of the DPO study, from tidy tables; `context` (protocol, data, sample) opens the subtitle."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from cirlib.figures import style
from cirlib.study.method_registry import method_label

NAMES = {  # name in the tables: name in the figures, where `method_label` has no better one
    "trains": "what trains",
    "change": "DPO",
    "dpo sigmoid": "DPO, sigmoid",
    "dpo hinge": "DPO, hinge",
    "dpo ipo": "DPO, IPO",
    "info_nce_mined": "InfoNCE, mined",
    "info_nce_in_batch": "InfoNCE, in-batch",
    "recall_in_batch": "recall@k surrogate, in-batch",
    "top": "top-k",
    "band": "band of ranks",
    "margin": "margin filter",
    "remined": "re-mined",
}
SAMPLINGS: dict[str, dict[str, Any]] = {
    "random": {"color": style.GREEN, "marker": "o", "linestyle": "-"},
    "band": {"color": style.BLUE, "marker": "s", "linestyle": "--"},
    "margin": {"color": style.PINK, "marker": "D", "linestyle": "-."},
    "top": {"color": style.ORANGE, "marker": "^", "linestyle": ":"},
}
WITHIN: dict[str, tuple[str, str]] = {  # levels that effects are shown within: colour and marker
    "top": (style.ORANGE, "^"),
    "random": (style.GREEN, "o"),
    "query_tower": (style.YELLOW, "s"),
    "query_projection": (style.BLUE, "P"),
}
QUALITIES = {  # column of `negative_quality`: (name in the legend, colour)
    "satisfies_edit": ("also satisfies the edit (false negative)", style.YELLOW),
    "differs_in_one": ("one attribute off the target (useful)", style.BLUE),
}


def _pretty(name: str) -> str:
    """The name in the figures of a level, method or switch in the tables."""
    return NAMES[name] if name in NAMES else method_label(name)


@style.themed("No run to show.")
def sweep_grid(cells: pd.DataFrame, *, text_only: float, chance: float, context: str = "") -> Figure:
    """Recall@10 over DPO's β, a panel an index, a line a way to sample the negatives.

    `cells`: index, sampling, beta (above 0), recall@10 and its interval ci_low to ci_high (fractions); several rows of
    one cell are averaged, NaN leaves a gap. `text_only` (zero-shot) and `chance` are fractions.

    >>> names = ["index", "sampling", "beta", "recall@10", "ci_low", "ci_high"]
    >>> cells = pd.DataFrame([["flat", "top", 0.1, 0.03, 0.02, 0.05]], columns=names)
    >>> figure = sweep_grid(cells, text_only=0.07, chance=0.01)
    """
    panels = list(cells["index"].unique())
    title, notes = (
        "Recall@10 by β, index and sampling of the negatives",
        "β on a log scale  ·  bands: 95 % interval over queries, one training a point",
    )
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


@style.themed("No run to show.")
def effects(table: pd.DataFrame, *, context: str = "") -> Figure | None:
    """Simple effects on Recall@10 with their intervals: a column a fusion, a row a switch, each on a scale of its own.

    `table`: factor, level, against (one a factor), fusion, within (only those of ``WITHIN`` are drawn), and
    as fractions of 1, shown in points: difference, ci_low and ci_high (95 %). NaN is left out. Marks are hollow where
    the interval holds 0.

    >>> row = ["change", "query_tower", "own start", "sum", "top", -0.02, -0.03, -0.01]
    >>> names = ["factor", "level", "against", "fusion", "within", "difference", "ci_low", "ci_high"]
    >>> figure = effects(pd.DataFrame([row], columns=names))
    """
    table = table[table["within"].isin(WITHIN)]
    if table.empty:
        return None
    factors = table.groupby(["factor", "against"], sort=False)["level"].agg(lambda own: list(dict.fromkeys(own)))
    fusions, withins = list(table["fusion"].unique()), [name for name in WITHIN if name in set(table["within"])]
    heights = [0.9 + len(levels) for levels in factors]
    options = {"columns": len(fusions), "gridspec_kw": {"height_ratios": heights}}
    notes = "lines: 95 % interval, hollow where it holds 0  ·  every panel has its own scale"
    size = (max(4.3, 9 / len(fusions)), (0.6 + 0.52 * sum(heights)) / len(heights))
    title = "What DPO changes from its own start, and what each switch changes"
    figure, axes = style.panels(len(factors) * len(fusions), size, title, context, notes, **options)
    for number, ((factor, against), levels) in enumerate(factors.items()):
        for column, fusion in enumerate(fusions):
            panel = axes[number * len(fusions) + column]
            own = table[(table["factor"] == factor) & (table["fusion"] == fusion)]
            head = f"{_pretty(factor)} against {'its own start' if factor == 'change' else _pretty(against)}"
            panel.set_title(f"{_pretty(fusion)}: {head}" if not number else head, loc="left", size=11.5)
            if own.empty:
                panel.text(0.5, 0.5, "not run", transform=panel.transAxes, ha="center", va="center", color=style.MUTED)
                panel.set(xticks=[], yticks=[])
                continue
            _interval_marks(panel, own, levels, withins)
            style.label_rows(panel, [_pretty(level) for level in levels] if not column else [""] * len(levels))
    for panel in axes[-len(fusions) :]:
        panel.set_xlabel("difference in Recall@10 (points)")
    figure.legend(handles=[_mark(name) for name in withins], **style.BELOW, ncols=6)
    return figure


def _mark(within: str) -> Line2D:
    colour, marker = WITHIN[within]
    return Line2D([], [], color=colour, marker=marker, markersize=7, label=_pretty(within))


def _interval_marks(axes: Axes, rows: pd.DataFrame, levels: list[str], withins: list[str]) -> None:
    """A line and a small mark for each row, those of a level side by side, with the points beside."""
    axes.axvline(0, color=style.INK, linewidth=1.2, zorder=1)
    present = [name for name in withins if name in set(rows["within"])]
    for row in rows.dropna(subset="difference").itertuples():
        colour, marker = WITHIN[row.within]
        place = levels.index(row.level) + 0.7 * ((present.index(row.within) + 0.5) / len(present) - 0.5)
        low, value, high = (100 * end for end in (row.ci_low, row.difference, row.ci_high))
        axes.plot([low, high], [place, place], color=colour, linewidth=2.4, solid_capstyle="butt", label="_interval")
        face = "white" if low <= 0 <= high else colour
        axes.plot(value, place, marker, color=colour, markerfacecolor=face, markersize=5.5, label=f"_{row.within}")
        look = {"size": 9, "va": "center", "color": style.INK}
        axes.annotate(style.points(row.difference), (high, place), (4, 0), textcoords="offset points", **look)
    axes.margins(x=0.22)


@style.themed("No negatives were mined.")
def negative_quality(table: pd.DataFrame, *, context: str = "") -> Figure:
    """How many of the sampled negatives are false ones and how many useful ones, in grouped bars.

    `table`: fusion, negatives (the way to sample), and the fractions satisfies_edit and differs_in_one, of which none
    or both may hold.

    >>> shares = {"satisfies_edit": [0.1], "differs_in_one": [0.2]}
    >>> figure = negative_quality(pd.DataFrame({"fusion": ["sum"], "negatives": ["top"], **shares}))
    """
    figure, (axes,) = style.panels(1, (11, 1.6 + 0.55 * len(table)), "What the sampled negatives are", context)
    places = style.label_rows(axes, [f"{_pretty(row.fusion)}: {_pretty(row.negatives)}" for row in table.itertuples()])
    groups = {label: table.rename(columns={column: "value"}) for column, (label, _) in QUALITIES.items()}
    style.value_bars(axes, places, groups, [colour for _, colour in QUALITIES.values()], unit=" %", size=11)
    axes.set_xlabel("share of the negatives (%)")
    axes.legend(**style.ABOVE)
    return figure


@style.themed("No run to show.")
def recipe_gains(table: pd.DataFrame, *, context: str = "") -> Figure:
    """What second trainings add in Recall@10, query by query: a dot and its interval, first against their start.

    `table`: method, against, start and value (mean recall@10 before and after), difference, ci_low and ci_high (95 %),
    all fractions; differences are shown in points. A NaN difference reads "not run".

    >>> row = ["DPO", "the Q-Former", 0.7, 0.72, 0.02, 0.01, 0.03, 2]
    >>> names = ["method", "against", "start", "value", "difference", "ci_low", "ci_high", "runs"]
    >>> figure = recipe_gains(pd.DataFrame([row], columns=names))
    """
    parts = []
    for number, (against, own) in enumerate(table.groupby("against", sort=False)):
        begins = f" ({style.percent(own['start'].iloc[0])} %)" if not number else ""
        parts.append(pd.DataFrame({"label": [f"against {_pretty(against)}{begins}"]}))
        texts = [
            f"{style.points(row.difference)} → {style.percent(row.value)} %" if row.value == row.value else "not run"
            for row in own.itertuples()
        ]
        parts.append(own.assign(label=own["method"].map(_pretty), text=texts))
    rows = pd.concat(parts, ignore_index=True)
    title, notes = (
        "What a second training adds",
        "lines: 95 % interval of the paired difference  ·  right: Recall@10 after",
    )
    figure, (axes,) = style.panels(1, (12, 1.2 + 0.42 * len(rows)), title, context, notes)
    places = style.label_rows(axes, list(rows["label"]), right=list(rows["text"].fillna("")))
    for tick, method in zip(axes.get_yticklabels(), rows["method"], strict=True):
        tick.set_weight("normal" if isinstance(method, str) else "bold")
    points = 100 * rows[["difference", "ci_low", "ci_high"]].astype(float)
    axes.axvline(0, color=style.INK, linewidth=1.2, zorder=1)
    axes.hlines(places, points["ci_low"], points["ci_high"], style.BLUE, linewidth=3, label="_interval", zorder=2)
    axes.scatter(points["difference"], places, s=42, color=style.BLUE, zorder=3)
    axes.set_xlabel("paired difference in Recall@10 (points)")
    return figure


@style.themed("No run to show.")
def factorial_map(cells: pd.DataFrame, *, context: str = "") -> Figure:
    """How far each combination is from its own start in Recall@10: a panel a fusion, each on its own diverging scale.

    `cells`: fusion, trains, objective, negatives, change and start_recall@10 (fractions, shown in points and %);
    repetitions of a cell are averaged, cells that are missing or NaN stay light grey.

    >>> row = ["sum", "query_tower", "dpo sigmoid", "top", 0.02, 0.2]
    >>> names = ["fusion", "trains", "objective", "negatives", "change", "start_recall@10"]
    >>> figure = factorial_map(pd.DataFrame([row], columns=names))
    """
    columns = list(dict.fromkeys(zip(cells["objective"], cells["negatives"], strict=True)))
    fusions, rows = list(cells["fusion"].unique()), list(cells["trains"].unique())
    size = (float(np.clip(5 + 0.62 * len(columns), 10, 15)), 0.8 + 0.42 * len(rows) + 1.8 / len(fusions))
    notes = "change in points, mean of the repetitions  ·  every panel has its own scale  ·  grey: not run"
    title = "Recall@10 of every combination, from its own start"
    figure, axes = style.panels(len(fusions), size, title, context, notes, columns=1, sharex=True)
    for panel, fusion in zip(axes, fusions, strict=True):
        own = cells[cells["fusion"] == fusion]
        means = 100 * own.groupby(["trains", "objective", "negatives"])["change"].mean()
        values = means.unstack(["objective", "negatives"]).reindex(rows)
        values = values.reindex(columns=pd.MultiIndex.from_tuples(columns))
        most = max(0.1, float(np.nan_to_num(values.abs().max().max())))
        look: dict[str, Any] = {"cmap": "RdBu", "vmin": -most, "vmax": most, "linewidths": 1}
        look |= {"cbar_kws": {"label": "points", "pad": 0.01, "aspect": 9, "fraction": 0.03}}
        sns.heatmap(
            values, ax=panel, annot=True, fmt="+.1f", yticklabels=[*map(_pretty, rows)], xticklabels=True, **look
        )
        panel.set_facecolor("#E4E4E4")
        panel.set(xlabel="", ylabel="")
        start = own["start_recall@10"].mean()
        panel.set_title(f"{_pretty(fusion)}: starts at {style.percent(start)} %", loc="left", size=13, weight="bold")
    labels = [
        _pretty(outer) if inner == "in-batch" else f"{_pretty(outer)}: {_pretty(inner)}" for outer, inner in columns
    ]
    axes[-1].set_xticklabels(labels, rotation=40, ha="right", rotation_mode="anchor")
    return figure
