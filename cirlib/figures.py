"""Every figure of the study. Each function takes plain tables or image paths and returns a matplotlib Figure.

Nothing is shown or written here: a notebook displays what is returned (once: the figures are closed for
pyplot), and `save` writes it as a PNG that is the same to the last byte for the same data. Tables hold
fractions of 1; figures show per cent. A method keeps its colour from figure to figure; the colours can be
told apart by colour-blind readers, and no figure says something by colour alone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import cycle
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

P = ParamSpec("P")
Floats = NDArray[np.float64]

INK, MUTED, FAINT, PAPER = "#222222", "#6B6B6B", "#C9C9C9", "#F3F3F3"
GREEN, BLUE, ORANGE = "#009E73", "#0072B2", "#D55E00"  # Okabe and Ito's palette, as most colours below
METHODS = {  # name in the tables: (name in the figures, colour)
    "image_only": ("image only", "#9A9A9A"),
    "text_only": ("text only", "#56B4E9"),
    "sum": ("sum", BLUE),
    "slerp": ("slerp", "#332288"),
    "qformer": ("Q-Former", "#E69F00"),
    "qformer_hard_negatives": ("Q-Former + hard negatives", ORANGE),
    "retrieval_dpo": ("Retrieval-DPO", GREEN),
}
OTHER_COLOURS = ("#CC79A7", "#000000", "#999933", "#882255")
SOURCES = {  # source in `paper_vs_ours`: (name in the legend, colour)
    "paper": ("the paper", ORANGE),
    "published": ("other publications", "#9A9A9A"),
    "ours": ("this study", BLUE),
}
SUMMARY_COLUMNS = (
    "method", "category", "metric", "value", "ci_low", "ci_high", "queries", "gallery", "chance", "protocol",
    "complete",
)  # fmt: skip
DPI = 150
TILE = 1.5  # height of an image in inches
HEADER = 0.85  # height of title and subtitle in inches


@dataclass(frozen=True)
class RetrievalRow:
    """One query and what was found: best `results` first, `correct` where a result is a target."""

    reference: Path
    text: str
    results: Sequence[Path]
    correct: Sequence[bool]
    target: Path
    rank: int  # of the target, from 1
    title: str | None = None


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
    """Write the figure as a PNG, the same bytes for the same figure. Raises ValueError for another suffix."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"figures are saved as .png, not as {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context():
        theme()
        figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.15, metadata={"Software": None})


def _themed(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw with the study's theme, whatever the caller's settings, and leave those as they were."""

    @wraps(draw)
    def themed(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context():
            theme()
            return draw(*args, **kwargs)

    return themed


def _figure(width: float, height: float, title: str, subtitle: str = "", **options: Any) -> Figure:
    """A figure (inches) with its headline, known to pyplot no longer, so that a notebook shows it once."""
    figure = plt.figure(figsize=(width, height), **options)
    plt.close(figure)
    figure.text(0.005, 1 - 0.04 / height, title, size=17, weight="bold", va="top")
    figure.text(0.005, 1 - 0.42 / height, subtitle, size=11.5, color=MUTED, va="top", parse_math=False)
    return figure


def _panels(
    number: int, size: tuple[float, float], title: str, subtitle: str = ""
) -> tuple[Figure, list[Axes]]:
    """A figure of charts side by side under one headline."""
    width, height = size
    figure = _figure(width, height, title, subtitle, layout="constrained")
    header = HEADER if subtitle else HEADER - 0.3
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - header / height), wspace=0.06)
    axes = figure.subplots(1, number, squeeze=False)[0]
    return figure, list(axes)


def _check(table: pd.DataFrame, caller: str, columns: Sequence[str], fractions: Sequence[str] = ()) -> None:
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


def _label(method: str) -> str:
    return METHODS[method][0] if method in METHODS else method.replace("_", " ")


def _colours(methods: Sequence[str]) -> dict[str, str]:
    """Each method's own colour; methods not known share out the remaining colours in order."""
    spare = cycle(OTHER_COLOURS)
    return {name: METHODS[name][1] if name in METHODS else next(spare) for name in methods}


def _percent(fraction: float) -> str:
    """12.3 for 0.123, and two decimals below one per cent, where chance lives."""
    return f"{100 * fraction:.2f}" if 0 < fraction < 0.01 else f"{100 * fraction:.1f}"


def _span(numbers: pd.Series) -> str:
    """1,961–2,038, or one number where all are the same."""
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _metric_label(metric: str) -> str:
    return metric.replace("recall", "Recall", 1)


# -------------------------------------------------------------------------------------------------- images


@_themed
def triplet_grid(
    rows: Sequence[tuple[Path, str, Path]],
    columns: int = 2,
    *,
    title: str = "What is asked: this image, changed like that",
) -> Figure:
    """Triplets (reference, edit text, target): the reference, an arrow with the edit over it, the target.

    `columns` triplets stand side by side. Raises ValueError without rows.
    """
    if not rows or columns < 1:
        raise ValueError(f"triplet_grid needs rows and columns, got {len(rows)} rows and columns={columns}")
    columns = min(columns, len(rows))
    tile = _tile_size([path for reference, _, target in rows for path in (reference, target)])
    edit, gap, between = 2.0, 0.6, 0.3
    cell = 2 * tile[0] + edit
    lines = -(-len(rows) // columns)
    top = 0.85  # title and column heads
    size = (columns * (cell + gap) - gap, top + lines * (tile[1] + between) - between)
    figure = _figure(*size, title)
    for number, (reference, text, target) in enumerate(rows):
        left, line = (number % columns) * (cell + gap), number // columns
        y = top + line * (tile[1] + between)
        if line == 0:
            _heads(figure, y, [(left, tile[0], "reference"), (left + tile[0] + edit, tile[0], "target")])
        _tile(figure, reference, (left, y), tile, "reference")
        _edit(figure, text, (left + tile[0], y), (edit, tile[1]))
        _tile(figure, target, (left + tile[0] + edit, y), tile, "target")
    return figure


@_themed
def retrieval_rows(rows: Sequence[RetrievalRow], *, title: str = "What was found") -> Figure:
    """A query a row: reference, edit, the best results (the target framed in green), a gap, the target.

    Raises ValueError without rows, or where `correct` does not say one thing a result.
    """
    _check_rows(rows)
    paths = [path for row in rows for path in (row.reference, *row.results, row.target)]
    width, height = tile = _tile_size(paths)
    shown = max(len(row.results) for row in rows)
    edit, between, gap, under = 2.0, 0.12, 0.5, 0.36
    results = width + edit
    target = results + shown * (width + between) - between + gap
    heads = [(0.0, width, "reference"), (width, edit, "edit"), (target, width, "target")]
    heads += [(results + i * (width + between), width, f"{i + 1}") for i in range(shown)]
    titles = [0.32 if row.title else 0.0 for row in rows]
    top = 0.85
    size = (target + width, top + sum(titles) + len(rows) * (height + under))
    figure = _figure(*size, title, options_subtitle(shown))
    y = top + 0.25
    figure.set_size_inches(size[0], size[1] + 0.25)
    return figure


