"""The figures of the DPO study, from tidy tables; `context` (protocol, data, sample) opens the subtitle."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from cirlib.figures import style
from cirlib.study.method_registry import method_label

NAMES = {  # name in the tables: name in the figures, where `method_label` has no better one
    "qformer": "Q-Former, pretrained only",  # where a fusion is meant: the grid starts from models without triplets
    "trains": "what trains",
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
ABOVE_TITLE = {"xycoords": "axes fraction", "textcoords": "offset points", "weight": "bold", "size": 12.5}
WITHIN: dict[str, tuple[str, str]] = {  # levels that effects are shown within: colour and marker
    "top": (style.ORANGE, "^"),
    "random": (style.GREEN, "o"),
    "query_tower": (style.YELLOW, "s"),
    "query_projection": (style.BLUE, "P"),
    "both_projections": (style.PINK, "D"),
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

    `table`: factor, level, against (one a factor), fusion, within (only those of ``WITHIN`` are drawn), start (the
    fusion's recall@10) and, shown in points, difference, ci_low and ci_high (95 %), all fractions of 1. NaN is left
    out. Marks are hollow where the interval holds 0.

    >>> row = ["change", "query_tower", "own start", "sum", "top", 0.2, -0.02, -0.03, -0.01]
    >>> names = ["factor", "level", "against", "fusion", "within", "start", "difference", "ci_low", "ci_high"]
    >>> figure = effects(pd.DataFrame([row], columns=names))
    """
    table = table[table["within"].isin(WITHIN)]
    if table.empty:
        return None
    factors = table.groupby(["factor", "against"], sort=False)["level"].agg(lambda own: list(dict.fromkeys(own)))
    fusions, withins = list(table["fusion"].unique()), [name for name in WITHIN if name in set(table["within"])]
    heights = [0.9 + len(levels) for levels in factors]
    options = {"columns": len(fusions), "gridspec_kw": {"height_ratios": heights}}
    notes = ["lines: 95 % interval over queries and runs, hollow where it holds 0", "every panel has its own scale"]
    notes += ["query tower: the text encoder, or the Q-Former"]
    size = (max(4.3, 9 / len(fusions)), 0.3 + (1.0 + 0.52 * sum(heights)) / len(heights))
    title = "What DPO changes in Recall@10, and what each switch changes in that"
    figure, axes = style.panels(len(factors) * len(fusions), size, title, context, *notes, **options)
    for panel, (fusion, start) in zip(axes, table.groupby("fusion", sort=False)["start"].first().items(), strict=False):
        panel.annotate(f"{_pretty(fusion)}\n{style.percent(start)} % before", (0, 1), (0, 26), **ABOVE_TITLE)
    for number, ((factor, against), levels) in enumerate(factors.items()):
        for column, fusion in enumerate(fusions):
            panel = axes[number * len(fusions) + column]
            own = table[(table[["factor", "against", "fusion"]] == [factor, against, fusion]).all(axis=1)]
            instead = " on ".join(_pretty(part).removesuffix(", sigmoid") for part in against.split(" on "))
            head = "DPO: change" if factor == "change" else f"{_pretty(factor)}: instead of {instead}"
            if own.empty:
                panel.set_axis_off()
                panel.set_title("not run", loc="left", size=11.5, color=style.MUTED)
                continue
            panel.set_title(head, loc="left", size=11.5)
            _interval_marks(panel, own, levels, withins)
            style.label_rows(panel, [_pretty(level) for level in levels] if not column else [""] * len(levels))
    for panel in axes[-len(fusions) :]:
        panel.set_xlabel("difference in Recall@10 (points)")
    figure.legend(handles=[_mark(name) for name in withins], **style.BELOW, ncols=6)
    return figure


def _mark(within: str) -> Line2D:
    colour, marker = WITHIN[within]
    what = "negatives" if within in SAMPLINGS else "trains"
    return Line2D([], [], color=colour, marker=marker, markersize=7, label=f"{what}: {_pretty(within)}")


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
        look = {"size": 9, "va": "center", "color": style.INK, "bbox": style.ON_LINES}
        axes.annotate(style.points(row.difference), (high, place), (4, 0), textcoords="offset points", **look)
    axes.margins(x=0.22)


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
    """How far each combination is from its own start in Recall@10: a panel a fusion, one diverging scale.

    `cells`: fusion, trains, objective, negatives, change and start_recall@10 (fractions, shown in points and %);
    repetitions of a cell are averaged, cells that are missing or NaN stay blank. The scale is linear up to one point.

    >>> row = ["sum", "query_tower", "dpo sigmoid", "top", 0.02, 0.2]
    >>> names = ["fusion", "trains", "objective", "negatives", "change", "start_recall@10"]
    >>> figure = factorial_map(pd.DataFrame([row], columns=names))
    """
    columns = list(dict.fromkeys(zip(cells["objective"], cells["negatives"], strict=True)))
    means = cells.groupby(["fusion", "trains", "objective", "negatives"], sort=False)["change"].mean()
    most = max(1.0, 100 * float(np.nan_to_num(means.abs().max())))
    look: dict[str, Any] = {
        "cmap": "RdBu",
        "norm": SymLogNorm(1, linscale=0.3, vmin=-most, vmax=most),
        "vmin": -most,
        "vmax": most,
        "linewidths": 1,
        "cbar": False,
    }
    starts = cells.groupby("fusion", sort=False)["start_recall@10"].mean()
    rows = {fusion: list(cells.loc[cells["fusion"] == fusion, "trains"].unique()) for fusion in starts.index}
    heights = [len(own) for own in rows.values()]
    size = (float(np.clip(5 + 0.62 * len(columns), 10, 15)), 0.8 + 0.4 * np.mean(heights) + 1.6 / len(rows))
    notes = ["points, mean of the repetitions", "colours: linear to 1 point, logarithmic above", "blank: not run"]
    title, shape = "Recall@10 of every combination: change from its start", {"gridspec_kw": {"height_ratios": heights}}
    figure, axes = style.panels(len(rows), size, title, context, *notes, columns=1, sharex=True, **shape)
    for panel, (fusion, own) in zip(axes, rows.items(), strict=True):
        values = means[fusion].unstack(["objective", "negatives"]).reindex(own)
        values = 100 * values.reindex(columns=pd.MultiIndex.from_tuples(columns))
        texts = values.map(lambda change: style.points(change / 100))
        sns.heatmap(values, ax=panel, annot=texts, fmt="", yticklabels=[*map(_pretty, own)], xticklabels=True, **look)
        style.ink_cells(panel)
        panel.set(xlabel="", ylabel="")
        panel.grid(visible=False)
        title = f"{_pretty(fusion)}: {style.percent(starts[fusion])} % before"
        panel.set_title(title, loc="left", size=13, weight="bold")
    ticks = [sign * tick for sign in (-1, 1) for tick in (1, 3, 10, 30) if tick <= most]
    bar = figure.colorbar(axes[0].collections[0], ax=axes, label="points", aspect=30, pad=0.01)
    bar.set_ticks([*ticks, 0], labels=[f"{tick:+g}".replace("-", "−") for tick in ticks] + ["0"])
    labels = [
        _pretty(outer) if inner == "in-batch" else f"{_pretty(outer)}: {_pretty(inner)}" for outer, inner in columns
    ]
    axes[-1].set_xticklabels(labels, rotation=40, ha="right", rotation_mode="anchor")
    return figure
