"""What a preference training does to the embeddings on its way, and where trainings with a mistake end."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cirlib.figures import style

VERDICTS = {"below chance": style.ORANGE, "cannot tell": "#9A9A9A", "above chance": style.BLUE}
PAPER_RATIO = 0.1  # the paper's 0.02 % is about a tenth of chance on FashionIQ
CURVES = {  # column of `trajectory`: (title of its panel, its axis)
    "recall@10": ("Recall@10", "Recall@10 (%)"),
    "rank_50": ("Rank of the target", "rank (log scale, best on top)"),
    "hubness": ("Hubness", "top-10 places of the ten commonest (%)"),
    "effective_rank": ("Effective rank of the queries", "directions in use"),
    "alignment": ("Alignment of query and target", "squared distance (0: the same)"),
    "uniformity": ("Uniformity of the queries", "log potential (0: all the same)"),
}


@style.themed("No mistake was tried.")
def mistakes(table: pd.DataFrame, *, context: str = "") -> Figure:
    """Where runs with one mistake end: Recall@10 as a multiple of chance, a row a mistake, a mark a repetition.

    `table`: mistake (a sentence), hits, queries, recall@10 with its exact interval ci_low to ci_high, chance
    (fractions, chance above 0), verdict (a key of ``VERDICTS``). NaN is left out.

    >>> row = ["none", 1, 900, 1 / 900, 0.0, 0.006, 0.01, "below chance"]
    >>> names = ["mistake", "hits", "queries", "recall@10", "ci_low", "ci_high", "chance", "verdict"]
    >>> figure = mistakes(pd.DataFrame([row], columns=names))
    """
    names, chance, queries = list(table["mistake"].unique()), table["chance"].mean(), int(table["queries"].max())
    found = table.dropna(subset="hits")
    hits = {name: [f"{round(one, 1):g}" for one in own["hits"]] for name, own in found.groupby("mistake")}
    notes = f"a dot a training, lines: its exact 95 % interval over queries  ·  right: hits of {queries:,} queries, a "
    notes += f"number a training; guessing hits {queries * chance:.1f}"
    size, title = (12, 1.6 + 0.55 * len(names)), "Below chance? Retrieval-DPO with one mistake at a time"
    figure, (axes,) = style.panels(1, size, title, context, notes)
    style.label_rows(axes, names, right=[" · ".join(hits.get(name, [])) for name in names])
    for verdict, colour in VERDICTS.items():
        own = table[(table["verdict"] == verdict) & table["recall@10"].notna()]
        order = table.groupby("mistake").cumcount()[own.index]
        places = own["mistake"].map(names.index).astype(float) + 0.24 * (
            order - (table["mistake"].value_counts().max() - 1) / 2
        )
        ends = [own[name] / own["chance"] for name in ("ci_low", "recall@10", "ci_high")]
        axes.hlines(places, ends[0], ends[2], colour, linewidth=2.4, label="_interval")
        axes.plot(ends[1], places, "o", color=colour, markersize=6, label=verdict)
    axes.axvline(1, **style.CHANCE, label="chance")
    axes.axvline(PAPER_RATIO, **style.DOTTED, label="the paper's 0.02 %, on FashionIQ")
    axes.set_xscale("symlog", linthresh=PAPER_RATIO, linscale=0.6)
    axes.set_xlim(-0.01, 1.3 * max(2, np.nan_to_num(table["ci_high"] / table["chance"]).max()))
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.set_xlabel("Recall@10 / chance (log scale above 0.1, linear below)")
    figure.legend(*axes.get_legend_handles_labels(), **style.BELOW, ncols=5)
    return figure


@style.themed("Nothing was trained.")
def trajectory(table: pd.DataFrame, *, context: str = "") -> Figure:
    """What the query vectors do during training, a panel a quantity over the training step.

    `table`, a row a step: step; recall@10 with its exact interval ci_low to ci_high, chance and hubness (the share of
    all top-10 places that the ten most retrieved images take) as fractions; alignment and uniformity (Wang and Isola
    2020); effective_rank; the quantiles rank_10 … rank_90 of the target's rank, from 1; gallery (candidates).

    >>> names = [*CURVES, "ci_low", "ci_high", "chance", "rank_10", "rank_25", "rank_75", "rank_90", "gallery"]
    >>> figure = trajectory(pd.DataFrame({"step": [0, 9], **{name: [0.5, 0.6] for name in names}}))
    """
    table = table.sort_values("step", kind="stable").set_index("step")
    shares = ["recall@10", "ci_low", "ci_high", "chance", "hubness"]
    table = table.assign(**{name: 100 * table[name] for name in shares})
    notes = (context, "one training; the other panels have no intervals")
    figure, axes = style.panels(len(CURVES), (4.6, 3.3), "What training Retrieval-DPO changes", *notes, columns=3)
    panels = dict(zip(CURVES, axes, strict=True))
    for column, panel in panels.items():
        title, unit = CURVES[column]
        panel.plot(
            table[column], color=style.BLUE, marker="o", markersize=5, label="median" if "_50" in column else "_"
        )
        panel.set(xlabel="training step" if panel in axes[-3:] else "", ylabel=unit)
        panel.set_title(title, loc="left", size=12.5, weight="bold", pad=20)
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if column not in ("rank_50", "uniformity"):
            top = table["ci_high" if column == "recall@10" else column].max()
            panel.set_ylim(0, 1.06 * top if top > 0 else 1)
    gallery, bands = float(table["gallery"].max()), {"rank_50": [("rank_10", "rank_90"), ("rank_25", "rank_75")]}
    for column, ends in (bands | {"recall@10": [("ci_low", "ci_high")]}).items():
        for (low, high), colour in zip(ends, ("#D3E5F1", "#8FBEDD"), strict=False):
            name = f"{low[5:]}–{high[5:]} %" if "rank" in low else "95 % interval"
            panels[column].fill_between(table.index, table[low], table[high], color=colour, linewidth=0, label=name)
    for column, level, name in (
        ("recall@10", table["chance"].mean(), "chance"), ("rank_50", gallery / 2, "chance"),
        ("hubness", 1000 / gallery, "least possible"),
    ):  # fmt: skip
        panels[column].axhline(level, **style.CHANCE, label=name)
        panels[column].legend(
            **style.ABOVE, ncols=4, fontsize=9, columnspacing=0.7, handlelength=1.4, handletextpad=0.3
        )
    panels["rank_50"].set(yscale="log", ylim=(1.15 * gallery, 0.85))
    panels["rank_50"].yaxis.set_major_formatter("{x:,.0f}")
    return figure
