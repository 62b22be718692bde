"""One style for every figure, also for the colour-blind. Tables hold fractions of 1; figures show per cent."""

import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image as DisplayedImage
from IPython.display import Markdown
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from seaborn.utils import relative_luminance

from cirlib.figures.fonts import FONT, use_installed_fonts
from cirlib.study.errors import StudyError
from cirlib.study.files import replace_file
from cirlib.study.method_registry import find_method, method_label
from cirlib.study.units import percent as percent
from cirlib.study.units import points as points

INK, MUTED, FAINT, PAPER = "#222222", "#6B6B6B", "#C9C9C9", "#F3F3F3"
GREEN, BLUE, ORANGE, YELLOW, PINK = "#009E73", "#0072B2", "#D55E00", "#E69F00", "#CC79A7"  # Okabe and Ito's palette
CHANCE: dict[str, Any] = {"color": INK, "linestyle": "--", "linewidth": 1.4}
DOTTED: dict[str, Any] = CHANCE | {"linestyle": ":"}  # another level to compare with
ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}  # a chart's legend
BELOW: dict[str, Any] = {"loc": "outside lower left"}  # a figure's legend
DASHES = ("-", (0, (6, 2)), (0, (2, 1.4)), (0, (7, 2, 1.5, 2)))  # so that lines on each other are both seen
ON_LINES = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # behind a number
HALO = (patheffects.withStroke(linewidth=3.4, foreground="white", alpha=0.75),)
DPI = 150
FRACTIONS = ["value", "ci_low", "ci_high", "chance", "recall@10", "dev/recall@10", "difference", "accuracy", "hubness"]
FRACTIONS += ["satisfies_edit", "differs_in_one", "change"]  # columns of tables that are fractions of 1


class FigureError(StudyError, ValueError):
    """A figure cannot be drawn from this table, or not be written to this file."""


@contextmanager
def _own_settings() -> Iterator[None]:
    """The study's theme on matplotlib's defaults, whatever the caller's settings; those come back after."""
    rc = {"axes.labelsize": 12, "xtick.labelsize": 12, "ytick.labelsize": 12, "legend.fontsize": 11}
    rc |= {"grid.color": "#E4E4E4", "axes.edgecolor": "#8A8A8A", "lines.linewidth": 2.4, "legend.frameon": False}
    rc |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    rc |= {"axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # one sentence says so
        mpl.rcdefaults()
        sns.set_theme(style="whitegrid", font=FONT, rc=rc)
        yield


def themed(none: str) -> Callable[[Callable[..., Figure | None]], Callable[..., Figure | str]]:
    """Decorator: draw in the study's style, whatever matplotlib's settings are, and settle the layout.

    Where its table, or what else comes first, is empty, and where there is nothing to draw in it (None), the function
    gives the sentence ``none``. It raises FigureError for per cent in one of the columns ``FRACTIONS``.

    >>> themed("No query.")(lambda table: panels(1, (8, 4), "A headline")[0])([])
    'No query.'
    """

    def decorate(draw: Callable[..., Figure | None]) -> Callable[..., Figure | str]:
        @wraps(draw)
        def drawn(*args: Any, **kwargs: Any) -> Figure | str:
            first, *_ = (*args, *kwargs.values())
            if not len(first):
                return none
            for table in (arg for arg in args if isinstance(arg, pd.DataFrame)):
                most = table[table.columns.intersection(FRACTIONS)].abs().max()
                if (most > 1).any():
                    raise FigureError(
                        f"figures take fractions of 1, not per cent: {most.idxmax()} goes up to {most.max():g}"
                    )
            with _own_settings():
                figure = draw(*args, **kwargs)
                if figure is None:
                    return none
                figure.draw_without_rendering()
                if use_installed_fonts(figure):
                    figure.draw_without_rendering()
                figure.set_layout_engine("none")  # it would creep with each further drawing
            return figure

        return drawn

    return decorate


def save(figure: Figure | str, path: Path) -> DisplayedImage | Markdown:
    """Write the figure as a PNG that says in words what it shows, the same bytes for the same figure.

    A notebook shows what it returns: the file, so that nothing is drawn twice. A text says why there is no figure: it
    is shown, and what an earlier run left at ``path`` goes.

    Figures with pictures in them get a palette of 256 colours and its dithering, half of the size.

    >>> save("Nothing was trained.", folder / "rewards.png").data
    'Nothing was trained.'
    """
    if path.suffix.lower() != ".png":
        raise FigureError(f"figures are saved as .png, not as {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(figure, str):
        path.unlink(missing_ok=True)
        return Markdown(figure)
    drawn = BytesIO()
    with _own_settings():
        figure.set_dpi(DPI)
        box = figure.get_tightbbox().padded(0.15)  # inches
        figure.savefig(drawn, format="png", bbox_inches=box, pil_kwargs={"compress_level": 0})
    image, said = Image.open(drawn).convert("RGB"), PngInfo()
    if any(axes.images for axes in figure.axes):
        palette = image.quantize(256, method=Image.Quantize.FASTOCTREE)
        image = image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    texts = [" ".join(text.get_text().split()) for text in (*figure.texts, *figure.findobj(Text))]  # headline first
    words = dict.fromkeys(text for text in texts if text.strip("−-+.,%0123456789 "))
    said.add_text("Description", textwrap.shorten(". ".join(words), 1000, placeholder=" …"))
    replace_file(path, lambda part: image.save(part, format="png", dpi=(DPI, DPI), pnginfo=said, optimize=True))
    return DisplayedImage(filename=path, retina=True)


def new_figure(
    size: tuple[float, float], title: str, subtitle: str = "", *, heads: float = 0.0, **options: Any
) -> Figure:
    """A figure (inches) with a title and a grey subtitle, which is wrapped, above it, and room for heads of columns.

    pyplot makes it, so that notebooks know how to show it, and forgets it, so that they show it once.

    >>> figure = new_figure((8, 4), "Learning curves", "garments")
    """
    figure = plt.figure(figsize=size, **options)
    plt.close(figure)
    whole = subtitle.strip(" ·").replace(" ", "\xa0").replace("·\xa0\xa0", "·\xa0 ")  # lines end between two notes only
    lines = [line.rstrip("·\xa0") for line in textwrap.wrap(whole, int(12.2 * size[0]))]
    y = 1 + (0.2 + heads + 0.21 * len(lines)) / size[1]
    figure.text(0, y + 0.06 / size[1], title, size=17, weight="bold", va="bottom", parse_math=False)
    figure.text(0, y, "\n".join(lines), size=11.5, color=MUTED, va="top", parse_math=False)
    return figure


def panels(
    number: int, size: tuple[float, float], title: str, *notes: str, columns: int = 4, **options: Any
) -> tuple[Figure, list[Axes]]:
    """So many charts, row by row, under one headline; `size` of each in inches, `options` of `Figure.subplots`.

    >>> figure, (left, right) = panels(2, (6, 5), "Learning curves", sharey=True)
    """
    columns = min(columns, number)
    rows = -(-number // columns)
    figure = new_figure((columns * size[0], rows * size[1]), title, "  ·  ".join(notes), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).ravel())
    for unused in axes[number:]:
        unused.remove()
    return figure, axes[:number]


def method_colours(methods: Sequence[str]) -> dict[str, str]:
    """Each method's own colour; methods without one share out the remaining colours in order.

    >>> method_colours(["sum", "mine"])
    {'sum': '#0072B2', 'mine': '#CC79A7'}
    """
    spare = cycle((PINK, "#000000", "#999933", "#5B3A9B"))
    return {name: find_method(name).colour or next(spare) for name in methods}


def of_method(title: str, method: str) -> tuple[str, str]:
    """The title with the method's name, and the method's colour.

    >>> of_method("Recall@10 by kind of edit", "sum")
    ('Recall@10 by kind of edit: weighted sum', '#0072B2')
    """
    return (f"{title}: {method_label(method)}", method_colours([method])[method]) if method else (title, BLUE)


def value_bars(
    axes: Axes,
    places: ArrayLike,
    groups: Mapping[str, pd.DataFrame],
    colours: Iterable[str | Sequence[str]],
    *,
    vertical: bool = False,
    size: float = 11.5,
    unit: str = "",
) -> None:
    """Bars of `value` with the interval where there is one and the number at the end, side by side at each place.

    `groups`: name in the legend → its rows, one a place; `colours`: one a group, or one a row of it. `size` of the
    numbers, `unit` after them. NaN has no bar, and reads "not run" where the bars are horizontal.

    >>> value_bars(panels(1, (8, 4), "Recall")[1][0], [0], {"sum": pd.DataFrame({"value": [0.5]})}, [BLUE], unit=" %")
    """
    thickness = 0.84 / max(3, len(groups)) if len(groups) > 1 else 0.62
    draw, error = (axes.bar, "yerr") if vertical else (axes.barh, "xerr")
    for i, ((name, rows), colour) in enumerate(zip(groups.items(), colours, strict=True)):
        look: dict[str, Any] = {"color": colour, "label": name or "_", "error_kw": {"ecolor": INK, "elinewidth": 1.5}}
        if "ci_low" in rows:
            ends = np.array([rows["value"] - rows["ci_low"], rows["ci_high"] - rows["value"]], dtype=float)
            look[error] = 100 * np.nan_to_num(ends).clip(min=0)
        own = np.asarray(places) + (i - (len(groups) - 1) / 2) * thickness
        bars = draw(own, 100 * rows["value"].fillna(0), 0.9 * thickness, **look)
        for line in bars.errorbar.lines[2] if bars.errorbar else ():
            line.set(path_effects=HALO, label="_interval")
        texts = [percent(value, unit) if value == value or not vertical else "" for value in rows["value"]]
        axes.bar_label(bars, texts, padding=4, size=size, bbox=ON_LINES)
    axes.margins(**{"y" if vertical else "x": 0.1})


def ink_cells(axes: Axes) -> None:
    """Writes each number of a heat map dark or white, whichever stands out more from its cell.

    >>> axes = sns.heatmap([[0.0, 1.0]], annot=True, cmap="Greys", ax=panels(1, (4, 3), "Shares")[1][0])
    >>> ink_cells(axes)
    >>> [text.get_color() for text in axes.texts]
    ['#222222', 'white']
    """
    mesh = axes.collections[0]
    cells = mesh.get_facecolors().reshape(*mesh.get_array().shape, 4)
    level = np.sqrt(1.05 * (relative_luminance(INK) + 0.05)) - 0.05  # from which both have the same contrast
    for text in axes.texts:
        column, row = map(int, text.get_position())
        text.set_color(INK if relative_luminance(cells[row, column]) > level else "white")


def label_rows(
    axes: Axes, labels: Sequence[str], places: ArrayLike | None = None, *, right: Sequence[str] = ()
) -> NDArray[np.float64]:
    """Names the rows of a horizontal chart, the first on top, with texts `right` of them; returns their places.

    >>> label_rows(panels(1, (8, 4), "Recall@10 by kind of edit")[1][0], ["colour", "fit"])
    array([0., 1.])
    """
    places = np.arange(len(labels), dtype=float) if places is None else np.asarray(places, dtype=float)
    axes.set_yticks(places, labels, parse_math=False)
    axes.set_ylim(places[-1] + 0.6, -0.6)
    axes.grid(visible=False, axis="y")
    if len(right):
        beside = axes.secondary_yaxis("right")
        beside.set_yticks(places, right, parse_math=False)
        beside.spines["right"].set_visible(False)
        beside.tick_params(length=0)
    return places


def row_chart(
    rows: pd.DataFrame,
    labels: Sequence[str],
    title: str,
    note: str,
    *,
    colour: str = BLUE,
    right: Sequence[str] = (),
) -> Figure:
    """A chart of Recall@10, a bar a row: value, ci_low, ci_high, chance; `labels` left, texts `right` of it.

    >>> rows = pd.read_csv(results / "zero_shot/protocols.csv")
    >>> figure = row_chart(rows, list(rows["protocol"]), "Recall@10 by protocol", "garments")
    """
    figure, (axes,) = panels(1, (10, 1.1 + 0.45 * len(rows)), title, note, "dashed: chance")
    places = label_rows(axes, labels, right=right)
    value_bars(axes, places, {"": rows}, [colour])
    axes.margins(x=0.18 if len(right) else 0.1)
    axes.vlines(100 * rows["chance"], places - 0.5, places + 0.5, **CHANCE, label="chance")
    axes.set_xlabel("Recall@10 (%)")
    return figure
