"""The figures of the preference study. Each function takes a tidy table and returns a matplotlib Figure.

The rules are those of `cirlib.figures.plots`: tables hold fractions of 1 and figures show per cent, nothing is shown
or written here, and no figure says something by colour alone. Titles say what is drawn, not what was found;
`context` (protocol, data, sample) opens the subtitle.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from cirlib.figures.plots import (
    BLUE,
    GREEN,
    HEADER,
    INK,
    MUTED,
    ORANGE,
    check_table,
    method_label,
    metric_label,
    new_figure,
    percent,
    signed,
    text_column,
    themed,
    whiskers,
)

NAMES = {  # name in the tables: name in the figures
    "trains": "what trains",
    "text_only": "text only",
    "qformer": "Q-Former",
    "dpo sigmoid": "DPO, sigmoid",
    "dpo hinge": "DPO, hinge",
    "dpo ipo": "DPO, IPO",
    "info_nce_mined": "InfoNCE, mined",
    "info_nce_in_batch": "InfoNCE, in-batch",
    "random": "random",
    "top": "top-k",
    "band": "band of ranks",
    "semi_hard": "margin filter",
    "remined": "re-mined",
    "query_projection": "query projection",
    "query_tower": "query tower",
    "both_projections": "both projections",
    "both_towers": "both towers",
}
OBJECTIVES = ("dpo sigmoid", "dpo hinge", "dpo ipo", "info_nce_mined", "info_nce_in_batch")
NEGATIVES = ("random", "top", "band", "semi_hard", "remined", "in-batch")
TRAINS = ("query_projection", "query_tower", "both_projections", "both_towers")
SAMPLINGS = {  # sampling: (colour, marker, line)
    "random": (GREEN, "o", "-"),
    "band": (BLUE, "s", "--"),
    "semi_hard": ("#CC79A7", "D", "-."),
    "top": (ORANGE, "^", ":"),
}
QUALITIES = {  # column of `negative_quality`: (legend, colour)
    "satisfies_edit": ("also satisfies the edit (false negative)", "#E69F00"),
    "differs_in_one": ("one attribute off the target (useful)", BLUE),
}
PAPER_RATIO = 0.1  # the paper's 0.02 % is about a tenth of chance on FashionIQ
RANKS = ("rank_10", "rank_25", "rank_50", "rank_75", "rank_90")
HALO = (patheffects.withStroke(linewidth=3.5, foreground="white"),)
DASHED: dict[str, Any] = {"color": INK, "linestyle": "--", "linewidth": 1.4}


def pretty(name: str) -> str:
    """The name in the figures of a level, method or switch in the tables."""
    return NAMES[name] if name in NAMES else method_label(name)


# ------------------------------------------------------------------------------------------- small multiples


@themed
def sweep_grid(cells: pd.DataFrame, *, text_only: float, chance: float, context: str = "") -> Figure:
    """Recall@10 over DPO's β, a panel an index, a line a way to sample the negatives.

    `cells`: index, sampling (`SAMPLINGS` and others), beta (above 0), recall@10 and its interval ci_low to ci_high
    (fractions); several rows of one cell are averaged, NaN leaves a gap. `text_only` (zero-shot) and `chance` are
    fractions, drawn dashed. Raises ValueError for missing columns, no rows, numbers that are no fractions, and for a
    β that is not above 0.
    """
    fractions = ("recall@10", "ci_low", "ci_high")
    check_table(cells, "sweep_grid", ("index", "sampling", "beta", *fractions), fractions)
    levels = pd.DataFrame({"text_only": [text_only], "chance": [chance]})
    check_table(levels, "sweep_grid", tuple(levels), tuple(levels))
    if not (cells["beta"] > 0).all():
        raise ValueError(f"sweep_grid needs beta above 0 for its log axis; it has down to {cells['beta'].min():g}")
    indexes = list(cells["index"].unique())
    columns = min(4, len(indexes))
    rows = -(-len(indexes) // columns)
    title = "Recall@10 by β, index and sampling of the negatives"
    size = (max(8.5, 1.6 + min(3.9 * columns, 12.6)), 1.3 + 3.9 * rows)
    figure, axes = _grid(rows, columns, size, title, [context, "β on a log scale", "bands: 95 % interval"], sharey=True)
    samplings = _ordered(cells["sampling"], tuple(SAMPLINGS))
    for panel, index in zip(axes, indexes, strict=False):
        mine = cells[cells["index"] == index]
        for sampling in samplings:
            line = 100 * mine[mine["sampling"] == sampling].groupby("beta")[list(fractions)].mean()
            colour, marker, dashes = SAMPLINGS.get(sampling, ("#000000", "x", "-"))
            style = {"color": colour, "marker": marker, "linestyle": dashes, "markersize": 7.5}
            panel.fill_between(line.index, line["ci_low"], line["ci_high"], color=colour, alpha=0.13, linewidth=0)
            panel.plot(line.index, line["recall@10"], label=pretty(sampling), **style)
        for level in (text_only, chance):
            panel.axhline(100 * level, **DASHED, label="_level")
        panel.set_title(index, size=13, loc="left")
        _beta_axis(panel, sorted(cells["beta"].unique()))
    top = 110 * float(np.nanmax([*cells["recall@10"], *cells["ci_high"], text_only, chance]))
    _first_column(axes, columns, "Recall@10 (%)")
    axes[0].set_ylim(0, top or 1.0)
    texts = (f"text only,\nzero-shot\n{percent(text_only)} %", f"chance\n{percent(chance)} %")
    _level_labels(axes[columns - 1], [100 * text_only, 100 * chance], texts, lines=3)
    keys = axes[0].get_legend_handles_labels()
    figure.legend(*keys, loc="outside lower left", ncols=4, title="negatives", alignment="left", handlelength=3)
    return figure


def _beta_axis(axes: Axes, betas: Sequence[float]) -> None:
    """A log axis whose ticks are the β that were run, as many as have room."""
    low, high = betas[0] / 1.4, betas[-1] * 1.4
    kept: list[float] = []
    for beta in betas:
        if not kept or np.log(beta / kept[-1]) > np.log(high / low) / 11:
            kept.append(beta)
    axes.set(xscale="log", xlim=(low, high), xlabel="β")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(kept, [f"{beta:g}" for beta in kept], size=11)


def _level_labels(axes: Axes, levels: Sequence[float], texts: Sequence[str], *, lines: int) -> None:
    """Names of horizontal lines right of a panel; two that lie close are pushed apart."""
    low, high = axes.get_ylim()
    apart = abs(levels[0] - levels[1]) > 0.07 * lines * (high - low)
    upper = int(np.argmax(levels))
    for i, (level, text) in enumerate(zip(levels, texts, strict=True)):
        side = "center" if apart else "bottom" if i == upper else "top"
        axes.annotate(text, (1, level), (6, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                      va=side, color=MUTED, size=11, linespacing=1.1, annotation_clip=False)  # fmt: skip


@themed
def trajectory(table: pd.DataFrame, *, context: str = "") -> Figure:
    """What the query vectors do during training, in six panels over the training step.

    `table`, a row a step: step; recall@10, chance and hubness (the share of all top-10 places that the ten most
    retrieved images take) as fractions; alignment and uniformity (Wang and Isola 2020); effective_rank; norm and
    spread of the query vectors; the quantiles rank_10 … rank_90 of the target's rank, from 1; gallery (candidates).
    NaN leaves a gap. Raises ValueError for missing columns, no rows and numbers that are no fractions.
    """
    geometry = ("alignment", "uniformity", "effective_rank", "norm", "spread")
    fractions = ("recall@10", "chance", "hubness")
    check_table(table, "trajectory", ("step", *fractions, *geometry, *RANKS, "gallery"), fractions)
    table = table.sort_values("step", kind="stable")
    step, gallery = table["step"], table["gallery"]
    notes = [context, "hubness: share of all top-10 places taken by the ten most retrieved images"]
    figure, axes = _grid(2, 3, (14, 8.4), "What changes during training", notes)
    recall, wang, rank, length, hubs, places = axes
    _line(recall, step, 100 * table["recall@10"], BLUE, label="Recall@10")
    _level(recall, step, 100 * table["chance"], "chance")
    _line(wang, step, table["alignment"], BLUE, label="alignment")
    _line(wang, step, table["uniformity"], ORANGE, label="uniformity", marker="s")
    _line(rank, step, table["effective_rank"], BLUE)
    _line(length, step, table["norm"], BLUE, label="norm")
    _line(length, step, table["spread"], ORANGE, label="spread", marker="s")
    _line(hubs, step, 100 * table["hubness"], BLUE, label="hubness")
    _level(hubs, step, 1000 / gallery, "least possible")
    _rank_bands(places, table)
    heads = {  # title: axis label
        "Recall@10": "Recall@10 (%)",
        "Alignment and uniformity": "lower is better (no unit)",
        "Effective rank of the queries": "effective rank (dimensions)",
        "Norm and spread of the queries": "length (embedding units)",
        "Hubness": "share of top-10 places (%)",
        "Rank of the target": "rank (log scale, best on top)",
    }
    for panel, (title, unit) in zip(axes, heads.items(), strict=True):
        panel.set(xlabel="training step", ylabel=unit)
        panel.set_title(title, loc="left", size=13, weight="bold", pad=27)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True) if len(table) > 1 else FixedLocator(step))
        if panel.get_legend_handles_labels()[0]:
            style = {"borderaxespad": 0.1, "borderpad": 0.2, "fontsize": 10.5}
            style |= {"columnspacing": 0.7, "handlelength": 1.4, "handletextpad": 0.35}
            panel.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=4, **style)
    for panel in (recall, rank, length, hubs):
        panel.set_ylim(0, 1.08 * panel.dataLim.y1 if panel.dataLim.y1 > 0 else 1)
    return figure


def _line(axes: Axes, x: pd.Series, y: pd.Series, colour: str, **options: Any) -> None:
    """A line with marks, on every point where they are few, so that a single one can be seen too."""
    many = len(x) > 25
    marks = {"marker": "o", "markersize": 5.5, "markevery": max(1, len(x) // 12) if many else 1}
    axes.plot(x, y, color=colour, **marks | options)


def _level(axes: Axes, x: pd.Series, y: pd.Series, label: str) -> None:
    """A dashed line of a level that may change, across the panel where there is one point only."""
    if len(x) == 1:
        axes.axhline(y.iloc[0], **DASHED, label=label)
    else:
        axes.plot(x, y, **DASHED, label=label)


def _rank_bands(axes: Axes, table: pd.DataFrame) -> None:
    """The median rank in the bands of the middle half and the middle 80 % of the queries."""
    step = table["step"]
    for low, high, colour, label in (
        ("rank_10", "rank_90", "#D3E5F1", "10–90 %"),
        ("rank_25", "rank_75", "#8FBEDD", "25–75 %"),
    ):
        axes.fill_between(step, table[low], table[high], color=colour, linewidth=0, label=label)
        if len(table) == 1:
            axes.vlines(step, table[low], table[high], color=colour, linewidth=8, label="_band")
    _line(axes, step, table["rank_50"], BLUE, label="median")
    _level(axes, step, table["gallery"] / 2, "chance")
    axes.set_yscale("log")
    axes.set_ylim(1.15 * float(table["gallery"].max()), 0.85)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda rank, _: f"{rank:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())


@themed
def mistakes(table: pd.DataFrame, *, context: str = "") -> Figure:
    """Recall@10 as a multiple of chance over the training step, a panel a mistake, on a scale that shows 0.

    `table`: mistake (a sentence of at most 60 characters, 9 of them at most), step, recall@10 and chance
    (fractions, chance above 0). The last measured recall is printed in per cent. Raises ValueError for missing
    columns, no rows, numbers that are no fractions, a chance of 0, and for too many or too long mistakes.
    """
    fractions = ("recall@10", "chance")
    check_table(table, "mistakes", ("mistake", "step", *fractions), fractions)
    names = list(table["mistake"].unique())
    if len(names) > 9:
        raise ValueError(f"mistakes has room for 9 mistakes, got {len(names)}")
    _check_length(names, "mistakes")
    if not (table["chance"] > 0).all():
        raise ValueError("mistakes divides by chance and needs it above 0 in every row")
    ratio = table["recall@10"] / table["chance"]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    notes = [context, "Recall@10 as a multiple of chance, log scale above 0.1, linear below", "numbers: last Recall@10"]
    size = (max(8.5, 1.3 + 4.2 * columns), 1.1 + 2.75 * rows)
    figure, axes = _grid(rows, columns, size, "Training with one mistake at a time", notes, sharey=True, sharex=True)
    high = max(2.0, 1.6 * float(np.nanmax([*ratio, 1.0])))
    axes[0].set_yscale("symlog", linthresh=PAPER_RATIO, linscale=0.6)
    axes[0].set_ylim(-0.02, high)
    axes[0].yaxis.set_major_locator(FixedLocator([0, *(10.0**i for i in range(-1, 5) if 10.0**i < high)]))
    axes[0].yaxis.set_minor_locator(NullLocator())
    first, last = float(table["step"].min()), float(table["step"].max())
    for panel, name in zip(axes, names, strict=False):
        mine = (table["mistake"] == name).to_numpy()
        _mistake(panel, table[mine].assign(ratio=ratio[mine]).sort_values("step", kind="stable"))
        panel.set_title(_balanced(name, 40), loc="left", size=12)
        panel.set_xlim(first - 0.03 * (last - first or 1), last + 0.24 * (last - first or 1))
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda times, _: f"{times:g}×"))
    _first_column(axes, columns, "Recall@10 / chance")
    for panel in axes[max(0, len(names) - columns) : len(names)]:
        panel.set_xlabel("training step")
        panel.tick_params(labelbottom=True)
    for level, text in ((1.0, "chance"), (PAPER_RATIO, "paper")):
        corner = axes[columns - 1]
        corner.annotate(text, (1, level), (5, 0), xycoords=corner.get_yaxis_transform(),
                        textcoords="offset points", va="center", color=MUTED, size=11)  # fmt: skip
    return figure


def _mistake(axes: Axes, rows: pd.DataFrame) -> None:
    """One mistake's line, its last value in per cent, and the levels of chance and of the paper."""
    axes.axhline(1, **DASHED, label="_chance")
    axes.axhline(PAPER_RATIO, **DASHED | {"linestyle": ":"}, label="_paper")
    _line(axes, rows["step"], rows["ratio"], BLUE, clip_on=False, zorder=3)
    known = rows.dropna(subset=["ratio"])
    if known.empty:
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", style="italic", color=MUTED)
        return
    end = known.iloc[-1]
    level = min((1.0, PAPER_RATIO), key=lambda level: abs(np.log(max(end["ratio"], 1e-9) / level)))
    side, rise = "center", 0
    if level / 1.8 < end["ratio"] < 1.8 * level:  # off the dashed line
        side, rise = ("bottom", 1) if end["ratio"] >= level else ("top", -1)
    elif end["ratio"] < PAPER_RATIO / 3:  # off the axis
        side = "bottom"
    axes.annotate(f"{percent(end['recall@10'])} %", (end["step"], end["ratio"]), (7, rise), textcoords="offset points",
                  va=side, size=11.5, weight="bold", path_effects=HALO, zorder=4)  # fmt: skip


def _grid(
    rows: int, columns: int, size: tuple[float, float], title: str, notes: Sequence[str], **options: Any
) -> tuple[Figure, list[Axes]]:
    """Small multiples (size in inches) under a headline and the notes, wrapped, as the subtitle."""
    width, height = size
    wrapped = _lines([note for note in notes if note], int(12.2 * width))
    extra = 0.2 * max(0, len(wrapped) - 1)
    header = HEADER + extra if wrapped else HEADER - 0.3
    height += extra
    figure = new_figure(width, height, title, "\n".join(wrapped), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - header / height), wspace=0.04, hspace=0.05)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).ravel())


def _lines(notes: Sequence[str], columns: int) -> list[str]:
    """The notes one after the other, a new line where the next has no room; a long one is wrapped."""
    lines: list[str] = []
    for note in notes:
        if lines and len(lines[-1]) + len(note) + 5 <= columns:
            lines[-1] += f"  ·  {note}"
        else:
            lines += textwrap.wrap(note, columns)
    return lines


def _balanced(text: str, columns: int) -> str:
    """Wrapped into as few lines as it needs, of about the same length."""
    lines = textwrap.wrap(text, columns)
    even = textwrap.wrap(text, len(text) // max(1, len(lines)) + 5)
    return "\n".join(even if len(even) == len(lines) else lines)


def _first_column(axes: Sequence[Axes], columns: int, ylabel: str) -> None:
    """The shared axis is named once a row; panels that nothing was drawn into go."""
    for i, panel in enumerate(axes):
        if not panel.lines:
            panel.remove()
        elif i % columns == 0:
            panel.set_ylabel(ylabel)


def _ordered(found: pd.Series, order: Sequence[str]) -> list[str]:
    """The levels found, those known in their order, others after them as they come."""
    levels = list(found.unique())
    return [level for level in order if level in levels] + [level for level in levels if level not in order]


def _check_length(names: Sequence[str], caller: str) -> None:
    for name in names:
        if len(name) > 60:
            raise ValueError(f"{caller} has room for 60 characters, got {len(name)}: {name!r}")


# --------------------------------------------------------------------------------------------- dots and bars


@themed
def effects(table: pd.DataFrame, *, context: str = "") -> Figure:
    """What a level changes in Recall@10 against another one of the same switch: dots with intervals, by switch.

    `table`, in the order it is drawn: factor, level, against (one a factor), and as fractions of 1, shown in points:
    difference, ci_low and ci_high (95 %), q25 and q75 (over the settings of the other switches). A NaN difference
    reads "not run". Dots are hollow where the interval holds 0. Raises ValueError for missing columns, no rows,
    differences beyond ±1 and a factor with two `against`.
    """
    numbers = ["difference", "ci_low", "ci_high", "q25", "q75"]
    check_table(table, "effects", ("factor", "level", "against", *numbers))
    if table[numbers].abs().max().max() > 1:
        raise ValueError(f"effects needs differences of fractions of 1; it has {table[numbers].abs().max().max():g}")
    factors = table.drop_duplicates(["factor", "against"])
    twice = factors.loc[factors["factor"].duplicated(), "factor"]
    if not twice.empty:
        raise ValueError(f"effects compares the levels of {twice.iloc[0]} against one level, the table has several")
    places, ticks = [], {}
    table = table.assign(_group=pd.factorize(table["factor"])[0]).sort_values("_group", kind="stable")
    for group, rows in table.groupby("_group"):
        start = len(places) + 1.35 * group
        heading = f"{pretty(rows['factor'].iloc[0])} (against {pretty(rows['against'].iloc[0])})"
        ticks[start] = heading
        places += [start + 1 + j for j in range(len(rows))]
        ticks |= dict(zip(places[-len(rows) :], map(pretty, rows["level"]), strict=True))
    height = 1.9 + 0.4 * (max(places) + 1)
    notes = [context, "dot and line: mean and 95 % interval, hollow where it holds 0",
             "bar: middle half of the settings of the other switches"]  # fmt: skip
    figure, (axes,) = _grid(1, 1, (12, height), "What each switch changes in Recall@10", notes)
    points = 100 * table[numbers]
    axes.axvline(0, color=INK, linewidth=1.4, zorder=1)
    axes.barh(places, points["q75"] - points["q25"], 0.5, points["q25"], color="#CFE3F0", label="_spread", zorder=1.5)
    axes.hlines(places, points["ci_low"], points["ci_high"], color=BLUE, linewidth=4, label="_interval", zorder=2)
    holds = (points["ci_low"] <= 0) & (points["ci_high"] >= 0)
    faces = np.where(holds, "white", BLUE)
    axes.scatter(points["difference"], places, s=95, color=faces, edgecolor=BLUE, linewidth=2.4, zorder=3)
    axes.set_yticks(list(ticks), list(ticks.values()), parse_math=False)
    for tick, place in zip(axes.get_yticklabels(), ticks, strict=True):
        if place not in places:
            tick.set_weight("bold")
    numbers_beside = ["not run" if np.isnan(value) else signed(value) for value in points["difference"]]
    text_column(axes, 1.09, "points", places, numbers_beside, size=12)
    ends = [*points.to_numpy().ravel(), 0.0]
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    room = 0.05 * (high - low) or 1.0
    axes.set(xlabel="difference in Recall@10 (points)", xlim=(low - room, high + room))
    axes.set_ylim(max(places) + 0.6, -0.6)
    axes.grid(visible=False, axis="y")
    return figure


@themed
def negative_quality(table: pd.DataFrame, *, context: str = "") -> Figure:
    """How many of the sampled negatives are false ones and how many useful ones, in grouped bars.

    `table`: negatives (the way to sample), fusion where there are several, and the fractions satisfies_edit and
    differs_in_one.
    The fractions need not add up to 1; NaN reads "not run". Raises ValueError for missing columns, no rows and
    numbers that are no fractions.
    """
    check_table(table, "negative_quality", ("negatives", *QUALITIES), tuple(QUALITIES))
    notes = [context, "share of the sampled negatives"]
    figure, (axes,) = _grid(1, 1, (11, 3.1 + 0.55 * len(table)), "What the sampled negatives are", notes)
    centres = np.arange(len(table), dtype=float)
    for i, (column, (label, colour)) in enumerate(QUALITIES.items()):
        places = centres + 0.36 * (i - 0.5)
        axes.barh(places, 100 * table[column], 0.25, color=colour, label=label)
        for place, value in zip(places, table[column], strict=True):
            text, x = ("not run", 0.0) if np.isnan(value) else (f"{percent(value)} %", 100 * value)
            axes.annotate(text, (x, place), (5, 0), textcoords="offset points", va="center", size=11)
    labels = [pretty(name) for name in table["negatives"]]
    if "fusion" in table:
        labels = [f"{pretty(fusion)}: {label}" for fusion, label in zip(table["fusion"], labels, strict=True)]
    axes.set_yticks(centres, labels, parse_math=False)
    highest = 100 * float(np.nanmax([*table[list(QUALITIES)].to_numpy().ravel(), 0.0]))
    axes.set(xlabel="share of the negatives (%)", xlim=(0, 1.12 * highest or 1.0), ylim=(len(table) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3)
    return figure


@themed
def recipe_dots(table: pd.DataFrame, *, metric: str = "recall@10", context: str = "") -> Figure:
    """Recall and training time of whole recipes, in the table's order: dots with 95 % intervals.

    `table`: method (at most 60 characters), value, ci_low, ci_high (fractions of `metric`), chance, seconds of training
    (NaN: a dash). A NaN value reads "not run". Raises ValueError for missing columns, no rows, numbers that are no
    fractions and for too long methods.
    """
    fractions = ("value", "ci_low", "ci_high")
    check_table(table, "recipe_dots", ("method", *fractions, "chance", "seconds"), fractions)
    _check_length(list(table["method"]), "recipe_dots")
    title = f"{metric_label(metric)} and training time by recipe"
    notes = [context, "lines: 95 % interval", "dashed: chance"]
    figure, (axes,) = _grid(1, 1, (12.5, 2.1 + 0.52 * len(table)), title, notes)
    places = np.arange(len(table), dtype=float)
    whiskers(axes, places, table, horizontal=True)
    axes.collections[-1].set(linewidth=3, color=BLUE)
    axes.axvline(100 * table["chance"].mean(), **DASHED)
    axes.scatter(100 * table["value"], places, s=120, color=BLUE, zorder=3, clip_on=False)
    values = ["not run" if np.isnan(value) else f"{percent(value)} %" for value in table["value"]]
    text_column(axes, 1.13, metric_label(metric), places, values, size=12)
    text_column(axes, 1.32, "training time", places, [_duration(seconds) for seconds in table["seconds"]], size=12)
    labels = [_balanced(pretty(method), 36) for method in table["method"]]
    axes.set_yticks(places, labels, parse_math=False, linespacing=1.05)
    axes.tick_params(axis="y", pad=10)  # a dot at 0 reaches over the axis
    highest = 100 * float(np.nanmax([*table[list(fractions)].to_numpy().ravel(), 0.0]))
    axes.set(xlabel=f"{metric_label(metric)} (%)", xlim=(0, 1.06 * highest or 1.0), ylim=(len(table) - 0.5, -0.5))
    return figure


def _duration(seconds: float) -> str:
    """42 s, 3 min 20 s, 1 h 5 min; a dash for NaN."""
    if np.isnan(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


# ---------------------------------------------------------------------------------------------------- heatmap


@themed
def factorial_map(cells: pd.DataFrame, *, chance: float, context: str = "") -> Figure:
    """Recall@10 of every combination of the switches: a row a fusion and what trains, a column an objective and
    its negatives.

    `cells`: fusion, trains, objective, negatives, recall@10 (a fraction); repetitions of a cell are averaged, cells
    that are missing or NaN stay light grey. `chance`, a fraction, is marked on the colour bar. Raises ValueError for
    missing columns, no rows and numbers that are no fractions.
    """
    check_table(cells, "factorial_map", ("fusion", "trains", "objective", "negatives", "recall@10"), ("recall@10",))
    check_table(pd.DataFrame({"chance": [chance]}), "factorial_map", ("chance",), ("chance",))
    values = _factorial(cells)
    rows, columns = values.shape
    cell = float(np.clip(10.2 / columns, 0.6, 1.1))
    size = (max(9.0, 4.6 + cell * columns), 2.9 + 0.46 * max(rows, 3))
    notes = [context, "Recall@10 in %", "grey: not run"]
    figure, (axes,) = _grid(1, 1, size, "Recall@10 of every combination of the switches", notes)
    numbers = 100 * values.to_numpy(float)
    texts = np.array([[f"{value:.1f}" for value in row] for row in numbers])
    highest = float(np.nanmax([*numbers.ravel(), 100 * chance, 0.1]))
    style = {"cmap": "viridis", "vmin": 0, "vmax": highest, "linewidths": 1, "annot_kws": {"size": 11}}
    bar = {"label": "Recall@10 (%)", "pad": 0.02, "aspect": 22, "fraction": 0.04}
    axes.set_facecolor("#E4E4E4")
    sns.heatmap(numbers, ax=axes, annot=texts, fmt="", cbar_kws=bar, mask=np.isnan(numbers), **style)
    for text in axes.texts:
        text.set_color(_readable_on(axes.collections[0].to_rgba(float(text.get_text()))))
    _chance_on_bar(axes.collections[0].colorbar, 100 * chance)
    axes.set_xticks(np.arange(columns) + 0.5, [pretty(name) for _, name in values.columns])
    axes.set_yticks(np.arange(rows) + 0.5, [pretty(name) for _, name in values.index])
    axes.tick_params(axis="x", rotation=40, length=0)
    axes.tick_params(axis="y", rotation=0, length=0)
    for tick in axes.get_xticklabels():
        tick.set(ha="right", rotation_mode="anchor")
    _group_labels(axes, values)
    return figure


def _factorial(cells: pd.DataFrame) -> pd.DataFrame:
    """The mean of each cell: rows (fusion, trains), columns (objective, negatives), those that occur, in order."""
    means = cells.pivot_table("recall@10", ["fusion", "trains"], ["objective", "negatives"], dropna=False)
    pairs = []
    for (outer, first), (inner, second) in (
        (("fusion", list(cells["fusion"].unique())), ("trains", TRAINS)),
        (("objective", OBJECTIVES), ("negatives", NEGATIVES)),
    ):
        found = cells[[outer, inner]].drop_duplicates()
        outers, inners = _ordered(found[outer], first), _ordered(found[inner], second)
        known = set(found.itertuples(index=False, name=None))
        pairs.append([(a, b) for a in outers for b in inners if (a, b) in known])
    rows, columns = (pd.MultiIndex.from_tuples(pair) for pair in pairs)
    return means.reindex(index=rows, columns=columns)


def _readable_on(colour: Sequence[float]) -> str:
    """Dark or white, whichever has the greater contrast by WCAG 2's relative luminance."""
    rgb = np.asarray(colour[:3], dtype=float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return INK if (luminance + 0.05) / 0.066 > 1.05 / (luminance + 0.05) else "white"  # 0.066: of INK, + 0.05


def _chance_on_bar(bar: Any, chance: float) -> None:
    """Chance as a line and a tick of the colour bar; ticks it would overlap go."""
    low, high = bar.vmin, bar.vmax
    ticks = [t for t in MaxNLocator(6).tick_values(low, high) if low <= t <= high and abs(t - chance) > 0.06 * high]
    bar.outline.set_visible(False)
    bar.ax.axhline(chance, color="white", linewidth=3.5)
    bar.ax.axhline(chance, color=ORANGE, linewidth=2, label="chance")
    bar.set_ticks([*ticks, chance], labels=[f"{tick:g}" for tick in ticks] + [f"{percent(chance / 100)} chance"])


def _group_labels(axes: Axes, values: pd.DataFrame) -> None:
    """The outer level of rows and columns, once a group, with white lines between the groups."""
    longest = max(len(pretty(name)) for _, name in values.index)
    margin = -(7.0 * longest + 22)  # points left of the chart: beyond the inner labels
    text: dict[str, Any] = {"textcoords": "offset points", "weight": "bold", "size": 12, "annotation_clip": False}
    for start, stop, name in _groups(values.columns):
        label = pretty(name).replace(", ", ",\n")
        axes.annotate(label, ((start + stop) / 2, 1), (0, 9), xycoords=axes.get_xaxis_transform(),
                      ha="center", va="baseline", linespacing=1.1, **text)  # fmt: skip
        if start:
            axes.axvline(start, color="white", linewidth=6)
    for start, stop, name in _groups(values.index):
        axes.annotate(pretty(name), (0, (start + stop) / 2), (margin, 0), xycoords=axes.get_yaxis_transform(),
                      ha="right", va="center", **text)  # fmt: skip
        if start:
            axes.axhline(start, color="white", linewidth=6)


def _groups(index: pd.MultiIndex) -> list[tuple[int, int, str]]:
    """(start, stop, outer level) of each run of the outer level."""
    outers = list(index.get_level_values(0))
    starts = [i for i, name in enumerate(outers) if i == 0 or outers[i - 1] != name]
    return [(a, b, outers[a]) for a, b in zip(starts, [*starts[1:], len(outers)], strict=True)]
