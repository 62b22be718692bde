"""Every figure of the study. Each function takes plain tables or image paths and returns a matplotlib Figure.

Nothing is shown or written here: a notebook displays what is returned (once: the figures are closed for
pyplot), and `save` writes it as a PNG that is the same to the last byte for the same data. Tables hold
fractions of 1; figures show per cent. A method keeps its colour from figure to figure; the colours can be
told apart by colour-blind readers, and no figure says something by colour alone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cirlib.study.files import replace_file

P = ParamSpec("P")
Floats = NDArray[np.float64]

INK, MUTED, FAINT, PAPER = "#222222", "#6B6B6B", "#C9C9C9", "#F3F3F3"
GREEN, BLUE, ORANGE = "#009E73", "#0072B2", "#D55E00"  # Okabe and Ito's palette, as most colours below; Tol's wine
METHODS = {  # name in the tables: (name in the figures, colour)
    "image_only": ("image only", "#9A9A9A"),
    "text_only": ("text only", "#56B4E9"),
    "sum": ("sum", BLUE),
    "slerp": ("slerp", "#882255"),
    "qformer": ("Q-Former", "#E69F00"),
    "qformer_hard_negatives": ("Q-Former + hard negatives", ORANGE),
    "retrieval_dpo": ("Retrieval-DPO", GREEN),
}
OTHER_COLOURS = ("#CC79A7", "#000000", "#999933", "#5B3A9B")
SOURCES = {  # source in `paper_vs_ours`: (name in the legend, colour)
    "paper": ("the paper", ORANGE),
    "published": ("other publications", "#9A9A9A"),
    "ours": ("this study", BLUE),
    "ours elsewhere": ("this study, on other data: not comparable", "#A6CBE3"),
}
SUMMARY_COLUMNS = (
    "method", "category", "metric", "value", "ci_low", "ci_high", "queries", "gallery", "chance", "protocol",
    "complete",
)  # fmt: skip
DPI = 150
ALT_LENGTH = 1000  # characters of a figure's text for who cannot see it
HEADER = 0.85  # height of title and subtitle in inches


# ---------------------------------------------------------------------------------------------- the basics


def theme() -> None:
    """Set the study's seaborn theme; the figures here have it anyway."""
    sizes = {"axes.labelsize": 12, "xtick.labelsize": 12, "ytick.labelsize": 12, "legend.fontsize": 11}
    lines = {"grid.color": "#E4E4E4", "axes.edgecolor": "#8A8A8A", "lines.linewidth": 2.4}
    colours = {"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    spines = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    palette = [BLUE, "#E69F00", GREEN, ORANGE, "#56B4E9", "#CC79A7", "#9A9A9A"]
    rc = sizes | lines | colours | spines
    sns.set_theme(style="whitegrid", palette=palette, font="DejaVu Sans", rc=rc)


def save(figure: Figure, path: Path | str) -> None:
    """Write the figure as a PNG that says in words what it shows, the same bytes for the same figure.

    Figures with pictures in them get a palette of 256 colours, a quarter of the size. Raises ValueError for another
    suffix.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"figures are saved as .png, not as {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = BytesIO()
    with _own_settings():
        figure.savefig(drawn, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.15)
    image, said = Image.open(drawn).convert("RGB"), PngInfo()
    if any(axes.images for axes in figure.axes):
        image = image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    said.add_text("Description", alt_text(figure))
    replace_file(path, lambda part: image.save(part, format="png", dpi=(DPI, DPI), pnginfo=said, optimize=True))


def alt_text(figure: Figure) -> str:
    """What the figure says, for who cannot see it: headline, then of each chart its axes and the words in it."""
    parts = [text.get_text() for text in figure.texts]
    parts += [", ".join(text.get_text() for text in legend.get_texts()) for legend in figure.legends]
    for axes in figure.axes:
        labels = [f"{name}: {label}" for name, label in (("x", axes.get_xlabel()), ("y", axes.get_ylabel())) if label]
        legend = axes.get_legend()
        ticks = [
            label for label in (*axes.get_yticklabels(), *axes.get_xticklabels()) if not _is_number(label.get_text())
        ]
        words = [axes.get_title("left"), axes.get_title(), *labels]
        words += [text.get_text() for text in (*(legend.get_texts() if legend else ()), *ticks, *axes.texts)]
        parts.append(", ".join(dict.fromkeys(filter(None, words))))
    text = ". ".join(" ".join(part.split()) for part in parts if part.strip())
    return textwrap.shorten(text, ALT_LENGTH, placeholder=" …")


def _is_number(text: str) -> bool:
    return not text.strip("−-+.,%0123456789 ")


@contextmanager
def _own_settings() -> Iterator[None]:
    """The study's theme on matplotlib's defaults, whatever the caller's settings; those come back after."""
    with mpl.rc_context():
        mpl.rcdefaults()
        theme()
        yield


def themed(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw with the study's theme, and settle the layout: it would creep with each further drawing."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _own_settings():
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        return figure

    return drawn


def new_figure(width: float, height: float, title: str, subtitle: str = "", **options: Any) -> Figure:
    """A figure (inches) with its headline, known to pyplot no longer, so that a notebook shows it once."""
    figure = plt.figure(figsize=(width, height), **options)
    plt.close(figure)
    figure.text(0, 1 - 0.04 / height, title, size=17, weight="bold", va="top")
    figure.text(0, 1 - 0.42 / height, subtitle, size=11.5, color=MUTED, va="top", parse_math=False)
    return figure


def _panels(number: int, size: tuple[float, float], title: str, subtitle: str = "") -> tuple[Figure, list[Axes]]:
    """A figure of charts side by side under one headline."""
    width, height = size
    figure = new_figure(width, height, title, subtitle, layout="constrained")
    header = HEADER if subtitle else HEADER - 0.3
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - header / height), wspace=0.06)
    axes = figure.subplots(1, number, squeeze=False)[0]
    return figure, list(axes)


def check_table(table: pd.DataFrame, caller: str, columns: Sequence[str], fractions: Sequence[str] = ()) -> None:
    """Raises ValueError where columns or rows are missing or fractions are none."""
    missing = [name for name in columns if name not in table.columns]
    if missing:
        have = ", ".join(map(str, table.columns)) or "none"
        raise ValueError(f"{caller} needs the column(s) {', '.join(missing)}; the table has: {have}")
    if table.empty:
        raise ValueError(f"{caller} got a table without rows")
    for name in fractions:
        values = table[name].dropna()
        if not values.between(0, 1).all():
            raise ValueError(f"{caller} needs fractions of 1 in {name}; it has up to {values.max():g}")


def method_label(method: str) -> str:
    return METHODS[method][0] if method in METHODS else method.replace("_", " ")


def _colours(methods: Sequence[str]) -> dict[str, str]:
    """Each method's own colour; methods not known share out the remaining colours in order."""
    spare = cycle(OTHER_COLOURS)
    return {name: METHODS[name][1] if name in METHODS else next(spare) for name in methods}


def percent(fraction: float) -> str:
    """12.3 for 0.123, and two decimals below one per cent, where chance lives."""
    fraction = round(fraction, 6)  # as in summary.csv
    return f"{100 * fraction:.2f}" if 0 < fraction < 0.01 else f"{100 * fraction:.1f}"


def signed(points: float) -> str:
    """+1.2, −0.3, and 0.0 for what rounds to nothing."""
    text = f"{abs(points):.1f}"
    return text if text == "0.0" else ("+" if points > 0 else "−") + text


def _span(numbers: pd.Series) -> str:
    """1,961–2,038, or one number where all are the same."""
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def metric_label(metric: str) -> str:
    return metric.replace("recall", "Recall", 1)


@themed
def note(text: str) -> Figure:
    """A sentence in the place of a figure that has nothing to show."""
    figure = plt.figure(figsize=(8, 0.8))
    plt.close(figure)
    figure.text(0, 0.5, text, size=12, color=MUTED, va="center", parse_math=False)
    return figure


# ------------------------------------------------------------------------------------------ recall in bars


@themed
def recall_bars(summary: pd.DataFrame, metric: str = "recall@10", methods: Sequence[str] | None = None) -> Figure:
    """Bars per category, the mean last, grouped by method; 95 % interval as whiskers, chance dashed.

    `summary`: results/<study>/summary.csv, fractions of 1. `methods` picks and orders the methods. Raises
    ValueError for an unknown metric or method, and where a bar would have two values (say, two protocols).
    """
    rows = _select(summary, "recall_bars", [metric], methods)
    methods = list(methods or rows["method"].unique())
    categories = _mean_last(rows["category"].unique())
    cells = rows.set_index(["method", "category"])
    bars = len(methods) * len(categories)
    title = metric_label(metric) + (" by category" if len(categories) > 1 else "")
    size = (float(np.clip(2.5 + 0.42 * bars, 10.6, 13.5)), 5.6)
    figure, (axes,) = _panels(1, size, title, context(rows))
    centres = np.arange(len(categories)) + np.where(np.array(categories) == "mean", 0.15, 0)
    width = 0.84 / max(3, len(methods))
    for i, (method, colour) in enumerate(_colours(methods).items()):
        offsets = centres + (i - (len(methods) - 1) / 2) * width
        bar_rows = cells.reindex([(method, category) for category in categories])
        axes.bar(offsets, 100 * bar_rows["value"], 0.9 * width, color=colour, label=method_label(method))
        whiskers(axes, offsets, bar_rows)
        _values(axes, offsets, bar_rows, size=min(11.0, 11 * width * size[0] / len(categories) / 0.5))
    _chance_marks(axes, centres, [rows.loc[rows["category"] == c, "chance"].max() for c in categories])
    axes.set_xticks(centres, [_category_label(rows, category) for category in categories])
    axes.set(ylabel=f"{metric_label(metric)} (%)", ylim=(0, _ceiling(rows)))
    axes.set_xlim(centres[0] - 0.6, centres[-1] + 0.6)
    axes.grid(visible=False, axis="x")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(5, len(methods) + 1), borderaxespad=0.2)
    return figure


def _select(
    summary: pd.DataFrame, caller: str, metrics: Sequence[str] | None, methods: Sequence[str] | None
) -> pd.DataFrame:
    """The rows of these metrics and methods (None: all), one a bar; ValueError where that cannot be."""
    check_table(summary, caller, SUMMARY_COLUMNS, ("value", "ci_low", "ci_high", "chance"))
    for column, wanted in (("metric", metrics), ("method", methods)):
        have = list(summary[column].unique())
        unknown = [name for name in wanted or () if name not in have]
        if unknown:
            raise ValueError(f"{caller}: no {column} {', '.join(unknown)}; the summary has {', '.join(have)}")
        if wanted:
            summary = summary[summary[column].isin(wanted)]
    if summary.empty:
        raise ValueError(f"{caller}: the summary has no {', '.join(metrics or ())} of {', '.join(methods or ())}")
    if summary["protocol"].nunique() > 1:
        protocols = ", ".join(sorted(summary["protocol"].unique()))
        raise ValueError(f"{caller} shows one protocol, the summary has {protocols}: choose one first")
    twice = summary[summary.duplicated(["method", "category", "metric"])]
    if not twice.empty:
        raise ValueError(f"{caller}: two values of {' / '.join(twice.iloc[0][['method', 'category', 'metric']])}")
    return summary


def context(rows: pd.DataFrame, *, intervals: bool = True) -> str:
    """Protocol, queries and gallery of the rows, as a subtitle; ``intervals``: the chart draws them as lines."""
    each = rows[rows["category"] != "mean"]
    each = rows if each.empty else each
    per = " a category" if each["category"].nunique() > 1 else ""
    lines = "  ·  lines: 95 % interval" if intervals else ""
    counts = f"{_span(each['queries'])} queries and {_span(each['gallery'])} gallery images{per}"
    incomplete = "" if rows["complete"].astype(bool).all() else "  ·  * gallery incomplete"
    return f"protocol: {rows['protocol'].iloc[0]}  ·  {counts}{lines}{incomplete}"


def _mean_last(categories: Sequence[str]) -> list[str]:
    return sorted(categories, key=lambda category: category == "mean")


def _category_label(rows: pd.DataFrame, category: str) -> str:
    complete = rows.loc[rows["category"] == category, "complete"].astype(bool).all()
    return f"{category}{'' if complete else ' *'}"


def whiskers(axes: Axes, places: ArrayLike, rows: pd.DataFrame, *, horizontal: bool = False) -> None:
    """The intervals as lines from ci_low to ci_high, in per cent."""
    draw = axes.hlines if horizontal else axes.vlines
    halo = [patheffects.withStroke(linewidth=3.4, foreground="white", alpha=0.75)]
    style = {"color": INK, "linewidth": 1.5, "path_effects": halo, "label": "_interval"}
    draw(places, 100 * rows["ci_low"], 100 * rows["ci_high"], **style)


def _values(axes: Axes, places: Floats, rows: pd.DataFrame, *, size: float) -> None:
    """Each bar's value over its whisker."""
    for place, value, high in zip(places, rows["value"], rows["ci_high"], strict=True):
        if not np.isnan(value):
            top = (0, 3)
            axes.annotate(
                percent(value), (place, 100 * np.fmax(value, high)), top, textcoords="offset points",
                ha="center", va="bottom", size=size,
            )  # fmt: skip


def _chance_marks(axes: Axes, centres: Floats, chances: Sequence[float]) -> None:
    """A dashed line over each group at its own chance level."""
    low, high = centres - 0.47, centres + 0.47
    axes.hlines(100 * np.array(chances), low, high, colors=INK, linestyles="--", linewidth=1.4, label="chance")


def _ceiling(rows: pd.DataFrame) -> float:
    """Upper end of a per cent axis, with room for the numbers."""
    return 112 * float(np.nanmax(rows[["value", "ci_high", "chance"]].to_numpy(float))) or 1.0


@themed
def recall_before_after(summary: pd.DataFrame, before: str, after: str, *, category: str = "mean") -> Figure:
    """Recall@K of two methods, a line from the one to the other for each K, with chance as a mark.

    `summary` as in `recall_bars`. Raises ValueError for an unknown method or category.
    """
    rows = _select(summary, "recall_before_after", None, [before, after])
    rows = rows[(rows["category"] == category) & rows["metric"].str.startswith("recall@")]
    if rows.empty:
        raise ValueError(f"recall_before_after: no recall@K of the category {category!r} in the summary")
    metrics = sorted(rows["metric"].unique(), key=lambda name: int(name.split("@")[1]), reverse=True)
    cells = rows.set_index(["method", "metric"])
    first, second = (cells.reindex([(method, m) for m in metrics]) for method in (before, after))
    title = f"{method_label(before)} → {method_label(after)}"
    figure, (axes,) = _panels(1, (10, 2.3 + 0.62 * len(metrics)), title, f"{category}  ·  {context(rows)}")
    places = np.arange(len(metrics), dtype=float)
    ends = (100 * first["value"].to_numpy(), 100 * second["value"].to_numpy())
    axes.hlines(places, *ends, color=FAINT, linewidth=5, zorder=1, label="_change")
    for end, cell, method, face in ((ends[0], first, before, "white"), (ends[1], second, after, None)):
        colour = _colours([before, after])[method]
        whiskers(axes, places, cell, horizontal=True)
        style = {"color": face or colour, "edgecolor": colour, "linewidth": 2.5, "s": 130, "zorder": 3}
        axes.scatter(end, places, label=method_label(method), clip_on=False, **style)
    chance = first["chance"].fillna(second["chance"])
    axes.scatter(100 * chance, places, marker="|", s=330, color=INK, linewidth=2, zorder=4, label="chance")
    columns = {"before": first["value"], "after": second["value"], "chance": chance}
    for i, (head, column) in enumerate(columns.items()):
        text_column(axes, 1.11 + 0.12 * i, head, places, [f"{percent(v)} %" if v == v else "–" for v in column])
    axes.set_yticks(places, [metric_label(m) for m in metrics])
    axes.set(xlabel="recall (%)", xlim=(0, min(101, axes.get_xlim()[1])), ylim=(-0.6, len(metrics) - 0.4))
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, markerscale=0.8)
    return figure


def text_column(axes: Axes, x: float, head: str, places: Sequence[float], texts: Sequence[str], **options: Any) -> None:
    """A column of texts beside the chart at x (of its width), one at each place, under a head."""
    style: dict[str, Any] = {"size": 11.5, "ha": "right", "va": "center", "parse_math": False} | options
    axes.text(x, 1.02, head, transform=axes.transAxes, **style | {"color": MUTED, "va": "bottom"})
    for place, text in zip(places, texts, strict=True):
        axes.text(x, place, text, transform=axes.get_yaxis_transform(), **style)


@themed
def protocol_bars(table: pd.DataFrame, *, metric: str = "recall@10") -> Figure:
    """One model under several protocols, in the table's order: protocol, rule, value, ci_low, ci_high, chance."""
    columns = ("protocol", "rule", "value", "ci_low", "ci_high", "chance")
    check_table(table, "protocol_bars", columns, columns[2:])
    subtitle = "in brackets: gallery · reference · captions  ·  lines: 95 % interval  ·  dashed: chance"
    size = (10, 2.0 + 0.5 * len(table))
    figure, (axes,) = _panels(1, size, "One model, several protocols", subtitle)
    places = np.arange(len(table), dtype=float)
    axes.barh(places, 100 * table["value"], 0.62, color=BLUE)
    whiskers(axes, places, table, horizontal=True)
    for place, value, high in zip(places, table["value"], table["ci_high"], strict=True):
        end = (100 * np.fmax(value, high), place)
        axes.annotate(percent(value), end, (6, 0), textcoords="offset points", va="center", size=12)
    chance = {"colors": INK, "linestyles": "--", "linewidth": 1.4, "label": "chance"}
    axes.vlines(100 * table["chance"], places - 0.5, places + 0.5, **chance)
    labels = [f"{name}  ({_short_protocol(rule)})" for name, rule in zip(table["protocol"], table["rule"], strict=True)]
    axes.set_yticks(places, labels, parse_math=False)
    axes.set(xlabel=f"{metric_label(metric)} (%)", xlim=(0, _ceiling(table)), ylim=(len(table) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")
    return figure


@themed
def paper_vs_ours(table: pd.DataFrame, *, metric: str = "recall@10") -> Figure:
    """Published numbers and ours: method, source (a key of ``SOURCES``), recall@10 (fraction), protocol.

    Intervals are drawn where ``recall@10/ci_low`` and ``…/ci_high`` have them. Each source's rows stand together, best
    first; NaN reads "not run"; `protocol` is printed beside, since
    numbers of different protocols do not compare. Raises ValueError for another source.
    """
    check_table(table, "paper_vs_ours", ("method", "source", metric, "protocol"), (metric,))
    others = sorted(set(table["source"]) - set(SOURCES))
    if others:
        raise ValueError(f"paper_vs_ours knows the sources {', '.join(SOURCES)}, got {', '.join(others)}")
    order = {source: i for i, source in enumerate(SOURCES)}
    table = table.assign(_order=table["source"].map(order)).sort_values(
        ["_order", metric], ascending=[True, False], kind="stable", na_position="last"
    )
    places = np.arange(len(table)) + 0.5 * (table["_order"].rank(method="dense").to_numpy() - 1)
    title = f"{metric_label(metric)}: the paper, other publications, this study"
    subtitle = "mean of the categories  ·  numbers compare only where data and protocol are the same"
    figure, (axes,) = _panels(1, (13, 2.2 + 0.34 * float(places[-1] + 1)), title, subtitle)
    for source, (label, colour) in SOURCES.items():
        mine = (table["source"] == source).to_numpy()
        if mine.any():
            axes.barh(places[mine], 100 * table.loc[mine, metric], 0.68, color=colour, label=label)
    ends = ("ci_low", "ci_high")
    spans = pd.DataFrame({end: table.get(f"{metric}/{end}", table[metric]).fillna(table[metric]) for end in ends})
    known = (spans["ci_high"] > spans["ci_low"]).to_numpy()
    whiskers(axes, places[known], spans[known], horizontal=True)
    for place, value, end in zip(places, table[metric], spans["ci_high"], strict=True):
        text, style = ("not run", "italic") if np.isnan(value) else (percent(value), "normal")
        at = 0.0 if np.isnan(value) else 100 * end
        axes.annotate(text, (at, place), (6, 0), textcoords="offset points", va="center", style=style)
    notes = ["" if pd.isna(note) else _short_protocol(note) for note in table["protocol"]]
    text_column(axes, 1.02, "gallery · reference · captions", places, notes, ha="left", size=11, color=MUTED)
    axes.set_yticks(places, [method_label(method) for method in table["method"]], parse_math=False)
    highest = 100 * float(np.nanmax([*table[metric], 0.0]))
    axes.set(xlabel=f"{metric_label(metric)} (%)", xlim=(0, 1.2 * highest or 1.0), ylim=(places[-1] + 0.6, -0.6))
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return figure


def _short_protocol(protocol: str) -> str:
    """``original gallery, reference removed, captions joined: and`` as ``original · removed · and``."""
    for words in (" gallery", "reference ", "captions joined: ", "captions: "):
        protocol = protocol.replace(words, "")
    return protocol.replace(", ", " · ")


# -------------------------------------------------------------------------------------------------- curves


@themed
def learning_curves(history: pd.DataFrame, *, metric: str = "dev/recall@10") -> Figure:
    """Loss and held-out recall by epoch, a line a run, the run's best epoch marked on both.

    `history`: run, epoch, loss and `metric` (a fraction); NaN where an epoch was not measured.
    """
    check_table(history, "learning_curves", ("run", "epoch", "loss", metric), (metric,))
    subtitle = "circles: the epoch with the best recall on queries held out of train"
    figure, (left, right) = _panels(2, (12, 5.4), "Learning curves", subtitle)
    for run, colour in _colours(list(history["run"].unique())).items():
        rows = history[history["run"] == run].sort_values("epoch", kind="stable")
        label = method_label(run)
        if rows[metric].notna().any():
            best = rows.loc[rows[metric].idxmax()] if rows.index.is_unique else rows.iloc[rows[metric].argmax()]
            label += f"  (best: epoch {best['epoch']:g}, {percent(best[metric])} %)"
            mark = {"s": 120, "color": "white", "edgecolor": colour, "linewidth": 2.5, "zorder": 4}
            left.scatter([best["epoch"]], [best["loss"]], label="_best", **mark)
            right.scatter([best["epoch"]], [100 * best[metric]], label="_best", **mark)
        for axes, column, scale in ((left, "loss", 1), (right, metric, 100)):
            known = rows.dropna(subset=[column])
            axes.plot(known["epoch"], scale * known[column], color=colour, label=label)
    for axes, name in ((left, "training loss"), (right, f"held-out {metric.split('/')[-1]} (%)")):
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure


@themed
def dpo_curves(history: pd.DataFrame) -> Figure:
    """DPO by step in three panels: loss; rewards of the chosen and the rejected, and the margin; accuracy.

    `history`: step, loss, margin, chosen_reward, rejected_reward, accuracy (a fraction). Long histories show
    a moving average over the thin raw line.
    """
    names = ("step", "loss", "margin", "chosen_reward", "rejected_reward", "accuracy")
    check_table(history, "dpo_curves", names, ("accuracy",))
    history = history.sort_values("step", kind="stable")
    subtitle = "accuracy: how often the target's reward is above its negative's"
    figure, (loss, rewards, accuracy) = _panels(3, (13, 4.9), "Direct preference optimisation", subtitle)
    steps = history["step"]
    _smooth_line(loss, steps, history["loss"], BLUE)
    _smooth_line(rewards, steps, history["chosen_reward"], GREEN, label="chosen")
    _smooth_line(rewards, steps, history["rejected_reward"], ORANGE, label="rejected")
    _smooth_line(rewards, steps, history["margin"], INK, label="margin", linestyle="--")
    _smooth_line(accuracy, steps, 100 * history["accuracy"], BLUE)
    accuracy.axhline(50, color=INK, linestyle="--", linewidth=1.4)
    accuracy.annotate("coin toss", (1, 50), (0, 4), xycoords=accuracy.get_yaxis_transform(),
                      textcoords="offset points", ha="right", va="bottom", color=MUTED)  # fmt: skip
    rewards.axhline(0, color=FAINT, linewidth=1.2, zorder=0)
    figure.legend(*rewards.get_legend_handles_labels(), loc="outside lower left", ncols=3)
    accuracy.set_ylim(0, 103)
    for axes, name in ((loss, "loss"), (rewards, "reward"), (accuracy, "accuracy (%)")):
        axes.set(xlabel="step")
        axes.set_title(name, loc="left", size=13)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def _smooth_line(axes: Axes, x: pd.Series, y: pd.Series, colour: str, **options: Any) -> None:
    """The line; over 100 points a centred moving average, with the raw values thin behind."""
    if len(y) > 100:
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.25, label="_raw")
        y = y.rolling(len(y) // 25, center=True, min_periods=1).mean()
    axes.plot(x, y, color=colour, **options)


@themed
def rank_histogram(ranks: Mapping[str, ArrayLike], *, gallery_size: int) -> Figure:
    """The share of queries whose target is among the first k, for every k: one curve a method, and chance.

    `ranks`: method → the target's rank of each query, from 1 to `gallery_size`. Raises ValueError for others.
    """
    if not ranks:
        raise ValueError("rank_histogram needs the ranks of one method at least")
    ks = np.unique(np.geomspace(1, gallery_size, 400).round())
    title, subtitle = (
        "How far down is the target?",
        f"gallery of {gallery_size:,} images  ·  k on a log scale",
    )
    figure, (axes,) = _panels(1, (10, 5.8), title, subtitle)
    for method, colour in _colours(list(ranks)).items():
        values = np.sort(np.asarray(ranks[method], dtype=float))
        if not values.size or np.isnan(values).any() or values[0] < 1 or values[-1] > gallery_size:
            raise ValueError(f"rank_histogram needs ranks of {method} from 1 to gallery_size={gallery_size}")
        curve = 100 * np.searchsorted(values, ks, side="right") / values.size
        label = f"{method_label(method)}  (median rank {np.median(values):,.0f})"
        axes.step(ks, curve, where="post", color=colour, label=label)
    axes.plot(ks, 100 * ks / gallery_size, color=INK, linestyle="--", linewidth=1.4, label="chance")
    axes.set_xscale("log")
    axes.set_xticks([k for k in (1, 5, 10, 50, 100, 500, 1000, 5000, 10_000) if k <= gallery_size])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:,.0f}"))
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.set(xlabel="k", ylabel="target among the first k (% of queries)", ylim=(0, 101), xlim=(1, gallery_size))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=3)
    return figure
